"""The oracle: the same functions in plain NumPy, a few lines each, sharing no code with the rest of the package.

Everything is computed for the whole batch at once, layer by layer, as in section 7.4 of Prince, "Understanding Deep
Learning". Use it to check results, or to read what the kernels compute. Arguments are not validated.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[Any]
Arrays = list[Array]


def ReLU(preactivation: ArrayLike) -> Any:
    """max(0, f), NaN where f is NaN."""
    return np.maximum(preactivation, 0)


def indicator_function(x: ArrayLike) -> Array:
    """1 where x > 0, 0 where x <= 0, NaN where x is NaN, in the dtype of x."""
    x = np.asarray(x)
    return np.where(x > 0, np.ones_like(x), np.where(x <= 0, np.zeros_like(x), x))


def least_squares_loss(net_output: Array, y: ArrayLike) -> Any:
    """sum (o - y)^2."""
    error = net_output - y
    return np.sum(error * error)


def d_loss_d_output(net_output: Array, y: ArrayLike) -> Any:
    """2 (o - y)."""
    return 2 * (net_output - y)


def squared_errors(net_output: Array, y: ArrayLike) -> Any:
    """sum_i (o_i - y_i)^2 for each sample."""
    error = net_output - y
    return np.sum(error * error, axis=0)


LOSSES: dict[str, tuple[Callable[[Array, ArrayLike], Any], Callable[[Array, ArrayLike], Any]]] = {
    "least_squares": (squared_errors, d_loss_d_output),
    "half_least_squares": (lambda o, y: 0.5 * squared_errors(o, y), lambda o, y: o - y),
}
"""Each loss by name: its value for each sample, and its derivative by the network's output."""


def compute_network_output(
    net_input: Array, all_weights: Sequence[Array], all_biases: Sequence[Array], *, append_output: bool = False
) -> tuple[Array, Arrays, Arrays]:
    """f_k = Omega_k h_k + beta_k and h_{k+1} = ReLU(f_k)."""
    all_f: Arrays = []
    all_h = [net_input]
    for weights, biases in zip(all_weights, all_biases, strict=True):
        all_f.append(weights @ all_h[-1] + np.reshape(biases, (-1, 1)))
        all_h.append(ReLU(all_f[-1]))
    net_output = all_f[-1]
    all_h = all_h[:-1] + [net_output] * append_output
    return net_output, all_f, all_h


def backward_pass(
    all_weights: Sequence[Array],
    all_biases: Sequence[Array],
    all_f: Sequence[Array],
    all_h: Sequence[Array],
    y: ArrayLike,
    *,
    loss: str | Callable[[Array, Any], Array] = "least_squares",
    intermediates: bool = False,
) -> tuple[Any, ...]:
    """dl/df_{k-1} = (Omega_k^T dl/df_k) * [f_{k-1} > 0], dl/dOmega_k = dl/df_k h_k^T, dl/dbeta_k = sum dl/df_k."""
    derivative = loss if callable(loss) else LOSSES[loss][1]
    layers = len(all_weights)
    all_dl_dweights, all_dl_dbiases, all_dl_dh, all_dl_df = ([np.empty(0)] * layers for _ in range(4))
    dl_df = derivative(all_f[-1], y)
    for k in reversed(range(layers)):
        all_dl_df[k] = dl_df
        all_dl_dweights[k] = dl_df @ all_h[k].T
        all_dl_dbiases[k] = np.sum(dl_df, axis=1).reshape(np.shape(all_biases[k]))
        if k > 0 or intermediates:
            all_dl_dh[k] = all_weights[k].T @ dl_df
        if k > 0:
            dl_df = all_dl_dh[k] * indicator_function(all_f[k - 1])
    if intermediates:
        return all_dl_dweights, all_dl_dbiases, all_dl_dh, all_dl_df
    return all_dl_dweights, all_dl_dbiases


def predict(net_input: Array, all_weights: Sequence[Array], all_biases: Sequence[Array]) -> Array:
    """The network's output alone."""
    return compute_network_output(net_input, all_weights, all_biases)[0]


def vjp(
    net_input: Array,
    all_weights: Sequence[Array],
    all_biases: Sequence[Array],
    dl_doutput: Array,
    *,
    input_gradient: bool = False,
) -> tuple[Any, ...]:
    """The gradient of sum(dl_doutput * output) by the parameters, and by the input where asked."""
    _, all_f, all_h = compute_network_output(net_input, all_weights, all_biases)
    return _gradients(all_weights, all_biases, all_f, all_h, dl_doutput, input_gradient)


def loss_and_gradients(
    net_input: Array,
    all_weights: Sequence[Array],
    all_biases: Sequence[Array],
    y: ArrayLike,
    *,
    loss: Any = "least_squares",
    reduction: str = "sum",
    sample_weight: ArrayLike | None = None,
    input_gradient: bool = False,
) -> tuple[Any, ...]:
    """The loss of the batch and its gradient: forward, loss and backward in one call."""
    net_output, all_f, all_h = compute_network_output(net_input, all_weights, all_biases)
    total = loss_value(net_output, y, loss, reduction, sample_weight)
    dl_doutput = loss_derivative(net_output, y, loss, reduction, sample_weight)
    return total, *_gradients(all_weights, all_biases, all_f, all_h, dl_doutput, input_gradient)


def loss_value(
    net_output: Array,
    y: Any,
    loss: Any = "least_squares",
    reduction: str = "sum",
    sample_weight: ArrayLike | None = None,
) -> float:
    """The loss of a batch, from the network's output."""
    if not isinstance(loss, str):
        return float(loss[0](net_output, y))
    weight, divisor = _weighting(net_output, reduction, sample_weight)
    return float(np.sum(LOSSES[loss][0](net_output, y) * weight, dtype=np.float64) / divisor)


def loss_derivative(
    net_output: Array,
    y: Any,
    loss: Any = "least_squares",
    reduction: str = "sum",
    sample_weight: ArrayLike | None = None,
) -> Array:
    """The derivative of loss_value by the network's output."""
    if not isinstance(loss, str):
        return np.asarray(loss[1](net_output, y))
    weight, divisor = _weighting(net_output, reduction, sample_weight)
    return np.asarray(LOSSES[loss][1](net_output, y) * weight / divisor)


def _weighting(net_output: Array, reduction: str, sample_weight: ArrayLike | None) -> tuple[Any, Any]:
    weight = 1 if sample_weight is None else np.asarray(sample_weight, net_output.dtype)
    return weight, 1 if reduction == "sum" else float(np.sum(np.broadcast_to(weight, net_output.shape[1])))


def _gradients(
    all_weights: Sequence[Array],
    all_biases: Sequence[Array],
    all_f: Arrays,
    all_h: Arrays,
    dl_doutput: Array,
    input_gradient: bool,
) -> tuple[Any, ...]:
    all_dl_dweights, all_dl_dbiases, *rest = backward_pass(
        all_weights, all_biases, all_f, all_h, dl_doutput, loss=lambda _, seed: seed, intermediates=input_gradient
    )
    return (all_dl_dweights, all_dl_dbiases, rest[0][0]) if input_gradient else (all_dl_dweights, all_dl_dbiases)
