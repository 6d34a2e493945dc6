"""The caller's derivative by the output, in place of a loss: users give it to a vector-Jacobian product."""


def tile_loss(losses, rows, stride, units, target_rows, count, scale):
    """dl/df_K = the target: no loss, and no weights. See fastbackprop.losses."""
    for i in range(units):
        output, target = i * stride, (units + i) * stride
        for s in range(count):
            rows[output + s] = rows[target + s]
