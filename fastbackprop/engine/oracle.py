"""The engine of a process in which numba must not compile: its passes are functions of the oracle, in plain NumPy."""

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from fastbackprop import reference
from fastbackprop.arguments.addresses import native
from fastbackprop.arguments.batch import Batch
from fastbackprop.arguments.checks import Array, DType, check_shapes
from fastbackprop.engine.calls import Call
from fastbackprop.engine.engine import Engine
from fastbackprop.engine.plan import COMPUTATIONS
from fastbackprop.engine.results import split

Arguments = tuple[Array, list[Array], list[Array], Array]
"""The input, the weights, the biases and the target, in the dtype of the result; class numbers stay integers."""


class OracleEngine(Engine):
    """An engine without records, buffers and threads. It computes a batch at once."""

    def _call(self, what: str, samples: int) -> Call:
        return OracleCall(what, self.layer_sizes, self.dtype, samples)

    def _run(self, batch: Batch, call: Call, columns_out: Array, gradient: Array) -> float:
        assert isinstance(call, OracleCall)
        with np.errstate(all="ignore"):  # as in kernels
            loss = PASSES[call.what](batch, arguments(batch, self.dtype), columns_out, gradient)
        if batch.progress is not None and batch.samples > 0:
            batch.progress(batch.samples, batch.samples)
        return loss


class OracleCall(Call):
    """The name of a computation and its plan. There is no record: passes read the batch itself."""

    def __init__(self, what: str, layer_sizes: tuple[int, ...], dtype: DType, samples: int) -> None:
        self.what, self.plan = what, COMPUTATIONS[what].plan(layer_sizes, dtype.itemsize, samples)


def arguments(batch: Batch, dtype: DType) -> Arguments:
    """The arguments of the oracle's functions."""
    net_input, target = native([batch.net_input, batch.target], dtype)
    if len(target) != batch.layer_sizes[-1]:
        target = batch.target
    if batch.vector is None:
        return net_input, native(batch.weights, dtype), native(batch.biases, dtype), target
    pairs = tuple((units_out, units_in) for units_in, units_out in itertools.pairwise(batch.layer_sizes))
    shapes = check_shapes(pairs, tuple(pair[:1] for pair in pairs))
    parameters = split(np.ascontiguousarray(batch.vector, dtype), shapes)
    return net_input, parameters[: len(pairs)], parameters[len(pairs) :], target


# Passes: columns_out and the gradient, in pack order, are written; the loss is returned.


def gradient_pass(batch: Batch, given: Arguments, columns_out: Array, gradient: Array) -> float:
    """The gradient, and dl/dinput."""
    _, all_f, all_h = reference.compute_network_output(*given[:3])
    return differentiate(batch, given, all_f, all_h, columns_out, gradient)


def backward_pass(batch: Batch, given: Arguments, columns_out: Array, gradient: Array) -> float:
    """The same from the notebooks' lists of f_k and h_k."""
    layers, columns = len(batch.layer_sizes) - 1, native(batch.columns, gradient.dtype)
    all_f, all_h = columns[:layers], [given[0], *columns[layers : 2 * layers - 1]]
    return differentiate(batch, given, all_f, all_h, columns_out, gradient)


def differentiate(
    batch: Batch, given: Arguments, all_f: list[Array], all_h: list[Array], columns_out: Array, gradient: Array
) -> float:
    """The way back. Derivatives by f_k and h_k are written to the notebooks' lists of them."""
    _, weights, biases, target = given
    factor, loss, dl_doutput = sample_weight(batch, gradient.dtype), 0.0, target
    if batch.loss is not None:
        value, derivative = reference.LOSSES[batch.loss]
        loss = float(np.sum(value(all_f[-1], target) * factor, dtype=np.float64))
        dl_doutput = derivative(all_f[-1], target) * factor * gradient.dtype.type(batch.scale)
    dweights, dbiases, all_dl_dh, all_dl_df = reference.backward_pass(
        weights, biases, all_f, all_h, dl_doutput, loss=lambda _, seed: seed, intermediates=True
    )
    pack(gradient, dweights, dbiases)
    if batch.input_gradient:
        columns_out[:] = all_dl_dh[0]
    wanted = batch.columns[2 * len(all_f) :]
    copy(wanted, [*all_dl_dh[1:], all_dl_df[-1], *all_dl_df] if wanted else [])
    return loss


def predict_pass(_batch: Batch, given: Arguments, columns_out: Array, _gradient: Array) -> float:
    """The network's output."""
    columns_out[:] = reference.predict(*given[:3])
    return 0.0


def forward_pass(batch: Batch, given: Arguments, _columns_out: Array, _gradient: Array) -> float:
    """f_k and h_{k+1}, to the notebooks' lists."""
    _, all_f, all_h = reference.compute_network_output(*given[:3])
    copy(batch.columns, [*all_f, *all_h[1:], all_f[-1]])
    return 0.0


def clipped_pass(batch: Batch, given: Arguments, columns_out: Array, gradient: Array) -> float:
    """The sum of clipped gradients; the norms."""
    loss, dweights, dbiases, columns_out[0] = reference.clipped_gradients(
        *given, batch.max_norm, loss=str(batch.loss), sample_weight=sample_weight(batch, gradient.dtype)
    )
    pack(gradient, dweights, dbiases)
    gradient *= gradient.dtype.type(batch.scale)
    return float(loss)


def squares_pass(batch: Batch, given: Arguments, _columns_out: Array, gradient: Array) -> float:
    """The gradient, and behind it the sums of squares."""
    loss, *sums = reference.squared_gradient_sums(*given, loss=str(batch.loss))
    first, second = np.split(gradient, 2)
    pack(first, *sums[:2])
    pack(second, *sums[2:])
    return float(loss)


def norms_pass(batch: Batch, given: Arguments, columns_out: Array, _gradient: Array) -> float:
    """The loss and the norm of each sample."""
    columns_out[:] = reference.per_sample_gradient_norms(*given, loss=str(batch.loss))
    return 0.0


def layer_norms_pass(batch: Batch, given: Arguments, columns_out: Array, _gradient: Array) -> float:
    """The loss of each sample, and its norm in each layer."""
    options: dict[str, Any] = {"loss": batch.loss, "per_layer": True}
    columns_out[0], columns_out[1:] = reference.per_sample_gradient_norms(*given, **options)
    return 0.0


def samples_pass(batch: Batch, given: Arguments, columns_out: Array, _gradient: Array) -> float:
    """The loss of each sample, and its gradient."""
    columns_out[0], dweights, dbiases = reference.per_sample_gradients(*given, loss=str(batch.loss))
    copy(batch.sample_gradients, dweights + dbiases)
    return 0.0


PASSES: dict[str, Callable[[Batch, Arguments, Array, Array], float]] = {
    "gradient": gradient_pass,
    "prediction": predict_pass,
    "forward pass": forward_pass,
    "backward pass": backward_pass,
    "clipped gradient": clipped_pass,
    "squares": squares_pass,
    "norms": norms_pass,
    "layer norms": layer_norms_pass,
    "sample gradients": samples_pass,
}
"""For each of COMPUTATIONS, the function that takes the place of its passes."""


def sample_weight(batch: Batch, dtype: DType) -> Array:
    """The factor of each sample's loss."""
    return batch.sample_weight.astype(dtype) if batch.sample_weight.size > 0 else np.ones(batch.samples, dtype)


def pack(gradient: Array, all_dl_dweights: list[Array], all_dl_dbiases: list[Array]) -> None:
    """Write a gradient in pack order."""
    pairs = zip(all_dl_dweights, all_dl_dbiases, strict=True)
    np.concatenate([array.ravel() for pair in pairs for array in pair], out=gradient)


def copy(targets: Iterable[Array], arrays: Iterable[Array]) -> None:
    """Write arrays to targets, which may have other shapes with the same number of elements."""
    for target, array in zip(targets, arrays, strict=True):
        target[...] = array.reshape(target.shape)
