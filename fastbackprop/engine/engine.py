"""The engine: the buffers of one network, and running a plan on them, slice by slice."""

from typing import Any

import numpy as np

from fastbackprop.arguments.addresses import native
from fastbackprop.arguments.batch import Batch
from fastbackprop.arguments.checks import Array, DType
from fastbackprop.engine.calls import Call
from fastbackprop.engine.memory import aligned, empty
from fastbackprop.engine.plan import GIVEN_BYTES, STAGED_BYTES, Plan, plan_backward_pass, plan_forward_pass, plan_gradient, plan_prediction
from fastbackprop.engine.results import returned
from fastbackprop.parallel.workers import NO_HELPERS, count_threads, helpers

PAUSES_PER_MEGAFLOP = 32
"""Pauses, for each 2**20 floating-point operations of a call, that a worker is waited for which was asleep."""

KEPT_CALLS = 8
"""Calls whose records are kept: those of the last sizes of a batch."""


class Engine:
    """Buffers for networks of one shape and dtype, allocated at first use; one call at a time may run on them."""

    def __init__(self, layer_sizes: tuple[int, ...], dtype: DType) -> None:
        self.layer_sizes, self.dtype = layer_sizes, dtype
        self.no_vector, self.no_gradient = np.empty(0, dtype), np.empty(0, dtype)
        self.no_columns = np.empty((layer_sizes[0], 0), dtype)
        self.own_places = np.zeros((2 * (len(layer_sizes) - 1), 3), np.int64)
        self.buffers: dict[str, Array] = {}
        self.version = 0
        self.calls: dict[tuple[str, int], Call] = {}

    @property
    def nbytes(self) -> int:
        """The bytes that the buffers hold at present."""
        return sum([int(buffer.nbytes) for buffer in list(self.buffers.values())])

    def differentiate(self, batch: Batch) -> tuple[Any, ...]:
        """The loss, the gradients as lists or as a vector, and dl/dinput where asked."""
        return self._gradient(batch, plan_gradient(self.layer_sizes, self.dtype.itemsize, batch.samples))

    def differentiate_columns(self, batch: Batch) -> tuple[Any, ...]:
        """The same from the lists that the notebooks' forward pass returned; derivatives are written to more lists."""
        plan = plan_backward_pass(self.layer_sizes, self.dtype.itemsize, batch.samples)
        return self._gradient(batch, plan, "backward_pass")

    def predict(self, batch: Batch) -> Array:
        """The network's output (D_o, N)."""
        net_output = empty((self.layer_sizes[-1], batch.samples), self.dtype)
        batch.target = self.no_columns  # there is none
        plan = plan_prediction(self.layer_sizes, self.dtype.itemsize, batch.samples)
        self._run(batch, plan, plan.scheme + "_predict" * (plan.scheme == "few"), net_output, self.no_gradient)
        return net_output

    def predict_columns(self, batch: Batch) -> None:
        """Write every f_k and h_{k+1} to the lists that the batch has taken."""
        batch.target = self.no_columns
        plan = plan_forward_pass(self.layer_sizes, self.dtype.itemsize, batch.samples)
        self._run(batch, plan, "forward_pass", self.no_columns, self.no_gradient)

    def _gradient(self, batch: Batch, plan: Plan, name: str | None = None) -> tuple[Any, ...]:
        dl_dinput = self.no_columns
        if batch.input_gradient:
            dl_dinput = empty((self.layer_sizes[0], batch.samples), self.dtype)
        gradient = np.empty(plan.layout.parameters, self.dtype)
        loss = self._run(batch, plan, name or plan.scheme, dl_dinput, gradient)
        result = (loss * batch.scale, *returned(gradient, batch))
        return (*result, dl_dinput) if batch.input_gradient else result

    def _run(self, batch: Batch, plan: Plan, name: str, columns_out: Array, gradient: Array) -> float:
        """Run a pass over the batch, slice by slice; the loss of its samples. columns_out and gradient are written."""
        if batch.samples == 0:
            gradient[:] = 0.0
            return 0.0
        vector = self._load(batch)
        call = self._call(plan, name)
        if batch.tile_loss is not None:
            call.set_loss(batch.tile_loss, self.dtype)
        threads = count_threads(batch.num_threads, plan.pieces)
        self._place_buffers(call, plan, threads)
        slices = plan.slices(self._most_samples(batch, columns_out))
        patience = plan.layout.flops * batch.samples // len(slices) * PAUSES_PER_MEGAFLOP >> 20
        given = [batch.net_input, batch.target, batch.sample_weight, columns_out]
        for number, (first_chunk, end_chunk) in enumerate(slices):
            first, last = plan.cut(first_chunk), plan.cut(end_chunk)
            columns = given
            if len(slices) > 1:
                columns = [array[..., first:last] for array in given]
            columns = native(columns, self.dtype)
            places, _arrays = (self.own_places, None) if len(vector) else batch.locate(self.dtype, first, last)
            part = first, first_chunk, end_chunk, number == 0, number == len(slices) - 1
            boxes = helpers(threads)
            call.run(call.words, *columns, gradient, vector, places, part, batch.scale, boxes, patience, call.address)
            if batch.progress is not None:
                batch.progress(last, batch.samples)
        return call.loss_sum

    def _load(self, batch: Batch) -> Array:
        """The vector of parameters, or nothing of it where they are lists. What has to be converted is, in the batch."""
        if batch.vector is not None:
            return np.ascontiguousarray(batch.vector, self.dtype)
        batch.convert(self.dtype)
        return self.no_vector

    def _call(self, plan: Plan, name: str) -> Call:
        call = self.calls.get((name, plan.samples))
        if call is None:
            if len(self.calls) >= KEPT_CALLS:
                self.calls.clear()
            call = self.calls[name, plan.samples] = Call(plan, name, self.dtype)
        return call

    def _most_samples(self, batch: Batch, columns_out: Array) -> int | None:
        """The most samples of a slice, where columns are converted first, or the notebooks' lists are read or written."""
        arrays, lists = [batch.net_input, batch.target], batch.columns
        converted = [array for array in [*arrays, *lists] if array.dtype != self.dtype]
        limits = [
            most_bytes // (sum(map(len, rows)) * self.dtype.itemsize)
            for rows, most_bytes in ((converted, STAGED_BYTES), (lists, GIVEN_BYTES))
            if rows
        ]
        return min(limits) if limits else None

    def _place_buffers(self, call: Call, plan: Plan, threads: int) -> None:
        """Have buffers that are large enough, and write their addresses to the record."""
        layout, chunks = plan.layout, min(plan.chunks, plan.slice_chunks)
        tiles, partials, samples = threads, chunks, threads * plan.tile_samples
        if plan.scheme == "shared":
            tiles, partials, samples = -(-plan.longest // plan.tile_samples), threads, plan.longest
        self._reserve("tiles", tiles * layout.tile_bytes)
        self._reserve("partials", partials * layout.partial_bytes)
        self._reserve("totals", layout.parameters * 8 * (plan.chunks > chunks))
        self._reserve("losses", chunks * 8)
        self._reserve("sample_losses", samples * 8)
        if call.version != self.version:
            call.version = self.version
            call.set(**{name: buffer.ctypes.data for name, buffer in self.buffers.items()})

    def _reserve(self, name: str, size: int) -> None:
        buffer = self.buffers.get(name)
        if buffer is None or buffer.nbytes < size:
            self.buffers[name] = aligned(-(-size // 8), np.dtype(np.float64))
            self.version += 1
