"""The squared error: l = sum_i (o_i - y_i)^2, dl/do_i = 2 (o_i - y_i)."""

import numpy as np

from fastbackprop.arguments.checks import check_target
from fastbackprop.kernels.jit import phase

__all__ = ["check_target", "tile_loss"]


def tile_loss(losses, rows, stride, units, target_rows, count, scale):
    """See fastbackprop.losses."""
    squared_error(losses, rows, stride, units, count, 1.0, scale + scale)  # 2.0 * scale would be a double


@phase
def squared_error(losses, rows, stride, units, count, factor, scale):
    """losses += factor w sum_i (o_i - y_i)^2, and output = scale w (o - y)."""
    weight = 2 * units * stride
    for i in range(units):
        output, target = i * stride, (units + i) * stride
        for s in range(count):
            error = rows[output + s] - rows[target + s]
            losses[s] += factor * np.float64(rows[weight + s]) * np.float64(error) * np.float64(error)
            rows[output + s] = scale * rows[weight + s] * error
