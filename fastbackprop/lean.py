"""Gradients in plain NumPy, written for speed: what `python -m fastbackprop` and the benchmarks compare with.

`reference` is written to be read and checks every case. Here a layer is one product, and the bias, the ReLU and the
mask work in place. Losses other than least squares take their formulas from `reference.LOSSES`. Arguments are those of
the package, biases have shape (D_{k+1}, 1), and nothing is validated.

>>> import numpy as np
>>> from fastbackprop import lean
>>> all_weights, all_biases = [np.ones((3, 2)), np.ones((1, 3))], [np.zeros((3, 1)), np.zeros((1, 1))]
>>> kept = lean.buffers((2, 3, 1), 5, np.float64)
>>> loss, _, all_dl_dbiases = lean.loss_and_gradients(np.ones((2, 5)), all_weights, all_biases, 7.0, kept=kept)
>>> loss, all_dl_dbiases[1]
(5.0, array([[-10.]]))
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from fastbackprop.reference import LOSSES, Array, Arrays

Buffers = tuple[Sequence[Array | None], Sequence[Array | None], Sequence[Array | None]]


def buffers(layer_sizes: Sequence[int], samples: int, dtype: DTypeLike) -> Buffers:
    """Arrays for h_1, h_2, ... and the output; for dl/df_0, dl/df_1, ..., which are two that take turns; and masks."""
    hidden = layer_sizes[1:-1]
    widest = max(hidden, default=0)
    turns, mask = np.empty((2, widest, samples), dtype), np.empty((widest, samples), bool)
    all_h = [np.empty((units, samples), dtype) for units in layer_sizes[1:]]
    return all_h, [turns[k % 2, :units] for k, units in enumerate(hidden)], [mask[:units] for units in hidden]


def loss_and_gradients(
    net_input: Array,
    all_weights: Sequence[Array],
    all_biases: Sequence[Array],
    y: ArrayLike,
    *,
    loss: str = "least_squares",
    input_gradient: bool = False,
    kept: Buffers | None = None,
) -> tuple[Any, ...]:
    """The loss of a batch and its gradients; `kept` are the buffers, for calls with batches of the same size."""
    nothing = [None] * len(all_weights)
    room_for_h, *room = kept or (nothing, nothing, nothing)
    *all_h, net_output = net_input, *activations(net_input, all_weights, all_biases, room_for_h)
    total, dl_df = loss_and_derivative(net_output, y, loss)
    all_dl_dweights, all_dl_dbiases, dl_df = gradients(all_weights, all_h, dl_df, *room)
    dl_dinput = [all_weights[0].T @ dl_df] if input_gradient else []
    return total, all_dl_dweights, all_dl_dbiases, *dl_dinput


def predict(net_input: Array, all_weights: Sequence[Array], all_biases: Sequence[Array]) -> Array:
    """The network's output alone."""
    for h in activations(net_input, all_weights, all_biases, [None] * len(all_weights)):
        net_output = h
    return net_output


def compute_network_output(
    net_input: Array, all_weights: Sequence[Array], all_biases: Sequence[Array]
) -> tuple[Array, Arrays, Arrays]:
    """The notebooks' forward pass, which keeps every f_k and h_k."""
    all_f: Arrays = []
    all_h = [net_input]
    for weights, biases in zip(all_weights, all_biases, strict=True):
        if all_f:
            all_h.append(np.maximum(all_f[-1], 0))
        all_f.append(weights @ all_h[-1])
        all_f[-1] += biases
    return all_f[-1], all_f, all_h


def backward_pass(
    all_weights: Sequence[Array],
    _all_biases: Sequence[Array],
    all_f: Sequence[Array],
    all_h: Sequence[Array],
    y: ArrayLike,
) -> tuple[Arrays, Arrays]:
    """The notebooks' backward pass, of the sum of squared errors."""
    nothing = [None] * len(all_weights)
    return gradients(all_weights, all_h, 2 * (all_f[-1] - y), nothing, nothing)[:2]


def activations(
    net_input: Array, all_weights: Sequence[Array], all_biases: Sequence[Array], room: Sequence[Array | None]
) -> Iterator[Array]:
    """h_{k+1} = ReLU(Omega_k h_k + beta_k), and the output at the end."""
    h, last = net_input, len(all_weights) - 1
    for k, (weights, biases) in enumerate(zip(all_weights, all_biases, strict=True)):
        h = np.matmul(weights, h, out=room[k])
        h += biases
        if k < last:
            np.maximum(h, 0, out=h)
        yield h


def loss_and_derivative(net_output: Array, y: ArrayLike, loss: str) -> tuple[float, Array]:
    """The loss of a batch, and its derivative by the output, in place for least squares."""
    if loss != "least_squares":
        value, derivative = LOSSES[loss]
        return float(np.sum(value(net_output, y), dtype=np.float64)), derivative(net_output, y)
    net_output -= y
    total = float(np.vdot(net_output, net_output))
    net_output *= 2
    return total, net_output


def gradients(
    all_weights: Sequence[Array],
    all_h: Sequence[Array],
    dl_df: Array,
    room: Sequence[Array | None],
    masks: Sequence[Array | None],
) -> tuple[Arrays, Arrays, Array]:
    """dl/dOmega_k = dl/df_k h_k^T and dl/dbeta_k = sum dl/df_k from the last layer to the first, and dl/df_0."""
    all_dl_dweights: Arrays = []
    all_dl_dbiases: Arrays = []
    for k in reversed(range(len(all_weights))):
        all_dl_dweights.insert(0, dl_df @ all_h[k].T)
        all_dl_dbiases.insert(0, dl_df.sum(axis=1, keepdims=True))
        if k > 0:
            dl_df = np.matmul(all_weights[k].T, dl_df, out=room[k - 1])
            dl_df *= np.greater(all_h[k], 0, out=masks[k - 1])
    return all_dl_dweights, all_dl_dbiases, dl_df
