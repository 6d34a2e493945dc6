"""The cross-entropy of the softmax of the raw output, against probabilities y, or class numbers c for y_c = 1:

l = m ln(sum_j exp(z_j)) - sum_i y_i z_i, dl/do_i = m softmax(o)_i - y_i, with z = o - max_j o_j and m = sum_i y_i.

m is 1 except for rounding, and stays in both formulas so that one is the derivative of the other. No exponential has a
positive argument, so nothing overflows.
"""

import numba
import numpy as np

from fastbackprop.arguments.checks import check_classes, check_probabilities
from fastbackprop.kernels.elementary import exp, log1p


def check_target(y, units, columns):
    """Class numbers (1, N), if y has integers of such a shape and D_o > 1; else probabilities (D_o, N)."""
    classes = check_classes(y, units, columns) if units > 1 else None
    return check_probabilities(y, units, columns, sums=True) if classes is None else classes


def tile_loss(losses, rows, stride, units, target_rows, count, scale):
    """See the package's docstring."""
    lanes, tile = numba.carray(losses, count), numba.carray(rows, (2 * units + 4) * stride)
    real = tile.dtype.type
    one, zero, slope = real(1.0), real(0.0), real(scale)
    has_classes = target_rows < units
    weight, mass = tile[2 * units * stride :], tile[(2 * units + 1) * stride :]
    crossed, total = tile[(2 * units + 2) * stride :], tile[(2 * units + 3) * stride :]
    classes = tile[units * stride :]
    for s in range(count):
        mass[s] = one if has_classes else zero
        crossed[s] = zero
        total[s] = real(-np.inf)
    for i in range(units):
        output = tile[i * stride :]
        for s in range(count):
            total[s] = max(total[s], output[s])  # the peak; a NaN need not stay, it will be one of the exponentials
    for i in range(units - 1, -1, -1):  # the row of the class numbers is overwritten last
        output, target = tile[i * stride :], tile[(units + i) * stride :]
        for s in range(count):
            output[s] -= total[s]
        if has_classes:
            # No product with 0: outputs of other classes may be infinite. Loads in a branch would not be made vectors.
            number = real(i)
            for s in range(count):
                hit, z, before = classes[s] == number, output[s], crossed[s]
                crossed[s] = z if hit else before
                target[s] = one if hit else zero
        else:
            for s in range(count):
                crossed[s] += target[s] * output[s]
            for s in range(count):
                mass[s] += target[s]
    for s in range(count):
        total[s] = zero
    for i in range(units):
        output = tile[i * stride :]
        for s in range(count):
            output[s] = exp(output[s])
            total[s] += output[s]
    for s in range(count):  # a total is 1 at least
        loss = np.float64(mass[s]) * np.float64(log1p(total[s] - one)) - np.float64(crossed[s])
        lanes[s] += np.float64(weight[s]) * loss
        total[s] = mass[s] / total[s]
    for i in range(units):
        output, target = tile[i * stride :], tile[(units + i) * stride :]
        for s in range(count):
            output[s] = slope * weight[s] * (total[s] * output[s] - target[s])
