"""The oracle: the same functions in plain NumPy, a few lines each, sharing no code with the rest of the package.

Everything is computed for the whole batch at once, layer by layer, as in section 7.4 of Prince, "Understanding Deep
Learning". Use it to check results, or to read what the kernels compute. Arguments are not validated, and NumPy warns
of numbers that overflow.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[Any]
Arrays = list[Array]
Function = TypeVar("Function", bound=Callable[..., Any])


def on_plain_arrays(function: Function) -> Function:
    """A function that takes arrays of every kind as plain ones, in lists too: `*` multiplies np.matrix otherwise."""

    def plain(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [plain(entry) for entry in value]
        return np.asarray(value) if isinstance(value, np.ndarray) else value

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        return function(*map(plain, arguments), **{name: plain(value) for name, value in options.items()})

    return cast("Function", call)


@on_plain_arrays
def ReLU(preactivation: ArrayLike) -> Any:
    """max(0, f), NaN where f is NaN."""
    return np.maximum(preactivation, 0)


@on_plain_arrays
def indicator_function(x: ArrayLike) -> Array:
    """1 where x > 0, 0 where x <= 0, NaN where x is NaN, in the dtype of x."""
    x = np.asarray(x)
    return np.where(x > 0, np.ones_like(x), np.where(x <= 0, np.zeros_like(x), x))


@on_plain_arrays
def least_squares_loss(net_output: Array, y: ArrayLike) -> Any:
    """sum (o - y)^2."""
    error = net_output - y
    return np.sum(error * error)


@on_plain_arrays
def d_loss_d_output(net_output: Array, y: ArrayLike) -> Any:
    """2 (o - y)."""
    return 2 * (net_output - y)


def squared_errors(net_output: Array, y: ArrayLike) -> Any:
    """sum_i (o_i - y_i)^2 for each sample."""
    error = net_output - y
    return np.sum(error * error, axis=0)


def softmax_cross_entropies(net_output: Array, y: ArrayLike) -> Any:
    """sum_i y_i (log sum_j exp(o_j) - o_i) for each sample, or that of the class y_c = 1 alone."""
    shifted = net_output - np.max(net_output, axis=0)
    surprise = np.log(np.sum(np.exp(shifted), axis=0)) - shifted
    if are_classes(net_output, y):
        return np.take_along_axis(surprise, np.broadcast_to(y, (1, net_output.shape[1])), axis=0)[0]
    return np.sum(y * surprise, axis=0)


def d_softmax_cross_entropy(net_output: Array, y: ArrayLike) -> Array:
    """m softmax(o) - y, where m = sum_i y_i."""
    exponentials = np.exp(net_output - np.max(net_output, axis=0))
    if are_classes(net_output, y):
        y = np.equal(np.arange(len(net_output))[:, None], y).astype(net_output.dtype)
    mass = np.sum(np.broadcast_to(y, net_output.shape), axis=0)
    return np.asarray(mass * (exponentials / np.sum(exponentials, axis=0)) - y)


def are_classes(net_output: Array, y: ArrayLike) -> bool:
    """Whether y holds class numbers, and not probabilities (D_o, N) or (D_o, 1)."""
    return len(net_output) > 1 and np.asarray(y).dtype.kind in "iu" and np.shape(y)[:-1] in ((), (1,))


def binary_cross_entropies(net_output: Array, y: ArrayLike) -> Any:
    """sum_i max(o_i, 0) - o_i y_i + log(1 + exp(-abs(o_i))) for each sample."""
    return np.sum(np.maximum(net_output, 0) - net_output * y + np.log1p(np.exp(-np.abs(net_output))), axis=0)


def d_binary_cross_entropy(net_output: Array, y: ArrayLike) -> Any:
    """sigmoid(o) - y."""
    small = np.exp(-np.abs(net_output))
    return np.where(net_output < 0, small, np.ones_like(small)) / (1 + small) - y


LOSSES: dict[str, tuple[Callable[[Array, ArrayLike], Any], Callable[[Array, ArrayLike], Any]]] = {
    "least_squares": (squared_errors, d_loss_d_output),
    "half_least_squares": (lambda o, y: 0.5 * squared_errors(o, y), lambda o, y: o - y),
    "softmax_cross_entropy": (softmax_cross_entropies, d_softmax_cross_entropy),
    "binary_cross_entropy": (binary_cross_entropies, d_binary_cross_entropy),
}
"""Each loss by name: its value for each sample, and its derivative by the network's output."""


@on_plain_arrays
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


@on_plain_arrays
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


@on_plain_arrays
def predict(net_input: Array, all_weights: Sequence[Array], all_biases: Sequence[Array]) -> Array:
    """The network's output alone."""
    return compute_network_output(net_input, all_weights, all_biases)[0]


@on_plain_arrays
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


@on_plain_arrays
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


@on_plain_arrays
def clipped_gradients(
    net_input: Array,
    all_weights: Sequence[Array],
    all_biases: Sequence[Array],
    y: ArrayLike,
    max_norm: float,
    *,
    loss: str = "least_squares",
    reduction: str = "sum",
    sample_weight: ArrayLike | None = None,
) -> tuple[Any, ...]:
    """sum_n w_n min(1, max_norm / norm_n) times the gradient of sample n, and the norms."""
    all_h, all_dl_df, losses = _of_samples(net_input, all_weights, all_biases, y, loss)
    norms = _lengths(_norms(all_h, all_dl_df))
    weight = np.ones(len(losses)) if sample_weight is None else np.asarray(sample_weight, np.float64)
    scale = 1 if reduction == "sum" else 1 / len(losses)
    with np.errstate(divide="ignore"):
        factors = scale * weight * (np.minimum(1, max_norm / norms) if max_norm < np.inf else 1)
    smallest = np.finfo(net_input.dtype).tiny  # factors with fewer bits would not bound the norm
    factors = np.where(np.abs(factors) < smallest, 0, factors).astype(net_input.dtype)
    all_dl_df = [dl_df * factors for dl_df in all_dl_df]
    total = float(np.sum(weight * losses) * scale)
    return total, *_summed(all_h, all_dl_df, all_biases), norms.astype(net_input.dtype)


@on_plain_arrays
def per_sample_gradient_norms(
    net_input: Array,
    all_weights: Sequence[Array],
    all_biases: Sequence[Array],
    y: ArrayLike,
    *,
    loss: str = "least_squares",
    per_layer: bool = False,
) -> tuple[Array, Array]:
    """The loss l_n of each sample, and the root of sum_k ||dl_n/df_k||^2 (||h_k||^2 + 1), or of each of its terms."""
    all_h, all_dl_df, losses = _of_samples(net_input, all_weights, all_biases, y, loss)
    layer_norms = _norms(all_h, all_dl_df)
    return losses, (layer_norms if per_layer else _lengths(layer_norms)).astype(net_input.dtype)


@on_plain_arrays
def squared_gradient_sums(
    net_input: Array,
    all_weights: Sequence[Array],
    all_biases: Sequence[Array],
    y: ArrayLike,
    *,
    loss: str = "least_squares",
) -> tuple[Any, ...]:
    """The loss, its gradient, and the sums of (dl/df_k)^2 (h_k^2)^T and (dl/df_k)^2."""
    all_h, all_dl_df, losses = _of_samples(net_input, all_weights, all_biases, y, loss)
    squared = [h * h for h in all_h], [dl_df * dl_df for dl_df in all_dl_df]
    total = float(np.sum(losses, dtype=np.float64))
    return total, *_summed(all_h, all_dl_df, all_biases), *_summed(*squared, all_biases)


@on_plain_arrays
def per_sample_gradients(
    net_input: Array,
    all_weights: Sequence[Array],
    all_biases: Sequence[Array],
    y: ArrayLike,
    *,
    loss: str = "least_squares",
) -> tuple[Array, Arrays, Arrays]:
    """The loss of each sample, and its gradient: the outer products dl/df_k h_k^T, and dl/df_k."""
    all_h, all_dl_df, losses = _of_samples(net_input, all_weights, all_biases, y, loss)
    all_dl_dweights = [dl_df.T[:, :, None] * h.T[:, None, :] for dl_df, h in zip(all_dl_df, all_h, strict=True)]
    all_dl_dbiases = [
        dl_df.T.reshape(-1, *np.shape(biases)) for dl_df, biases in zip(all_dl_df, all_biases, strict=True)
    ]
    return losses, all_dl_dweights, all_dl_dbiases


def _of_samples(
    net_input: Array, all_weights: Sequence[Array], all_biases: Sequence[Array], y: ArrayLike, loss: str
) -> tuple[Arrays, Arrays, Array]:
    """h_k and dl/df_k of every layer, and the loss of each sample."""
    net_output, all_f, all_h = compute_network_output(net_input, all_weights, all_biases)
    *_, all_dl_df = backward_pass(all_weights, all_biases, all_f, all_h, y, loss=loss, intermediates=True)
    return all_h, all_dl_df, LOSSES[loss][0](net_output, y)


def _norms(all_h: Arrays, all_dl_df: Arrays) -> Array:
    """||dl/df_k|| sqrt(||h_k||^2 + 1) of each layer and sample, in double precision."""
    return np.array([_lengths(dl_df) * np.hypot(_lengths(h), 1) for dl_df, h in zip(all_dl_df, all_h, strict=True)])


def _lengths(columns: Array) -> Array:
    """sqrt(sum_i x_i^2) of each column, divided by its largest |x_i| so that no square overflows or underflows."""
    columns = np.asarray(columns, np.float64)
    largest = np.max(np.abs(columns), axis=0)
    largest[~((largest > 0) & (largest < np.inf))] = 1  # 0, infinity and NaN divide nothing
    return np.asarray(largest * np.sqrt(np.sum((columns / largest) ** 2, axis=0)))


def _summed(all_h: Arrays, all_dl_df: Arrays, all_biases: Sequence[Array]) -> tuple[Arrays, Arrays]:
    """dl/dOmega_k = dl/df_k h_k^T and dl/dbeta_k = sum dl/df_k."""
    all_dl_dweights = [dl_df @ h.T for dl_df, h in zip(all_dl_df, all_h, strict=True)]
    all_dl_dbiases = [
        np.sum(dl_df, axis=1).reshape(np.shape(biases)) for dl_df, biases in zip(all_dl_df, all_biases, strict=True)
    ]
    return all_dl_dweights, all_dl_dbiases


@on_plain_arrays
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


@on_plain_arrays
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
    """A factor for the loss of each sample, and what their sum is divided by."""
    weight = np.ones(net_output.shape[1]) if sample_weight is None else np.asarray(sample_weight, np.float64)
    if reduction == "mean" and sample_weight is not None:
        weight = weight / np.max(np.abs(weight))  # so that neither they nor their sum leave the range of the dtype
    divisor = 1 if reduction == "sum" else float(np.sum(weight))
    return np.asarray(weight, np.result_type(net_output, np.float32)), divisor


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
