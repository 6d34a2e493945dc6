"""The losses known by name: value and derivative of each, by the network's output o and the target y.

least_squares        sum (o - y)^2           2 (o - y)
half_least_squares   0.5 sum (o - y)^2       o - y
"""

from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]

LOSSES = {"least_squares": 1.0, "half_least_squares": 0.5}
"""Each name's factor c in c (o - y)^2, whose derivative is 2 c (o - y)."""


def derivative(name: str, net_output: Array, y: Any) -> Array:
    """The derivative of the named loss by the output, in the dtype of net_output - y."""
    slope = 2.0 * LOSSES[name]
    error: Array = net_output - y
    return error if slope == 1.0 else slope * error
