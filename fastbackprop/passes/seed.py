"""The caller's derivative by the output, which takes the place of a loss in a vector-Jacobian product."""


def tile_seed(losses, rows, stride, units, target_rows, count, scale):
    """dl/df_K = the target, see losses: no loss, and no weights."""
    for i in range(units):
        output, target = i * stride, (units + i) * stride
        for s in range(count):
            rows[output + s] = rows[target + s]
