"""The caller's derivative by the output, which takes the place of a loss in a vector-Jacobian product."""

import numba


def tile_seed(losses, rows, stride, units, target_rows, count, scale):
    """dl/df_K = the target, see losses: no loss, and no weights."""
    tile = numba.carray(rows, 2 * units * stride)
    for i in range(units):
        output, target = tile[i * stride :], tile[(units + i) * stride :]
        for s in range(count):
            output[s] = target[s]
