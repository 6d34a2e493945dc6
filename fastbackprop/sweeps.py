"""A sweep over a batch: its chunks are handed to a kernel all at once, or slice by slice by the threads of a job."""

from typing import TYPE_CHECKING

from fastbackprop.arguments import Batch
from fastbackprop.kernels import FLUSH_TILES, STRIP
from fastbackprop.lists import native
from fastbackprop.threads import NO_HELPERS, helpers, lanes, run
from fastbackprop.validation import Array

if TYPE_CHECKING:
    from fastbackprop.engine import Engine

LEAST_TEAM_FLOPS = 2**22  # of a call with one chunk: below, no other thread is asked to help
PAUSES_PER_MEGAFLOP = 32  # of a call: how long a thread that sleeps is waited for
SLICE_FLOPS = 2**31  # at most, where a slice has more than the fewest samples: Ctrl-C is answered between slices
SLICE_SAMPLES = 65536
STAGING_BYTES = 2 * 1024 * 1024  # of columns that are converted first
# Of what the notebooks' passes read and write: new memory of the system may take it seconds to find.
GIVEN_BYTES = 64 * 1024 * 1024


class Sweep:
    """A sweep over the chunks of a batch, each of which has a row of accumulators, and one of tiles if these are given.

    With a gradient, that of all chunks is written there; else the accumulators are. For what the arrays hold, see the
    kernel.
    """

    def __init__(
        self,
        engine: "Engine",
        batch: Batch,
        columns_out: Array,
        chunks: list[tuple[int, int]],
        accumulators: Array,
        loaded: tuple[Array, Array],
        tiles: Array | None = None,
        gradient: Array | None = None,
    ) -> None:
        self.engine, self.batch, self.chunks, self.accumulators = engine, batch, chunks, accumulators
        self.arrays, self.loaded, self.own_tiles = [columns_out, batch.net_input, batch.target], loaded, tiles
        self.stored = gradient is not None
        self.gradient = engine.no_vector if gradient is None else gradient
        self.more_gradients = engine.more_gradients(len(chunks) - 1) if self.stored else engine.no_rows
        self.options = batch.mode, batch.factor, batch.scale, engine.loss_address(batch.mode)
        self.team: tuple[Array, int] = NO_HELPERS, 0

    def run(self) -> None:
        """Sweep over all samples."""
        engine, batch, number = self.engine, self.batch, len(self.chunks)
        flops, row_bytes = batch.samples * engine.flops, batch.samples * engine.dtype.itemsize
        staged, given = self.rows()
        fits = staged * row_bytes <= STAGING_BYTES and given * row_bytes <= GIVEN_BYTES
        at_once = fits and flops <= engine.call_flops
        num_lanes = lanes(batch.num_threads, shares(engine, batch.samples, number))
        job_lanes = num_lanes if number > 1 else 1  # workers of a job are not there for what is shared in the kernel
        if num_lanes > 1 and (at_once or number == 1):
            self.team = helpers(num_lanes), pauses(flops)
        tiles = engine.tiles(job_lanes) if self.own_tiles is None else self.own_tiles
        if at_once and number > 0:
            self.call(self.gradient, self.more_gradients, self.accumulators[:number], tiles, 0, batch.samples, 1)
            if batch.progress is not None:
                batch.progress(batch.samples, batch.samples)
            return

        def work(lane: int, chunk: int, first: int, last: int) -> None:
            gradient = self.more_gradients[chunk - 1] if self.stored and chunk > 0 else self.gradient
            sums, row = self.accumulators[chunk : chunk + 1], lane if self.own_tiles is None else chunk
            fresh = int(first == self.chunks[chunk][0])
            self.call(gradient, engine.no_rows, sums, tiles[row : row + 1], first, last, fresh)

        slice_samples = batch.samples
        if not self.stored:
            slice_samples = most_samples(engine, staged, given, sums=self.accumulators.shape[1] > engine.tile_samples)
        run(work, self.chunks, slice_samples, job_lanes, batch.progress)
        for row in self.more_gradients:
            self.gradient += row

    def rows(self) -> tuple[int, int]:
        """The rows of columns that are converted first, and those that are given from layer to layer."""
        dtype, columns = self.engine.dtype, self.batch.columns
        # Identity is soon looked at, but pickled arrays have a dtype of their own that is the same.
        other = [array for array in self.arrays if array.dtype is not dtype and array.dtype != dtype]
        if columns and self.batch.itemsize != dtype.itemsize:
            other += [array for array in columns if array.dtype != dtype]
        given = len(columns) // len(self.engine.layout) * sum(self.engine.layer_sizes[1:]) if columns else 0
        return sum(map(len, other)), given

    def call(
        self,
        gradient: Array,
        more_gradients: Array,
        accumulators: Array,
        tiles: Array,
        first: int,
        last: int,
        fresh: int,
    ) -> None:
        """Hand the samples [first, last) to the kernel: whole chunks of them, or a slice of one."""
        engine, batch = self.engine, self.batch
        columns, weights = self.arrays, batch.sample_weight
        if last - first < batch.samples:
            columns, weights = [array[:, first:last] for array in columns], weights[first:last]
        columns = native([*columns, weights], engine.dtype)
        places, _arrays = batch.locate(engine.dtype, first, last)  # which live as long as their addresses
        parameters, layout = self.loaded
        # A chunk that keeps its tile is one tile long; the others are cut as engine.chunks says.
        cut = (0, STRIP) if self.own_tiles is None else (1, engine.tile_samples)
        arguments = gradient, more_gradients, accumulators, *columns, parameters, places, layout, tiles
        kernel, address = engine.sweep_kernel
        kernel((*arguments, engine.tile_samples, *cut, fresh, *self.options), *self.team, address)


def shares(engine: "Engine", samples: int, chunks: int) -> int:
    """On how many lanes a sweep can be: a chunk that is the only one is shared, if long, strip by strip of a tile.

    Of 9 to 16 samples, lanes would share the weight gradient alone: two took up to 16 % less time so, but 1.4 to 2.1
    times as long where their caches are far apart.
    """
    if chunks != 1:
        return chunks
    return -(-min(samples, engine.tile_samples) // STRIP) if samples * engine.flops >= LEAST_TEAM_FLOPS else 1


def most_samples(engine: "Engine", staged: int, given: int, *, sums: bool) -> int:
    """How many samples are handed to a kernel at once: fewer where that many rows of them are converted first, or given
    from layer to layer."""
    most = min(SLICE_SAMPLES, SLICE_FLOPS // engine.flops)
    for rows, most_bytes in (staged, STAGING_BYTES), (given, GIVEN_BYTES):
        if rows:
            most = min(most, most_bytes // (rows * engine.dtype.itemsize))
    # Sums are flushed between slices: their bits must not depend on whether there is a conversion.
    unit = engine.tile_samples * (FLUSH_TILES if sums else 1)
    return max(most // unit, 1) * unit


def pauses(flops: int) -> int:
    """For how many pauses helpers that sleep are waited for, in a call of so many flops."""
    return flops * PAUSES_PER_MEGAFLOP >> 20
