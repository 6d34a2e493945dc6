"""Workspace: the buffers of one network, and the calls that run on them."""

import functools
import itertools
import os
import threading
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from fastbackprop import losses
from fastbackprop.kernels import PREDICT, SEED, SQUARED_ERROR
from fastbackprop.parameters import layout_table, padded, parameter_count
from fastbackprop.threads import Progress, check_num_threads, run
from fastbackprop.validation import (
    FLOAT32,
    FLOAT64,
    NO_WEIGHT,
    Array,
    Batch,
    DType,
    Gradients,
    Loss,
    check_dtype,
    check_layer_sizes,
    check_out,
    check_weighting,
)

# All of these are constants: how a batch is cut must depend on shapes alone, or the bits of the result would depend on
# the machine.
TILE_BYTES = 256 * 1024  # a tile's rows, half of a 512 KB L2
PANEL = 64  # samples: rows of a tile hold a multiple of it, which every register tile divides
MOST_TILE_SAMPLES = 512
ACCUMULATOR_BYTES = 64 * 1024 * 1024
MOST_CHUNKS = 64
CHUNK_FLOPS = 2**22  # at least: about 0.1 ms of work, several times what it costs to wake a thread
SLICE_FLOPS = 2**31  # at most: some 50 ms, so that Ctrl-C is answered
SLICE_SAMPLES = 65536
PASS_BYTES = 128 * 1024
STAGING_BYTES = 2 * 1024 * 1024
CACHE_LINE = 64

KEPT = 8  # workspaces for the functions that take none
KEPT_BYTES = 256 * 1024 * 1024


class Workspace:
    """Preallocated buffers for networks of one shape and dtype; what calls need is allocated once.

    Parameters
    ----------
    layer_sizes : sequence of int
        D_i, D_1, ..., D_K, D_o: the units of each layer, at least two numbers from 1 up.
    dtype : {numpy.float64, numpy.float32}
        What is computed in. Integer inputs are converted to it; wider floating inputs are refused.
    num_threads : int, optional
        The threads a call may use; the default is FASTBACKPROP_NUM_THREADS, or the processors this process may run on.

    Raises
    ------
    ValueError
        ``layer_sizes is (3,); expected at least two whole numbers from 1 up``
    TypeError
        ``dtype is float16; expected float32 or float64``

    Notes
    -----
    A Workspace may be shared by threads: calls on it take turns. Its results do not depend on num_threads, on what
    was computed before, or on where its buffers lie: the same inputs give the same bits.

    Memory: one tile for each thread, ``sum(layer_sizes)`` rows of 64 to 512 samples (256 KB, more where 64 samples
    of a wide or deep network need more), and at most 64 MB, or one gradient in float64 if that is larger, for sums of
    gradients. None of it grows with the number of samples.

    Examples
    --------
    >>> import numpy as np
    >>> from fastbackprop import Workspace
    >>> weights, biases = [np.array([[2.0], [1.0]]), np.array([[1.0, -1.0]])], [np.zeros((2, 1)), np.zeros((1, 1))]
    >>> workspace = Workspace((1, 2, 1))
    >>> loss, all_dl_dweights, all_dl_dbiases = workspace.loss_and_gradients(np.ones((1, 3)), weights, biases, 0.0)
    >>> loss, all_dl_dweights[1]
    (3.0, array([[12.,  6.]]))
    """

    def __init__(
        self, layer_sizes: Iterable[int], dtype: DTypeLike = np.float64, *, num_threads: int | None = None
    ) -> None:
        self.layer_sizes = check_layer_sizes(layer_sizes)
        self.dtype = check_dtype(dtype)
        self.num_threads = check_num_threads(num_threads)
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
        self.nbytes = self._parameters.nbytes  # held by the buffers at present
        self._lock = threading.Lock()
        _all_workspaces.add(self)

    def loss_and_gradients(
        self,
        net_input: ArrayLike,
        all_weights: Sequence[ArrayLike],
        all_biases: Sequence[ArrayLike],
        y: Any,
        *,
        loss: Loss = "least_squares",
        reduction: str = "sum",
        sample_weight: ArrayLike | None = None,
        input_gradient: bool = False,
        out: Gradients | None = None,
        progress: Progress | None = None,
    ) -> tuple[Any, ...]:
        """As :func:`fastbackprop.loss_and_gradients`, on these buffers and in this dtype."""
        batch = Batch(net_input, all_weights, all_biases, self.layer_sizes)
        batch.set_target(y, loss)
        self._check_width(batch)
        with self._lock:
            return self.run_loss_and_gradients(
                batch, loss, reduction, sample_weight, input_gradient, out, self.num_threads, progress
            )

    def vjp(
        self,
        net_input: ArrayLike,
        all_weights: Sequence[ArrayLike],
        all_biases: Sequence[ArrayLike],
        dl_doutput: ArrayLike,
        *,
        input_gradient: bool = False,
        out: Gradients | None = None,
        progress: Progress | None = None,
    ) -> tuple[Any, ...]:
        """As :func:`fastbackprop.vjp`, on these buffers and in this dtype."""
        batch = Batch(net_input, all_weights, all_biases, self.layer_sizes)
        batch.set_seed(dl_doutput)
        batch.widen(batch.target)
        self._check_width(batch)
        with self._lock:
            return self.run_vjp(batch, input_gradient, out, self.num_threads, progress)

    def predict(
        self,
        net_input: ArrayLike,
        all_weights: Sequence[ArrayLike],
        all_biases: Sequence[ArrayLike],
        *,
        progress: Progress | None = None,
    ) -> Array:
        """As :func:`fastbackprop.predict`, on these buffers and in this dtype."""
        batch = Batch(net_input, all_weights, all_biases, self.layer_sizes)
        self._check_width(batch)
        with self._lock:
            return self.run_predict(batch, self.num_threads, progress)

    def _check_width(self, batch: Batch) -> None:
        if batch.dtype is FLOAT64 and self.dtype is FLOAT32:
            lists = {"all_weights": batch.weights, "all_biases": batch.biases}
            found = {"net_input": batch.net_input, "the target": getattr(batch, "target", None)}
            found |= {f"{name}[{k}]": array for name, arrays in lists.items() for k, array in enumerate(arrays)}
            for label, array in found.items():
                dtype = getattr(array, "dtype", FLOAT32)
                if dtype.kind == "f" and dtype.itemsize > FLOAT32.itemsize:
                    raise TypeError(
                        f"{label} has dtype {dtype}; expected float32, the dtype of this Workspace: "
                        "pass .astype(np.float32), or make a Workspace of dtype float64"
                    )

    # The calls themselves: arguments are checked, and the workspace is the caller's alone.

    def run_loss_and_gradients(
        self,
        batch: Batch,
        loss: Loss,
        reduction: str,
        sample_weight: ArrayLike | None,
        input_gradient: bool,
        out: Gradients | None,
        num_threads: int | None,
        progress: Progress | None,
    ) -> tuple[Any, ...]:
        """As loss_and_gradients."""
        scale, weight = check_weighting(reduction, sample_weight, batch.samples)
        check_out(out, batch.weights, batch.biases, self.dtype)
        if isinstance(loss, str):
            factor = losses.LOSSES[loss]
            total, *gradients = self._differentiate(
                batch, SQUARED_ERROR, factor, scale, weight, input_gradient, out, num_threads, progress
            )
            return total * scale, *gradients
        if reduction != "sum" or sample_weight is not None:
            raise ValueError(
                "reduction or sample_weight is given with callables for loss; expected a name: "
                "callables see the whole batch and do both themselves"
            )
        value, derivative = loss
        y, net_output = batch.target, self.run_predict(batch, num_threads, None)
        total = float(value(net_output, y))
        batch.set_seed(derivative(net_output, y), "what the derivative of loss returned")
        return total, *self.run_vjp(batch, input_gradient, out, num_threads, progress)

    def run_vjp(
        self,
        batch: Batch,
        input_gradient: bool,
        out: Gradients | None,
        num_threads: int | None,
        progress: Progress | None,
    ) -> tuple[Any, ...]:
        """As vjp."""
        check_out(out, batch.weights, batch.biases, self.dtype)
        _, *gradients = self._differentiate(
            batch, SEED, 1.0, 1.0, NO_WEIGHT, input_gradient, out, num_threads, progress
        )
        return tuple(gradients)

    def run_predict(self, batch: Batch, num_threads: int | None, progress: Progress | None) -> Array:
        """As predict."""
        net_output = np.empty((self.layer_sizes[-1], batch.samples), self.dtype)
        self._run(batch, net_output, net_output, PREDICT, 1.0, 1.0, NO_WEIGHT, num_threads, progress)
        return net_output

    def _differentiate(
        self,
        batch: Batch,
        mode: int,
        factor: float,
        scale: float,
        weight: Array,
        input_gradient: bool,
        out: Gradients | None,
        num_threads: int | None,
        progress: Progress | None,
    ) -> tuple[Any, ...]:
        """The sum of the loss, the gradients as lists, and dl/dinput where asked."""
        dl_dinput = np.empty((self.layer_sizes[0], batch.samples if input_gradient else 0), self.dtype)
        chunks = self._run(batch, dl_dinput, batch.target, mode, factor, scale, weight, num_threads, progress)
        loss, gradient = self.collect(chunks)
        gradients = split(gradient, batch.weights, batch.biases)
        if out is not None:
            for targets, arrays in zip(out, gradients, strict=True):
                for target, array in zip(targets, arrays, strict=True):
                    np.copyto(target, array)
        result = (loss, *(gradients if out is None else out))
        return (*result, dl_dinput) if input_gradient else result

    def _run(
        self,
        batch: Batch,
        columns_out: Array,
        target: Array,
        mode: int,
        factor: float,
        scale: float,
        weight: Array,
        num_threads: int | None,
        progress: Progress | None,
    ) -> int:
        """Sweep over all samples; returns the number of chunks."""
        parameters = [array.ravel() for pair in zip(batch.weights, batch.biases, strict=True) for array in pair]
        np.concatenate(parameters, out=self._parameters, casting="unsafe")
        sweep, dtype, samples = self._sweep, self.dtype, batch.samples
        arrays = [columns_out, batch.net_input, target]
        chunks = self.chunks(samples)
        accumulators = self.accumulators(len(chunks))

        def work(lane: int, chunk: int, first: int, last: int) -> None:
            sums = accumulators[chunk]
            if first == chunks[chunk][0]:
                sums.fill(0.0)
            sliced, weights = arrays, weight
            if last - first < samples:
                sliced, weights = [array[:, first:last] for array in arrays], weight[first:last]
            *columns, weights = native([*sliced, weights], dtype)
            tile = self.tile(lane)
            sweep(sums, *columns, weights, self._parameters, self.layout, tile, self.tile_samples, mode, factor, scale)

        staged = any(array.dtype != dtype for array in arrays)
        run(work, chunks, self.slice_samples(staged), num_threads, progress)
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
            size = self.tile_rows * (self.tile_samples + CACHE_LINE // itemsize)
            size += self.tile_samples * (round_up(max(self.layer_sizes[:-1]), 32) + 16)
            size += sum(units_out * padded(units_in) for units_in, units_out in itertools.pairwise(self.layer_sizes))
            buffer = np.empty(size + CACHE_LINE // itemsize, self.dtype)
            start = -buffer.ctypes.data % CACHE_LINE // itemsize
            self._tiles[lane] = buffer[start : start + size]
            self.nbytes += buffer.nbytes
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
            self.nbytes -= self._accumulators.nbytes
            self._accumulators = np.empty((chunks, self._accumulator_size))
            self.nbytes += self._accumulators.nbytes
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


def split(vector: Array, weights: list[Array], biases: list[Array]) -> tuple[list[Array], list[Array]]:
    """Views of a vector in pack order, with the shapes of the parameters: two lists."""
    dtype, itemsize, offset = vector.dtype, vector.itemsize, 0
    parts: tuple[list[Array], list[Array]] = [], []
    for pair in zip(weights, biases, strict=True):
        for part, array in zip(parts, pair, strict=True):
            # Half the time of slicing and reshaping, of which a small network's call consists to a good part.
            part.append(np.ndarray(array.shape, dtype, vector, offset))
            offset += array.size * itemsize
    return parts


def borrow(layer_sizes: tuple[int, ...], dtype: DType) -> Workspace:
    """A workspace that no other call is using; give it back."""
    return _free.pop((layer_sizes, dtype), None) or Workspace(layer_sizes, dtype)


def give_back(workspace: Workspace) -> None:
    """Keep a workspace for later calls, unless too much is kept already."""
    held = sum([kept.nbytes for kept in list(_free.values())], workspace.nbytes)
    if len(_free) >= KEPT or held > KEPT_BYTES:
        _free.clear()
    _free[workspace.layer_sizes, workspace.dtype] = workspace


_free: dict[tuple[tuple[int, ...], DType], Workspace] = {}
_all_workspaces: weakref.WeakSet[Workspace] = weakref.WeakSet()


def _unlock_all() -> None:
    # In a forked child, the threads that held these locks do not exist.
    for workspace in _all_workspaces:
        workspace._lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlock_all)
