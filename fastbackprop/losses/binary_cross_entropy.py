"""The binary cross-entropy of the raw output, before a sigmoid, against probabilities y:

l = sum_i max(o_i, 0) - o_i y_i + log1p(exp(-|o_i|)), dl/do_i = sigmoid(o_i) - y_i.

No exponential has a positive argument, so nothing overflows.
"""

import numba
import numpy as np

from fastbackprop.arguments.checks import check_probabilities
from fastbackprop.kernels.elementary import exp, log1p


def check_target(y, units, columns):
    """Probabilities (D_o, N), broadcast."""
    return check_probabilities(y, units, columns, sums=False)


def tile_loss(losses, rows, stride, units, target_rows, count, scale):
    """See the package's docstring."""
    lanes, tile = numba.carray(losses, count), numba.carray(rows, (2 * units + 1) * stride)
    real = tile.dtype.type
    one, zero, slope = real(1.0), real(0.0), real(scale)
    weight = tile[2 * units * stride :]
    for i in range(units):
        output, target = tile[i * stride :], tile[(units + i) * stride :]
        for s in range(count):
            o, y = output[s], target[s]
            small = exp(-abs(o))
            positive = max(o, zero)  # in this order, NaN stays
            lanes[s] += np.float64(weight[s]) * np.float64((positive - o * y) + log1p(small))
            output[s] = slope * weight[s] * ((small if o < zero else one) / (one + small) - y)
