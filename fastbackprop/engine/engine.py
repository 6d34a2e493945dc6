"""The engine: the buffers of one network, and running a plan on them, slice by slice."""

from typing import Any

import numpy as np

from fastbackprop.arguments.addresses import native
from fastbackprop.arguments.batch import Batch
from fastbackprop.arguments.checks import FLOAT64, Array, DType
from fastbackprop.engine.calls import Call
from fastbackprop.engine.limits import GIVEN_BYTES, STAGED_BYTES
from fastbackprop.engine.memory import aligned, empty
from fastbackprop.engine.plan import Plan
from fastbackprop.engine.results import parts_of_samples, returned, returned_vector, sample_arrays
from fastbackprop.parallel.workers import NO_HELPERS, count_threads, helpers

PAUSES_PER_MEGAFLOP = 32
"""Number of pauses that a call waits for sleeping workers, for each 2**20 floating-point operations of a slice."""

KEPT_CALLS = 64
"""Largest number of calls whose records are kept, one kilobyte each."""


class Engine:
    """Buffers for networks of one shape and dtype, allocated at first use; one call at a time may run on them."""

    def __init__(self, layer_sizes: tuple[int, ...], dtype: DType) -> None:
        self.layer_sizes, self.dtype = layer_sizes, dtype
        self.nothing, self.no_columns = np.empty(0, dtype), np.empty((layer_sizes[0], 0), dtype)
        self.own_places = np.zeros((2 * (len(layer_sizes) - 1), 3), np.int64)
        self.buffers: dict[str, Array] = {}
        self.nbytes = 0
        """The bytes that the buffers hold. A buffer only grows: while this number is the same, so are their
        addresses."""
        self.calls: dict[tuple[str, int], Call] = {}

    def differentiate(self, batch: Batch) -> tuple[Any, ...]:
        """The loss, the gradients as lists or as a vector, and dl/dinput where asked."""
        return self._gradient(batch, self._call("gradient", batch.samples))

    def differentiate_columns(self, batch: Batch) -> tuple[Any, ...]:
        """The same from the lists of the notebooks' forward pass. Derivatives are written to further lists."""
        return self._gradient(batch, self._call("backward pass", batch.samples))

    def predict(self, batch: Batch) -> Array:
        """The network's output (D_o, N)."""
        net_output = empty((self.layer_sizes[-1], batch.samples), self.dtype)
        self._run(batch, self._call("prediction", batch.samples), net_output, self.nothing)
        return net_output

    def predict_columns(self, batch: Batch) -> None:
        """Write every f_k and h_{k+1} to the lists that the batch has taken."""
        self._run(batch, self._call("forward pass", batch.samples), self.no_columns, self.nothing)

    def clip(self, batch: Batch) -> tuple[Any, ...]:
        """The loss, the sum of the samples' clipped gradients, and the norms (N,) before clipping."""
        norms = empty((1, batch.samples), self.dtype)
        loss, gradient = self._sum(batch, self._call("clipped gradient", batch.samples), norms)
        return loss, *returned_vector(gradient, batch), norms[0]

    def square(self, batch: Batch) -> tuple[Any, ...]:
        """The loss, the gradients, and the sums of the squares of each sample's gradient."""
        loss, sums = self._sum(batch, self._call("squares", batch.samples), self.no_columns)
        gradient, squares = np.split(sums, 2)
        return loss, *returned_vector(gradient, batch), *returned_vector(squares, batch)

    def norms(self, batch: Batch) -> tuple[Array, Array]:
        """The loss and the norm of the gradient of each sample: (N,) and (N,)."""
        losses, norms = self._results(batch, "norms", 2)
        return losses, norms

    def layer_norms(self, batch: Batch) -> tuple[Array, Array]:
        """The same by the parameters of each layer: (N,) and (K + 1, N)."""
        results = self._results(batch, "layer norms", len(self.layer_sizes))
        return results[0], results[1:]

    def differentiate_samples(self, batch: Batch) -> tuple[Any, ...]:
        """The loss of each sample (N,), and its gradients: lists of (N, ...), or (N, P)."""
        arrays = sample_arrays(batch, self.dtype)
        batch.sample_gradients = parts_of_samples(arrays, batch)
        losses = self._results(batch, "sample gradients", 1)[0]
        return losses, *returned(arrays, batch)

    def _results(self, batch: Batch, what: str, rows: int) -> Array:
        """The results of a pass without sums: rows with one number for each sample."""
        results = empty((rows, batch.samples), self.dtype)
        self._run(batch, self._call(what, batch.samples), results, self.nothing)
        return results

    def _call(self, what: str, samples: int) -> Call:
        call = self.calls.get((what, samples))
        if call is None:
            if len(self.calls) >= KEPT_CALLS:
                del self.calls[next(iter(self.calls))]
            call = self.calls[what, samples] = Call(what, self.layer_sizes, self.dtype, samples)
        return call

    def _gradient(self, batch: Batch, call: Call) -> tuple[Any, ...]:
        dl_dinput = self.no_columns
        if batch.input_gradient:
            dl_dinput = empty((self.layer_sizes[0], batch.samples), self.dtype)
        loss, gradient = self._sum(batch, call, dl_dinput)
        result = (loss, *returned_vector(gradient, batch))
        return (*result, dl_dinput) if batch.input_gradient else result

    def _sum(self, batch: Batch, call: Call, columns_out: Array) -> tuple[float, Array]:
        """The loss, and the vector that a pass sums."""
        gradient = np.empty(call.plan.layout.sums, self.dtype)
        loss = self._run(batch, call, columns_out, gradient)
        return loss * batch.scale, gradient  # passes scale dl/df_K, not the loss

    def _run(self, batch: Batch, call: Call, columns_out: Array, gradient: Array) -> float:
        """Run a pass over the batch; the loss of its samples. columns_out and gradient are written."""
        plan, samples, vector = call.plan, batch.samples, self.nothing
        if samples == 0:
            gradient[:] = 0.0
            return 0.0
        if call.tile_loss is not batch.tile_loss or call.max_norm != batch.max_norm:
            call.set_loss(batch.tile_loss, batch.max_norm)
        if batch.vector is None:
            batch.convert(self.dtype)
        else:
            vector = np.ascontiguousarray(batch.vector, self.dtype)
        columns = [batch.net_input, batch.target, batch.sample_weight, columns_out]
        threads = count_threads(batch.num_threads, plan.most_threads)
        slices = plan.slices(threads, self._most_samples(batch, plan, columns)) if plan.chunks > 1 else plan.at_once
        if call.placed != (threads, slices[0][1], self.nbytes):
            self._place_buffers(call, threads, slices[0][1])
        for first_chunk, end_chunk in slices:
            first, last, arrays = 0, samples, columns
            if len(slices) > 1:
                first, last = plan.cut(first_chunk), plan.cut(end_chunk)
                arrays = [array[..., first:last] for array in columns]
            arrays = native(arrays, self.dtype)
            places = self.own_places
            if batch.vector is None:
                places, _lists = batch.locate(self.dtype, first, last)  # _lists keeps them in memory
            if batch.sample_gradients:
                places = np.concatenate([places, batch.places_of_samples(first)])
            bounds = first, first_chunk, end_chunk, first_chunk == 0, end_chunk == plan.chunks
            boxes, patience = NO_HELPERS, 0
            if threads > 1:
                boxes, patience = helpers(threads), pauses(plan.flops * (last - first))
            # When this returns, no worker touches the arrays any longer.
            call.run_call(call.words, *arrays, gradient, vector, places, bounds, batch.scale, boxes, patience)
            if batch.progress is not None:
                batch.progress(last, samples)
        return call.loss_sum

    def _most_samples(self, batch: Batch, plan: Plan, columns: list[Array]) -> int | None:
        """The most samples of a slice if arrays are converted first, or lists of arrays are read or written."""
        lists = batch.columns
        converted = [array for array in (*columns[:2], *lists) if array.dtype is not self.dtype]
        given = sum(map(len, lists)) + (plan.layout.parameters if batch.sample_gradients else 0)
        if not given and not converted:
            return None
        staged = STAGED_BYTES // max(sum(map(len, converted)) * self.dtype.itemsize, 1)
        return min(staged, GIVEN_BYTES // max(given * self.dtype.itemsize, 1))

    def _place_buffers(self, call: Call, threads: int, chunks: int) -> None:
        """Make buffers large enough for slices of that number of chunks, and write their addresses to the record."""
        plan, layout = call.plan, call.plan.layout
        tiles, partials, samples = threads, chunks, threads * plan.tile_samples
        if plan.scheme == "shared":
            tiles, partials, samples = -(-plan.longest // plan.tile_samples), threads, plan.longest
        sizes = {
            "tiles": tiles * layout.tile_bytes,
            "partials": partials * layout.partial_bytes * (plan.scheme != "results"),
            "totals": 2 * self.dtype.itemsize * layout.sums * (chunks < plan.chunks),
            "chunk_losses": 8 * chunks,
            "sample_losses": 8 * samples,
        }
        self.nbytes = -1  # after an interrupt in this loop, every call places its buffers again
        for name, size in sizes.items():
            if name not in self.buffers or self.buffers[name].nbytes < size:
                self.buffers[name] = self._allocate(name, -(-size // 8))
        self.nbytes = sum(int(buffer.nbytes) for buffer in self.buffers.values())
        call.set(**{name: buffer.ctypes.data for name, buffer in self.buffers.items()})
        call.placed = threads, chunks, self.nbytes

    def _allocate(self, _name: str, words: int) -> Array:
        """A new buffer of words of eight bytes."""
        return aligned(words, FLOAT64)


def pauses(flops: int) -> int:
    """Pauses that a call with this number of floating-point operations waits for workers that were asleep."""
    return flops * PAUSES_PER_MEGAFLOP >> 20
