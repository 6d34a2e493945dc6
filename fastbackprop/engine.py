"""The engine: the buffers of one network, how a batch is cut, and what a call returns."""

import functools
import itertools
import operator
from typing import Any

import numpy as np

from fastbackprop.arguments import Batch
from fastbackprop.kernels import (
    ALONG_UNITS,
    CACHE_LINE,
    FEW,
    FLUSH_TILES,
    LOSS_ROWS,
    PANEL,
    PARTIAL_AT,
    PREDICT,
    SQUARED_ERROR,
    STRIP,
    TRANSPOSED_AT,
    UNITS_IN,
    UNITS_OUT,
)
from fastbackprop.lists import native
from fastbackprop.parameters import layout_table, padded, round_up, split
from fastbackprop.results import empty
from fastbackprop.sweeps import Sweep
from fastbackprop.validation import Array, DType, parameter_count

# All of these are constants: how a batch is cut must depend on shapes alone, or the bits of the result would depend on
# the machine.
TILE_BYTES = 256 * 1024  # a tile's rows, half of a 512 KB L2
# Weights and gradients are gone through once for every tile: with 64 samples at least, 64-128x4-10 and 784-100x3-10
# took 2 to 7 % longer. But weights that fill an L2 drive a tile out of it unless it is small: with 64 samples there,
# 784-256x3-10 and 784-500-10 took 2 to 6 % less in float64, 2000-100-10 and 3072-100-10 8 to 18; in float32,
# 3072-100-10 2 to 12 less, the others as long; 10000-50-10 from 15 less to 11 more. Two threads took 4 to 10 % longer
# for 200 samples, whose tiles they share (Zen 4).
LEAST_TILE_SAMPLES, MOST_TILE_SAMPLES = 128, 512
LARGE_WEIGHTS_BYTES, LEAST_BESIDE_LARGE_WEIGHTS = 1024 * 1024, 64
ACCUMULATOR_BYTES = 64 * 1024 * 1024
# At least, of a chunk: 15 to 35 us. With 2**23, batches of 5,000 samples of 1-6x5-1 and 2,000 of 8-16x3-1 were not
# shared by two threads, and took a fifth longer.
CHUNK_FLOPS = 2**21
# Samples, at least, in each of so many chunks. Lanes that share a chunk read from each other's caches. Where these are
# far apart (Zen 4, processors that share no L3), two took 1.1 to 2.4 times as long with one chunk of 100 to 1,000
# samples, else 0.9 to 1.15 times. But each chunk costs the time of clearing, writing and adding a gradient: 1 to 5 % of
# the time of 64 samples. With 4 chunks of 64, two threads took 3 to 12 % longer than with 2 of 128 (16-64x4-4,
# 784-100x3-10), with 8 of 140 up to 10 % longer than with 4. More than FEW_CHUNKS have sums in float64, which should
# take a few per cent of their time.
CHUNK_SAMPLES = {2: 48, 4: 128, 8: 256, 16: 1024, 32: 1024, 64: 1024}
FEW_CHUNKS = 8
# A sample, at least, for so many bytes of a chunk's gradient, up to what is enough for any. Where two gradients leave
# the caches, 112 samples of 784-256x3-10, and 150 of 784-500-10 and 3072-100-10, took two threads 6 to 27 % longer with
# two chunks than with one that they share, if their caches are near.
SAMPLE_GRADIENT_BYTES, ENOUGH_CHUNK_SAMPLES = 8192, 128


class Engine:
    """Buffers for networks of one shape and dtype, allocated at first use; one call at a time may run on them."""

    call_flops = 2**31
    """At most, of a call that the threads share which answer at its beginning; longer ones are given to a job."""

    def __init__(self, layer_sizes: tuple[int, ...], dtype: DType) -> None:
        self.layer_sizes = layer_sizes
        self.dtype = dtype
        self.layout = layout_table(layer_sizes)
        self.size = parameter_count(layer_sizes)
        # The rows of a sweep's tile: h_0 ... h_K, output, target, those of the loss, ones.
        self.tile_rows = sum(self.layer_sizes) + self.layer_sizes[-1] + LOSS_ROWS + 1
        fitting = TILE_BYTES // (self.tile_rows * self.dtype.itemsize) // PANEL * PANEL
        weights = self.layout[:, UNITS_IN] * self.layout[:, UNITS_OUT]  # of each layer
        large = int(np.max(weights)) * self.dtype.itemsize > LARGE_WEIGHTS_BYTES
        least = LEAST_BESIDE_LARGE_WEIGHTS if large else LEAST_TILE_SAMPLES
        self.tile_samples = min(max(fitting, least), MOST_TILE_SAMPLES)
        self.flops = 6 * int(np.sum(weights))  # for each sample
        # Of a chunk, up to so many samples need no sums in float64.
        self.direct_samples = FLUSH_TILES * self.tile_samples
        self._place_in_tile()
        self._accumulator_size = self.size + self.tile_samples
        self._accumulators = np.empty((0, self._accumulator_size))
        self._more_gradients = np.empty((0, self.size), dtype)
        self._few_losses = np.zeros(FEW)
        self.no_vector, self.no_rows = np.empty(0, dtype), np.empty((0, 0), dtype)
        self._no_places = np.zeros((2 * len(self.layout), 3), np.int64)
        self._no_columns = np.empty((self.layer_sizes[0], 0), dtype)

    def _place_in_tile(self) -> None:
        """Say where a sweep finds what is behind the rows of a tile: transposed activations, padded gradients."""
        units = self.layer_sizes[:-1]
        behind = (self.tile_rows + sum(units)) * (self.tile_samples + CACHE_LINE // self.dtype.itemsize)
        lengths = [self.tile_samples * (round_up(units_in, 32) + 16) * (units_in >= ALONG_UNITS) for units_in in units]
        *self.layout[:, TRANSPOSED_AT], partial = itertools.accumulate(lengths, initial=behind)
        self.layout[:, PARTIAL_AT] += partial
        self._tile_size = round_up(
            int(self.layout[-1, PARTIAL_AT]) + self.layer_sizes[-1] * padded(units[-1]), CACHE_LINE
        )
        self._tiles = np.empty((0, self._tile_size), self.dtype)

    @property
    def tile_bytes(self) -> int:
        """The bytes of the workspace that a lane has."""
        return self._tile_size * self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """The bytes that the buffers hold at present."""
        return int(self._accumulators.nbytes + self._more_gradients.nbytes + self._tiles.nbytes)

    def predict(self, batch: Batch) -> Array:
        """The network's output (D_o, N)."""
        net_output = empty((self.layer_sizes[-1], batch.samples), self.dtype)
        batch.mode, batch.target = PREDICT, net_output  # the target is not looked at
        if 0 < batch.samples <= FEW:
            self._take_few(batch, self.no_vector, net_output)
            return net_output
        chunks = self.chunks(batch.samples, sums=False)
        losses = np.empty((len(chunks), self.tile_samples))
        Sweep(self, batch, net_output, chunks, losses, self.load(batch)).run()
        return net_output

    def differentiate(self, batch: Batch) -> tuple[Any, ...]:
        """The loss, the gradients as lists, and dl/dinput where asked."""
        dl_dinput = self._no_columns
        if batch.input_gradient:
            dl_dinput = empty((self.layer_sizes[0], batch.samples), self.dtype)
        if 0 < batch.samples <= FEW:
            gradient = np.empty(self.size, self.dtype)
            loss = self._take_few(batch, gradient, dl_dinput)
        else:
            loss, gradient = self._gradient(batch, dl_dinput)
        result = (loss * batch.scale, *returned(gradient, batch))
        return (*result, dl_dinput) if batch.input_gradient else result

    def _take_few(self, batch: Batch, gradient: Array, columns_out: Array) -> float:
        """The loss of a few samples; the gradient or the output are written, and dl/dinput where it has columns."""
        columns = native([columns_out, batch.net_input, batch.target, batch.sample_weight], self.dtype)
        losses = self._few_losses
        parameters, layout = self.load(batch)
        places, _arrays = batch.locate(self.dtype, 0, batch.samples)  # which live as long as their addresses
        options = batch.mode, batch.factor, batch.scale, self.loss_address(batch.mode)
        self._few(gradient, losses, *columns, parameters, places, layout, self._few_tile, *options)
        if batch.progress is not None:
            batch.progress(batch.samples, batch.samples)
        return losses.item(0)

    def _gradient(self, batch: Batch, dl_dinput: Array) -> tuple[float, Array]:
        """The sum of the loss and the gradient in pack order; dl_dinput is written where it has columns."""
        chunks = self.chunks(batch.samples)
        number, accumulators = len(chunks), self.accumulators(len(chunks))
        loaded = self.load_both_ways(batch)
        if self.stores(batch.samples, number):
            gradient = np.empty(self.size, self.dtype)
            Sweep(self, batch, dl_dinput, chunks, accumulators, loaded, gradient=gradient).run()
            # From Python 3.12 on, sum would round otherwise.
            return functools.reduce(operator.add, accumulators[:number, self.size].tolist()), gradient
        Sweep(self, batch, dl_dinput, chunks, accumulators, loaded).run()
        loss = float(np.add.reduce(accumulators[:number, self.size :], axis=None))
        return loss, self.total_gradient(number)

    def stores(self, samples: int, chunks: int) -> bool:
        """Whether a sweep writes the gradient in the element type: of few chunks that need no sums in float64."""
        return 0 < chunks <= FEW_CHUNKS and samples <= chunks * self.direct_samples

    def load(self, batch: Batch) -> tuple[Array, Array]:
        """A vector of parameters, or nothing of it, and the layout table. What has to be converted is, in the batch.

        Arrays are read where they are: copied into a vector, large ones would pass through a cache twice.
        """
        if batch.vector is None:
            batch.convert(self.dtype)
            return self.no_vector, self.layout
        batch.vector, batch.places = np.ascontiguousarray(batch.vector, self.dtype), self._no_places
        return batch.vector, self.layout

    def load_both_ways(self, batch: Batch) -> tuple[Array, Array]:
        """The same for a way forward and back."""
        return self.load(batch)

    @functools.cached_property
    def _few_tile(self) -> Array:
        tile: Array = self.tiles(1)[0]
        return tile

    @functools.cached_property
    def _few(self) -> Any:
        from fastbackprop.kernels.few import few  # imports numba

        return few(self.dtype)

    @functools.cached_property
    def sweep_kernel(self) -> Any:
        from fastbackprop.kernels.sweep import sweep  # imports numba

        entry, lane = sweep(self.dtype)
        return entry, lane.address

    def loss_address(self, mode: int) -> int:
        """The address of the compiled cross-entropies, where the mode is one of them: kernels know the others."""
        return 0 if mode <= SQUARED_ERROR else self._cross_entropy

    @functools.cached_property
    def _cross_entropy(self) -> int:
        from fastbackprop.kernels.losses import cross_entropy  # imports numba

        return int(cross_entropy(self.dtype).address)

    # Buffers and the cutting of batches.

    def tiles(self, lanes: int) -> Array:
        """A tile for each lane, in rows that start at a cache line."""
        if lanes > len(self._tiles):
            self.__dict__.pop("_few_tile", None)
            self._tiles = aligned(lanes * self._tile_size, self.dtype).reshape(lanes, self._tile_size)
        return self._tiles

    def chunks(self, samples: int, *, sums: bool = True) -> list[tuple[int, int]]:
        """The ranges (first, last) of samples that one thread goes through, summing them apart: cut by shape alone.

        Their number is a power of two, which most numbers of threads share evenly, and their lengths differ by a STRIP
        at most. On average, each has CHUNK_FLOPS and, with sums, CHUNK_SAMPLES and enough of them for its gradient; and
        there is room for all sums.
        """
        least, room = max(PANEL, CHUNK_FLOPS // self.flops), samples
        if sums:
            for_gradient = min(self.size * self.dtype.itemsize // SAMPLE_GRADIENT_BYTES, ENOUGH_CHUNK_SAMPLES)
            least = max(for_gradient, CHUNK_FLOPS // self.flops)
            # Each has sums in float64, and a gradient in the element type: its own, or of the lane that works on it.
            room = ACCUMULATOR_BYTES // ((8 + self.dtype.itemsize) * self.size)
        number = 1
        for more, with_sums in CHUNK_SAMPLES.items():
            if more > room or more * max(least, with_sums if sums else 0) > samples:
                break
            number = more
        if number == 1:
            return [(0, samples)] if samples else []
        strips = -(-samples // STRIP)
        # At multiples of a panel, 300 samples of 16-64x4-4 and 64-128x4-10, and 600 to 2,300 of 784-100x3-10 and
        # 784-100-10, took two threads 4 to 14 % longer, others as long.
        bounds = [STRIP * (strips * part // number) for part in range(number)]
        return list(itertools.pairwise([*bounds, samples]))

    def accumulators(self, chunks: int) -> Array:
        """One row of float64 for each chunk: a gradient in pack order, then tile_samples partial sums of the loss."""
        if chunks > len(self._accumulators):
            self._accumulators = np.empty((chunks, self._accumulator_size))
        return self._accumulators

    def more_gradients(self, number: int) -> Array:
        """One row for each of that many chunks' gradients, in the element type and in pack order."""
        if number > len(self._more_gradients):
            self._more_gradients = np.empty((number, self.size), self.dtype)
        return self._more_gradients[:number]

    def total_gradient(self, chunks: int) -> Array:
        """The gradient, in pack order, summed over that many chunks: always in the same order."""
        used = self._accumulators[:chunks, : self.size]
        total: Array = used[0] if chunks == 1 else np.add.reduce(used, axis=0)
        return total.astype(self.dtype)


def returned(gradient: Array, batch: Batch) -> tuple[Any, ...]:
    """A gradient in pack order as what the call returns: two lists or one vector, the caller's where they are given."""
    out: Any = batch.out
    if batch.vector is not None:
        if out is not None:
            np.copyto(out, gradient)
        return (gradient if out is None else out,)
    gradients = split(gradient, batch.shapes)
    if out is None:
        return gradients
    for targets, arrays in zip(out, gradients, strict=True):
        for target, array in zip(targets, arrays, strict=True):
            np.copyto(target, array)
    return tuple(out)


def aligned(size: int, dtype: DType) -> Array:
    """An uninitialised vector that starts at a cache line."""
    buffer = np.empty(size + CACHE_LINE // dtype.itemsize, dtype)
    start = -buffer.ctypes.data % CACHE_LINE // dtype.itemsize
    return buffer[start : start + size]
