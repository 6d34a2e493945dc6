"""The engine of a process in which numba must not compile: its methods compute with the oracle, in plain NumPy."""

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from fastbackprop import reference
from fastbackprop.arguments.addresses import native
from fastbackprop.arguments.batch import Batch
from fastbackprop.arguments.checks import Array, check_shapes
from fastbackprop.engine.engine import Engine
from fastbackprop.engine.results import parts_of_samples, returned, returned_samples, sample_arrays, split


class OracleEngine(Engine):
    """An engine without buffers, threads and slices. It has each public method of Engine."""

    def differentiate(self, batch: Batch) -> tuple[Any, ...]:
        """The loss, the gradients as lists or as a vector, and dl/dinput where asked."""
        with computing(batch):
            return self._gradients(batch, *self._forward(batch))

    def differentiate_columns(self, batch: Batch) -> tuple[Any, ...]:
        """The same from the lists that the notebooks' forward pass returned; derivatives are written to more lists."""
        layers = len(self.layer_sizes) - 1
        all_f, all_h = batch.columns[:layers], [batch.net_input, *batch.columns[layers : 2 * layers - 1]]
        with computing(batch):
            return self._gradients(batch, native(all_f, self.dtype), native(all_h, self.dtype))

    def predict(self, batch: Batch) -> Array:
        """The network's output (D_o, N)."""
        with computing(batch):
            return self._forward(batch)[0][-1]

    def predict_columns(self, batch: Batch) -> None:
        """Write every f_k and h_{k+1} to the lists that the batch has taken."""
        with computing(batch):
            all_f, all_h = self._forward(batch)
            copy_to(batch.columns, [*all_f, *all_h[1:], all_f[-1]])

    def clip(self, batch: Batch) -> tuple[Any, ...]:
        """The loss, the sum of the clipped gradients of the samples, and the norms (N,) they had."""
        weight = batch.sample_weight if batch.sample_weight.size > 0 else None
        with computing(batch):
            loss, dweights, dbiases, norms = reference.clipped_gradients(
                *self._arguments(batch), batch.max_norm, loss=str(batch.loss), sample_weight=weight
            )
            gradient = packed(dweights, dbiases) * self.dtype.type(batch.scale)
        return loss * batch.scale, *returned(gradient, batch), norms

    def square(self, batch: Batch) -> tuple[Any, ...]:
        """The loss, the gradients, and the sums of the squares of those of each sample."""
        with computing(batch):
            loss, *sums = reference.squared_gradient_sums(*self._arguments(batch), loss=str(batch.loss))
        return loss, *returned(packed(*sums[:2]), batch), *returned(packed(*sums[2:]), batch)

    def norms(self, batch: Batch) -> tuple[Array, Array]:
        """The loss and the norm of the gradient of each sample: (N,) and (N,)."""
        with computing(batch):
            return reference.per_sample_gradient_norms(*self._arguments(batch), loss=str(batch.loss))

    def layer_norms(self, batch: Batch) -> tuple[Array, Array]:
        """The same by the parameters of each layer: (N,) and (K + 1, N)."""
        with computing(batch):
            return reference.per_sample_gradient_norms(*self._arguments(batch), loss=str(batch.loss), per_layer=True)

    def differentiate_samples(self, batch: Batch) -> tuple[Any, ...]:
        """The loss of each sample (N,), and its gradients: lists of (N, ...), or (N, P)."""
        arrays = sample_arrays(batch, self.dtype)
        with computing(batch):
            losses, dweights, dbiases = reference.per_sample_gradients(*self._arguments(batch), loss=str(batch.loss))
        for part, array in zip(parts_of_samples(arrays, batch), dweights + dbiases, strict=True):
            part[...] = array.reshape(part.shape)
        return losses, *returned_samples(arrays, batch)

    def _forward(self, batch: Batch) -> tuple[list[Array], list[Array]]:
        """Every f_k and h_k."""
        return reference.compute_network_output(*self._arguments(batch)[:3])[1:]

    def _gradients(self, batch: Batch, all_f: list[Array], all_h: list[Array]) -> tuple[Any, ...]:
        """What a gradient returns, from every f_k and h_k."""
        _, weights, biases, target = self._arguments(batch)
        weight, loss = batch.sample_weight.astype(self.dtype), 0.0
        if weight.size == 0:
            weight = np.ones(batch.samples, self.dtype)
        dl_doutput = target
        if batch.loss is not None:
            value, derivative = reference.LOSSES[batch.loss]
            loss = batch.scale * float(np.sum(value(all_f[-1], target) * weight, dtype=np.float64))
            dl_doutput = (derivative(all_f[-1], target) * weight * batch.scale).astype(self.dtype, copy=False)
        all_dl_dweights, all_dl_dbiases, all_dl_dh, all_dl_df = reference.backward_pass(
            weights, biases, all_f, all_h, dl_doutput, loss=lambda _, given: given, intermediates=True
        )
        wanted = batch.columns[2 * len(all_f) :]
        copy_to(wanted, [*all_dl_dh[1:], all_dl_df[-1], *all_dl_df] if wanted else [])
        result = (loss, *returned(packed(all_dl_dweights, all_dl_dbiases), batch))
        return (*result, all_dl_dh[0]) if batch.input_gradient else result

    def _arguments(self, batch: Batch) -> tuple[Array, list[Array], list[Array], Array]:
        """The input, the weights, the biases and the target, in the dtype of this engine."""
        net_input, target = native([batch.net_input, batch.target], self.dtype)
        if len(target) != self.layer_sizes[-1]:  # class numbers
            target = batch.target
        if batch.vector is None:
            return net_input, native(batch.weights, self.dtype), native(batch.biases, self.dtype), target
        pairs = tuple((units_out, units_in) for units_in, units_out in itertools.pairwise(self.layer_sizes))
        shapes = check_shapes(pairs, tuple(pair[:1] for pair in pairs))
        return net_input, *split(np.ascontiguousarray(batch.vector, self.dtype), shapes), target


@contextlib.contextmanager
def computing(batch: Batch) -> Iterator[None]:
    """NaN and infinities neither raise nor warn, and `progress` is called once, for the whole batch."""
    with np.errstate(all="ignore"):
        yield
    if batch.progress is not None and batch.samples > 0:
        batch.progress(batch.samples, batch.samples)


def packed(all_dl_dweights: list[Array], all_dl_dbiases: list[Array]) -> Array:
    """A gradient in pack order."""
    pairs = zip(all_dl_dweights, all_dl_dbiases, strict=True)
    return np.concatenate([array.ravel() for pair in pairs for array in pair])


def copy_to(targets: Iterable[Array], arrays: Iterable[Array]) -> None:
    """Write arrays to others."""
    for target, array in zip(targets, arrays, strict=True):
        np.copyto(target, array)
