"""The engine: the buffers of one network, how a batch is cut, and the sweeps that run on them."""

import functools
import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from fastbackprop.kernels import CACHE_LINE, PANEL, PREDICT
from fastbackprop.parameters import layout_table, padded, parameter_count, split
from fastbackprop.threads import run
from fastbackprop.validation import FLOATS, Array, Batch, DType, check_dtype

# All of these are constants: how a batch is cut must depend on shapes alone, or the bits of the result would depend on
# the machine.
TILE_BYTES = 256 * 1024  # a tile's rows, half of a 512 KB L2
MOST_TILE_SAMPLES = 512
ACCUMULATOR_BYTES = 64 * 1024 * 1024
MOST_CHUNKS = 64
CHUNK_FLOPS = 2**22  # at least: about 0.1 ms of work, several times what it costs to wake a thread
SLICE_FLOPS = 2**31  # at most: some 50 ms, so that Ctrl-C is answered
SLICE_SAMPLES = 65536
PASS_BYTES = 128 * 1024
STAGING_BYTES = 2 * 1024 * 1024

KEPT = 8  # engines for the functions that are given no workspace
KEPT_BYTES = 256 * 1024 * 1024


class Engine:
    """Buffers for networks of one shape and dtype, allocated at first use; one call at a time may run on them."""

    def __init__(self, layer_sizes: tuple[int, ...], dtype: DType) -> None:
        self.layer_sizes = layer_sizes
        self.dtype = dtype
        self.layout = layout_table(self.layer_sizes)
        # The rows of a sweep's tile: h_0 ... h_K, output, target, ones.
        self.tile_rows = sum(self.layer_sizes) + self.layer_sizes[-1] + 1
        fitting = TILE_BYTES // (self.tile_rows * self.dtype.itemsize) // PANEL * PANEL
        self.tile_samples = min(max(fitting, PANEL), MOST_TILE_SAMPLES)
        self.flops = 6 * int(np.sum(self.layout[:, 0] * self.layout[:, 1]))  # for each sample
        self.least_chunk = round_up(-(-CHUNK_FLOPS // self.flops), self.tile_samples)
        # What the notebooks' passes hand to a kernel at once, layer by layer: it should still be in L2 for the next.
        fitting = PASS_BYTES // (max(self.layer_sizes) * self.dtype.itemsize)
        self.pass_samples = max(fitting // self.tile_samples, 1) * self.tile_samples
        self.weights_offsets = self.layout[:, 2].tolist()
        self._parameters = np.empty(parameter_count(self.layer_sizes), self.dtype)
        self._accumulator_size = self._parameters.size + self.tile_samples
        self._accumulators = np.empty((0, self._accumulator_size))
        self._tiles: dict[int, Array] = {}
        self._tile_size = (
            self.tile_rows * (self.tile_samples + CACHE_LINE // self.dtype.itemsize)
            + self.tile_samples * (round_up(max(self.layer_sizes[:-1]), 32) + 16)
            + sum(units_out * padded(units_in) for units_in, units_out in itertools.pairwise(self.layer_sizes))
        )

    @property
    def nbytes(self) -> int:
        """The bytes that the buffers hold at present."""
        tiles = len(self._tiles) * self._tile_size * self.dtype.itemsize
        return self._parameters.nbytes + self._accumulators.nbytes + tiles

    def predict(self, batch: Batch) -> Array:
        """The network's output (D_o, N)."""
        net_output = np.empty((self.layer_sizes[-1], batch.samples), self.dtype)
        batch.mode, batch.target = PREDICT, net_output  # the target is not looked at
        self._sweep_all(batch, net_output)
        return net_output

    def differentiate(self, batch: Batch) -> tuple[Any, ...]:
        """The loss, the gradients as lists, and dl/dinput where asked."""
        dl_dinput = np.empty((self.layer_sizes[0], batch.samples if batch.input_gradient else 0), self.dtype)
        chunks = self._sweep_all(batch, dl_dinput)
        loss, gradient = self.collect(chunks)
        gradients = split(gradient, batch.weights, batch.biases)
        if batch.out is not None:
            for targets, arrays in zip(batch.out, gradients, strict=True):
                for target, array in zip(targets, arrays, strict=True):
                    np.copyto(target, array)
        result = (loss * batch.scale, *(gradients if batch.out is None else batch.out))
        return (*result, dl_dinput) if batch.input_gradient else result

    def _sweep_all(self, batch: Batch, columns_out: Array) -> int:
        """Sweep over all samples; returns the number of chunks."""
        parameters = [array.ravel() for pair in zip(batch.weights, batch.biases, strict=True) for array in pair]
        np.concatenate(parameters, out=self._parameters, casting="unsafe")
        sweep, dtype, samples = self._sweep, self.dtype, batch.samples
        mode, factor, scale = batch.mode, batch.factor, batch.scale
        arrays = [columns_out, batch.net_input, batch.target]
        chunks = self.chunks(samples)
        accumulators = self.accumulators(len(chunks))

        def work(lane: int, chunk: int, first: int, last: int) -> None:
            sums = accumulators[chunk]
            if first == chunks[chunk][0]:
                sums.fill(0.0)
            sliced, weights = arrays, batch.sample_weight
            if last - first < samples:
                sliced, weights = [array[:, first:last] for array in arrays], weights[first:last]
            *columns, weights = native([*sliced, weights], dtype)
            tile = self.tile(lane)
            sweep(sums, *columns, weights, self._parameters, self.layout, tile, self.tile_samples, mode, factor, scale)

        staged = any(array.dtype != dtype for array in arrays)
        run(work, chunks, self.slice_samples(staged), batch.num_threads, batch.progress)
        return len(chunks)

    @functools.cached_property
    def _sweep(self) -> Any:
        from fastbackprop.kernels.sweep import sweep  # imports numba

        return sweep(self.dtype)

    # Buffers and the cutting of batches; also used by the notebooks' passes.

    def tile(self, lane: int) -> Array:
        """The tile of one lane, at a cache line."""
        if lane not in self._tiles:
            itemsize = self.dtype.itemsize
            buffer = np.empty(self._tile_size + CACHE_LINE // itemsize, self.dtype)
            start = -buffer.ctypes.data % CACHE_LINE // itemsize
            self._tiles[lane] = buffer[start : start + self._tile_size]
        return self._tiles[lane]

    def chunks(self, samples: int) -> list[tuple[int, int]]:
        """The ranges (first, last) of samples whose sums are taken apart: cut by shape alone."""
        if 0 < samples <= self.least_chunk:
            return [(0, samples)]
        most = max(1, min(MOST_CHUNKS, ACCUMULATOR_BYTES // (8 * self._accumulator_size)))
        length = max(self.least_chunk, round_up(-(-samples // most), self.tile_samples))
        return [(first, min(first + length, samples)) for first in range(0, samples, length)]

    def accumulators(self, chunks: int) -> Array:
        """One row of float64 for each chunk: a gradient in pack order, then tile_samples partial sums of the loss."""
        if chunks > len(self._accumulators):
            self._accumulators = np.empty((chunks, self._accumulator_size))
        return self._accumulators

    def collect(self, chunks: int) -> tuple[float, Array]:
        """The loss and the gradient, in pack order, summed over that many chunks: always in the same order."""
        size = self._parameters.size
        used = self._accumulators[:chunks]
        gradient = used[0, :size] if chunks == 1 else np.add.reduce(used[:, :size], axis=0)
        return float(np.add.reduce(used[:, size:], axis=None)), gradient.astype(self.dtype)

    def slice_samples(self, staged: bool) -> int:
        """How many samples are handed to a kernel at once; fewer where they are converted first."""
        most = min(SLICE_SAMPLES, SLICE_FLOPS // self.flops)
        if staged:
            row = (self.layer_sizes[0] + self.layer_sizes[-1]) * self.dtype.itemsize
            most = min(most, STAGING_BYTES // row)
        return max(most // self.tile_samples, 1) * self.tile_samples


def round_up(number: int, multiple: int) -> int:
    """The least multiple that is not below a number."""
    return -(-number // multiple) * multiple


def native(arrays: Iterable[Array], dtype: DType) -> list[Array]:
    """The arrays themselves where they have the dtype, else converted."""
    return [array if array.dtype is dtype else array.astype(dtype, copy=False) for array in arrays]


def borrow(layer_sizes: tuple[int, ...], dtype: DType) -> Engine:
    """An engine that no other call is using; give it back."""
    return _free.pop((layer_sizes, dtype), None) or Engine(layer_sizes, dtype)


def give_back(engine: Engine) -> None:
    """Keep an engine for later calls, unless too much is kept already."""
    size = engine.nbytes
    if len(_free) >= KEPT or sum([kept.nbytes for kept in list(_free.values())], size) > KEPT_BYTES:
        _free.clear()
    if size <= KEPT_BYTES:
        _free[engine.layer_sizes, engine.dtype] = engine


_free: dict[tuple[tuple[int, ...], DType], Engine] = {}


def warmup(dtype: DTypeLike | None = None) -> None:
    """Compile all kernels now, or load them from numba's cache, instead of at their first use.

    Parameters
    ----------
    dtype : {numpy.float32, numpy.float64}, optional
        The default is both.

    Raises
    ------
    TypeError
        ``dtype is float16; expected float32 or float64``

    Examples
    --------
    >>> import fastbackprop
    >>> fastbackprop.warmup()
    """
    wanted = FLOATS if dtype is None else (check_dtype(dtype),)
    from fastbackprop.kernels import passes, sweep  # imports numba

    for known in wanted:
        for kernel in sweep.sweep, passes.forward_pass, passes.backward_pass:
            kernel(known)
