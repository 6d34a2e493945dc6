"""The engine for networks of many parameters: threads share the tiles of a group, then blocks of the gradient."""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastbackprop.arguments import Batch
from fastbackprop.engine import Engine, aligned
from fastbackprop.kernels import BIASES_AT, CACHE_LINE, FLUSH_TILES, PARTIAL_AT, TRANSPOSED_WEIGHTS_AT, WEIGHTS_AT
from fastbackprop.parameters import layout_table, padded, round_up
from fastbackprop.results import empty
from fastbackprop.sweeps import Sweep, pauses
from fastbackprop.threads import helpers, lanes, run
from fastbackprop.validation import Array, DType

TILE_SAMPLES = 128
GROUP_BYTES = 128 * 1024 * 1024  # tiles that are held at once, two at least
# And at most. A task reads a part of all tiles of a group, and the block of the gradient it adds to: with few tiles,
# that is moved too often. 784-1024-1024-1024-10 took 230, 214, 207, 205 and 210 ms with 1, 2, 4, 8 and 16 of them
# (float32, one thread); at width 256 there was no difference.
GROUP_TILES = 8
# Groups are about as large as each other, and a multiple of so many tiles but for the last, so that two threads have as
# many each: 1,000, 1,280 and 2,048 samples of 784-1024x3-10 in float64 took them 6 to 11 % less time than with 7 tiles.
EVEN_TILES = 2
# The backward pass takes weights as they come, rather than a transposed copy, for so few tiles: 50 layers of 200 units
# took 5 (float64) to 8 % less time with 256 samples, three of 1024 units as long as before.
TILES_AS_THEY_COME = 2
TASK_ROWS = 256  # of the gradient of one layer: with so many columns, what a task sums stays in half of a 512 KB L2
TASK_COLUMN_BYTES = 1024
TASK_FLOPS = 2**33  # of tasks that are handed to a kernel at once: Ctrl-C is answered in between
PANEL_BYTES = 256  # the widest panel of a register tile: narrower ones are for what is left at the end


class WideEngine(Engine):
    """An engine that keeps one copy of the gradient, however many threads there are.

    A group of tiles goes forward and backward, each tile on one thread; then the gradient of each layer is summed
    over the tiles of the group, a block of it on one thread. Every sum has one owner and a fixed order.
    """

    call_flops = 2**35  # of a group of tiles; what is waited for is small against it

    def __init__(self, layer_sizes: tuple[int, ...], dtype: DType) -> None:
        super().__init__(layer_sizes, dtype)
        self.layout = layout_table(layer_sizes)  # its padded gradients are not in a tile
        self.tile_samples = TILE_SAMPLES
        self._accumulator_size = self.size + TILE_SAMPLES
        self._accumulators = np.empty((0, self._accumulator_size))
        self.tile_rows += sum(layer_sizes[:-1])
        self._tile_size = self.tile_rows * (TILE_SAMPLES + CACHE_LINE // dtype.itemsize)
        self._tiles = np.empty((0, self._tile_size), dtype)
        fitting = GROUP_BYTES // self.tile_bytes // EVEN_TILES * EVEN_TILES
        self.group_tiles = min(max(EVEN_TILES, fitting), GROUP_TILES)
        table = self.layout.tolist()
        lengths = [units_in * padded(units_out) for units_in, units_out in itertools.pairwise(layer_sizes)]
        self._offsets = list(itertools.accumulate(lengths, initial=CACHE_LINE))  # of transposed weights: none is at 0
        self._partial_size = table[-1][PARTIAL_AT] + layer_sizes[-1] * padded(layer_sizes[-2])
        self.task_columns = TASK_COLUMN_BYTES // dtype.itemsize
        tasks = [
            (k, *rows, *columns)
            for k, (units_in, units_out, *_) in enumerate(table)
            for rows in parts(units_out, TASK_ROWS, 1)
            for columns in parts(units_in, self.task_columns, PANEL_BYTES // dtype.itemsize)
        ]
        self._tasks = np.array(tasks, np.int64)
        self._groups: list[Array] = []
        # For each lane, room for transposed columns of a tile, and a row of ones.
        self._scratches = np.empty((0, TILE_SAMPLES * (self.task_columns + 16 + 1)), dtype)

    @functools.cached_property
    def _wide_gradient(self) -> Any:
        from fastbackprop.kernels.wide import wide_gradient  # imports numba

        entry, lane = wide_gradient(self.dtype)
        return entry, lane.address

    @functools.cached_property
    def _transpose_weights(self) -> Any:
        from fastbackprop.kernels.wide import transpose_weights  # imports numba

        return transpose_weights(self.dtype)

    @functools.cached_property
    def _transposed(self) -> Array:
        return aligned(self._offsets[-1], self.dtype)

    @functools.cached_property
    def _partial(self) -> Array:
        return aligned(self._partial_size, self.dtype)

    @property
    def nbytes(self) -> int:
        """The bytes that the buffers hold at present."""
        made = [array for name in ("_partial", "_transposed") if (array := self.__dict__.get(name)) is not None]
        return super().nbytes + sum([int(array.nbytes) for array in [*self._groups, self._scratches, *made]])

    def _group(self, number: int) -> Array:
        """That many tiles below each other."""
        if not self._groups or len(self._groups[0]) < number:
            self._groups[:] = [aligned(number * self._tile_size, self.dtype).reshape(number, self._tile_size)]
        return self._groups[0]

    def _columns(self, lanes: int) -> Array:
        if lanes > len(self._scratches):
            size = self._scratches.shape[1]
            self._scratches = aligned(lanes * size, self.dtype).reshape(lanes, size)
        return self._scratches

    def groups(self, samples: int) -> list[tuple[int, int]]:
        """The first sample of each group of tiles, and the one behind its last."""
        tiles = -(-samples // self.tile_samples)
        count = -(-tiles // self.group_tiles)
        step = round_up(-(-tiles // max(count, 1)), EVEN_TILES) * self.tile_samples
        return [(first, min(first + step, samples)) for first in range(0, samples, max(step, 1))]

    def load_both_ways(self, batch: Batch) -> tuple[Array, Array]:
        """The parameters as they come for few tiles, else transposed weights beside them; and the layout table."""
        parameters, layout = self.load(batch)
        if batch.samples <= TILES_AS_THEY_COME * TILE_SAMPLES:
            return parameters, layout
        layout = layout.copy()
        layout[:, TRANSPOSED_WEIGHTS_AT] = self._offsets[:-1]
        if batch.vector is not None:
            all_weights = [parameters[start:] for start in layout[:, WEIGHTS_AT].tolist()]
            batch.places = batch.places.copy()
            batch.places[:, 0] = (
                parameters.ctypes.data + layout[:, [WEIGHTS_AT, BIASES_AT]].T.ravel() * self.dtype.itemsize
            )
        else:
            all_weights = [weights.reshape(-1) for weights in batch.weights]

        def work(_lane: int, task: int, _first: int, _last: int) -> None:
            k, first, last = columns[task]
            units_in, units_out = self.layer_sizes[k : k + 2]
            transpose_columns(transposed[self._offsets[k] :], all_weights[k], units_out, units_in, first, last)

        transposed, transpose_columns = self._transposed, self._transpose_weights
        columns = [
            (k, first, last)
            for k, first_row, _, first, last in self._tasks.tolist()
            if first_row == 0 and (k > 0 or batch.input_gradient)
        ]
        run(work, numbered(columns), 1, lanes(batch.num_threads, len(columns)))
        return transposed, layout

    def _gradient(self, batch: Batch, dl_dinput: Array) -> tuple[float, Array]:
        samples, groups = batch.samples, self.groups(batch.samples)
        gradient = empty((self.size,), self.dtype)
        if samples == 0:
            gradient[:] = 0.0
        sums = np.zeros(self.size if len(groups) > FLUSH_TILES else 0)
        bias_sums = np.empty(self.size)  # of which only those of biases are used
        for start, units in zip(self.layout[:, BIASES_AT].tolist(), self.layer_sizes[1:], strict=True):
            bias_sums[start : start + units] = 0.0
        loss = 0.0
        loaded = self.load_both_ways(batch)
        tiles = self._group(max((-(-(last - first) // self.tile_samples) for first, last in groups), default=0))
        for number, (first, last) in enumerate(groups):
            part = batch.part(first, last)
            count = last - first
            chunks = [(s, min(s + self.tile_samples, count)) for s in range(0, count, self.tile_samples)]
            losses = np.empty((len(chunks), self.tile_samples))
            Sweep(self, part, dl_dinput[:, first:last], chunks, losses, loaded, tiles).run()
            loss += float(np.add.reduce(losses, axis=None))
            final = last == samples
            flush = final or number % FLUSH_TILES == FLUSH_TILES - 1
            flags = int(number % FLUSH_TILES == 0), int(flush), int(final)
            self._sum_columns((gradient, sums, bias_sums), tiles[: len(chunks)], count, flags, batch.num_threads)
            if batch.progress is not None:
                batch.progress(last, samples)
        return loss, gradient

    def _sum_columns(
        self,
        targets: tuple[Array, Array, Array],
        tiles: Array,
        samples: int,
        flags: tuple[int, int, int],
        num_threads: int | None,
    ) -> None:
        """Add a group's weight gradients to the partial sums, and those where the flags say; see wide_gradient."""
        gradient, address = self._wide_gradient
        flops = self.flops * samples // 3
        calls = -(-flops // TASK_FLOPS)
        for tasks in np.array_split(self._tasks, min(calls, len(self._tasks))):
            boxes = helpers(lanes(num_threads, len(tasks)))
            scratches = self._columns(len(boxes) + 1)
            sizes = self.tile_samples, samples
            patience = pauses(flops // calls)
            arguments = *targets, self._partial, scratches, tiles, self.layout, tasks, *sizes, *flags
            gradient(arguments, boxes, patience, address)


def parts(total: int, largest: int, unit: int) -> list[tuple[int, int]]:
    """`total` cut into as few ranges of at most `largest` as can be, at multiples of `unit`, as even as these allow."""
    count = -(-total // largest)
    bounds = [unit * -(-(total // unit) * part // count) for part in range(count)] + [total]
    return list(itertools.pairwise(bounds))


def numbered(items: Sequence[Any]) -> list[tuple[int, int]]:
    """One chunk for each item, as threads.run takes them."""
    return [(k, k + 1) for k in range(len(items))]
