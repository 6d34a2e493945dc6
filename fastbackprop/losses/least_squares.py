"""The squared error: l = sum_i (o_i - y_i)^2, dl/do_i = 2 (o_i - y_i)."""

import numba
import numpy as np

from fastbackprop.arguments.checks import check_target
from fastbackprop.kernels.jit import inner

__all__ = ["check_target", "tile_loss"]


def tile_loss(losses, rows, stride, units, target_rows, count, scale):
    """See the package's docstring."""
    squared_error(losses, rows, stride, units, count, 1.0, 2.0 * scale)


@inner
def squared_error(losses, rows, stride, units, count, factor, scale):
    """losses += factor w sum_i (o_i - y_i)^2, and output = scale w (o - y)."""
    lanes, tile = numba.carray(losses, count), numba.carray(rows, (2 * units + 1) * stride)
    slope, weight = tile.dtype.type(scale), tile[2 * units * stride :]
    for i in range(units):
        output, target = tile[i * stride :], tile[(units + i) * stride :]
        for s in range(count):
            error = output[s] - target[s]
            lanes[s] += factor * np.float64(weight[s]) * np.float64(error) * np.float64(error)
            output[s] = slope * weight[s] * error
