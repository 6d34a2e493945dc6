"""The cross-entropy of the softmax of the raw output, against probabilities y, or class numbers c for y_c = 1:

l = m ln(sum_j exp(z_j)) - sum_i y_i z_i, dl/do_i = m softmax(o)_i - y_i, with z = o - max_j o_j and m = sum_i y_i.

m is 1 except for rounding, and stays in both formulas so that one is the derivative of the other. No exponential has a
positive argument, so nothing overflows.
"""

import numpy as np

from fastbackprop.arguments.checks import check_classes, check_probabilities
from fastbackprop.kernels.elementary import exp, log1p


def check_target(y, units, columns):
    """Class numbers (1, N), if y has integers of such a shape and D_o > 1; else probabilities (D_o, N)."""
    classes = check_classes(y, units, columns) if units > 1 else None
    return check_probabilities(y, units, columns, sums=True) if classes is None else classes


def tile_loss(losses, rows, stride, units, target_rows, count, scale):
    """See fastbackprop.losses."""
    real = type(scale)
    one, zero = real(1.0), real(0.0)
    has_classes = target_rows < units
    classes, weight = units * stride, 2 * units * stride  # the first elements of rows
    mass, crossed, total = weight + stride, weight + 2 * stride, weight + 3 * stride
    for s in range(count):
        rows[mass + s] = one if has_classes else zero
        rows[crossed + s] = zero
        rows[total + s] = real(-np.inf)
    for i in range(units):
        output = i * stride
        for s in range(count):  # the peak; a NaN need not stay, it will be one of the exponentials
            rows[total + s] = max(rows[total + s], rows[output + s])
    for i in range(units - 1, -1, -1):  # the row of the class numbers is overwritten last
        output, target = i * stride, (units + i) * stride
        for s in range(count):
            rows[output + s] -= rows[total + s]
        if has_classes:
            # No product with 0: outputs of other classes may be infinite. Loads in a branch would not be made vectors.
            number = real(i)
            for s in range(count):
                hit, z, before = rows[classes + s] == number, rows[output + s], rows[crossed + s]
                rows[crossed + s] = z if hit else before
                rows[target + s] = one if hit else zero
        else:
            for s in range(count):
                rows[crossed + s] += rows[target + s] * rows[output + s]
            for s in range(count):
                rows[mass + s] += rows[target + s]
    for s in range(count):
        rows[total + s] = zero
    for i in range(units):
        output = i * stride
        for s in range(count):
            rows[output + s] = exp(rows[output + s])
            rows[total + s] += rows[output + s]
    for s in range(count):  # a total is 1 at least
        loss = np.float64(rows[mass + s]) * np.float64(log1p(rows[total + s] - one)) - np.float64(rows[crossed + s])
        losses[s] += np.float64(rows[weight + s]) * loss
        rows[total + s] = rows[mass + s] / rows[total + s]
    for i in range(units):
        output, target = i * stride, (units + i) * stride
        for s in range(count):
            rows[output + s] = scale * rows[weight + s] * (rows[total + s] * rows[output + s] - rows[target + s])
