"""The losses known by name: value and derivative of each, by the network's output o and the target y.

                        value, summed over the samples                     derivative by o_i
least_squares           sum_i (o_i - y_i)^2                                2 (o_i - y_i)
half_least_squares      0.5 sum_i (o_i - y_i)^2                            o_i - y_i
softmax_cross_entropy   sum_i y_i (logsumexp(o) - o_i)                     m softmax(o)_i - y_i,  m = sum_i y_i
binary_cross_entropy    sum_i max(o_i, 0) - o_i y_i + log1p(exp(-|o_i|))   sigmoid(o_i) - y_i

The last two take the raw output, before a softmax or sigmoid. m is 1 but for rounding, and stays in both formulas so
that one is the derivative of the other. Class numbers c stand for y_c = 1. kernels.losses is the compiled form.
"""

from typing import Any

from numpy.typing import NDArray

from fastbackprop.kernels import BINARY, SOFTMAX, SQUARED_ERROR

Array = NDArray[Any]

LOSSES = {
    "least_squares": (SQUARED_ERROR, 1.0),
    "half_least_squares": (SQUARED_ERROR, 0.5),
    "softmax_cross_entropy": (SOFTMAX, 1.0),
    "binary_cross_entropy": (BINARY, 1.0),
}
"""Each name's mode of the kernels, and the factor before the formula of that mode."""


def squared_error_derivative(factor: float, net_output: Array, y: Any) -> Array:
    """2 factor (o - y), in the dtype of net_output - y."""
    slope = 2.0 * factor
    error: Array = net_output - y
    return error if slope == 1.0 else slope * error
