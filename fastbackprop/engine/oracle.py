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
from fastbackprop.engine.results import returned, split


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

    def _forward(self, batch: Batch) -> tuple[list[Array], list[Array]]:
        """Every f_k and h_k."""
        net_input = native([batch.net_input], self.dtype)[0]
        return reference.compute_network_output(net_input, *self._parameters(batch))[1:]

    def _gradients(self, batch: Batch, all_f: list[Array], all_h: list[Array]) -> tuple[Any, ...]:
        """What a gradient returns, from every f_k and h_k."""
        target, weight, loss = batch.target, np.asarray(batch.sample_weight, self.dtype), 0.0
        if len(target) == self.layer_sizes[-1]:  # otherwise class numbers
            target = native([target], self.dtype)[0]
        if weight.size == 0:
            weight = np.ones(batch.samples, self.dtype)
        dl_doutput = target
        if batch.loss is not None:
            value, derivative = reference.LOSSES[batch.loss]
            loss = batch.scale * float(np.sum(value(all_f[-1], target) * weight, dtype=np.float64))
            dl_doutput = (derivative(all_f[-1], target) * weight * batch.scale).astype(self.dtype, copy=False)
        all_dl_dweights, all_dl_dbiases, all_dl_dh, all_dl_df = reference.backward_pass(
            *self._parameters(batch), all_f, all_h, dl_doutput, loss=lambda _, given: given, intermediates=True
        )
        wanted = batch.columns[2 * len(all_f) :]
        copy_to(wanted, [*all_dl_dh[1:], all_dl_df[-1], *all_dl_df] if wanted else [])
        pairs = zip(all_dl_dweights, all_dl_dbiases, strict=True)
        gradient = np.concatenate([array.ravel() for pair in pairs for array in pair])
        result = (loss, *returned(gradient, batch))
        return (*result, all_dl_dh[0]) if batch.input_gradient else result

    def _parameters(self, batch: Batch) -> tuple[list[Array], list[Array]]:
        """The weights and the biases in the dtype of this engine."""
        if batch.vector is None:
            return native(batch.weights, self.dtype), native(batch.biases, self.dtype)
        pairs = tuple((units_out, units_in) for units_in, units_out in itertools.pairwise(self.layer_sizes))
        shapes = check_shapes(pairs, tuple(pair[:1] for pair in pairs))
        return split(np.ascontiguousarray(batch.vector, self.dtype), shapes)


@contextlib.contextmanager
def computing(batch: Batch) -> Iterator[None]:
    """NaN and infinities neither raise nor warn, and `progress` is called once, for the whole batch."""
    with np.errstate(all="ignore"):
        yield
    if batch.progress is not None and batch.samples > 0:
        batch.progress(batch.samples, batch.samples)


def copy_to(targets: Iterable[Array], arrays: Iterable[Array]) -> None:
    """Write arrays to others."""
    for target, array in zip(targets, arrays, strict=True):
        np.copyto(target, array)
