"""The binary cross-entropy of the raw output, before a sigmoid, against probabilities y:

l = sum_i max(o_i, 0) - o_i y_i + log1p(exp(-|o_i|)), dl/do_i = sigmoid(o_i) - y_i.

No exponential has a positive argument, so nothing overflows.
"""

import numpy as np

from fastbackprop.arguments.checks import check_probabilities
from fastbackprop.kernels.elementary import exp, log1p


def check_target(y, units, columns):
    """Probabilities (D_o, N), broadcast."""
    return check_probabilities(y, units, columns, sums=False)


def tile_loss(losses, rows, stride, units, target_rows, count, scale):
    """See fastbackprop.losses."""
    real = type(scale)
    one, zero, weight = real(1.0), real(0.0), 2 * units * stride
    for i in range(units):
        output, target = i * stride, (units + i) * stride
        for s in range(count):
            o, y = rows[output + s], rows[target + s]
            small = exp(-abs(o))
            positive = max(o, zero)  # in this order, NaN stays
            losses[s] += np.float64(rows[weight + s]) * np.float64((positive - o * y) + log1p(small))
            rows[output + s] = scale * rows[weight + s] * ((small if o < zero else one) / (one + small) - y)
