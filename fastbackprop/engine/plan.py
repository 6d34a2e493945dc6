"""The plan: how a batch is cut, what threads share, and where rows lie. Every constant of it stands here.

A *slice* of a batch is what one call into compiled code takes; it consists of *chunks*, each of which sums a partial
gradient of its own; a chunk goes through the network *tile* by tile. Threads that share one gradient instead take
*strips* of the tiles of a *group* forward and back, and then *blocks* of the gradient.

All of this follows from shapes alone, never from the number of threads, detected cache sizes or addresses: the same
inputs give the same bits. Figures are of 2 processors with AVX-512 and 1 MB of L2 (Zen 4 and Zen 5, 2026-11).
"""

import functools
import itertools
from dataclasses import dataclass, replace

from fastbackprop.kernels import CACHE_LINE

FEW = 8
"""Samples: batches of at most so many go through the network with vector lanes along the units, see passes.few."""

STRIP = 16
"""Samples: chunks and strips begin at multiples of it. A cache line of float32.

Measured: with 32, 96 samples of 784-100x3-10 and 160 of 64-128x4-10, of which one of two threads had twice as many,
took 10 to 15 % longer, others as long.
"""

TILE_BYTES = 256 * 1024
"""Bytes of a tile's rows: half of an L2 of 512 KB."""

TILE_SAMPLES = 128, 512
"""Samples of a tile, at least and at most: weights and gradients are read once for every tile.

Measured: with 64 at least, 64-128x4-10 and 784-100x3-10 took 2 to 7 % longer.
"""

LARGE_WEIGHTS_BYTES, BESIDE_LARGE_WEIGHTS = 1024 * 1024, 64
"""Bytes of a layer's weights that drive a tile out of an L2, and the samples of a tile beside these, at least.

Measured: 1,000 samples of 3072-100-10 took 6 % (float32) and 9 % (float64) less time than with 128.
"""

LOSS_ROWS = 4
"""Rows of a tile behind the target's, for the weight of each sample and sums over the outputs."""

ALONG_UNITS = 24
"""Units: layers with fewer on either side take the weight gradient along the samples. Below, vectors of units are
mostly padding, or the transposition is not worth its product."""

CHUNK_TILES = 8
"""Tiles of a chunk, at most: their weight gradients are summed in the element type, those of chunks in double
precision.

So a sum of millions of samples in float32 rounds as rarely as NumPy's, see tests.test_numerics.
"""

CHUNK_FLOPS = 2**20
"""Floating-point operations of a chunk, at least: 10 to 20 us.

Measured: with 2**23, 5,000 samples of 1-6x5-1 and 2,000 of 8-16x3-1 were not shared by two threads, and took a fifth
longer.
"""

CHUNK_SAMPLES = 128
"""Samples of a chunk, at least. A chunk costs the time of 5 to 10 samples, in which its partial gradient is written and
read again."""

TWO_CHUNKS = 96
"""Samples from which a batch is cut in two all the same, so that two threads need not read from each other's caches."""

CHUNK_GRADIENT_BYTES = 8192
"""Bytes of a partial gradient for each sample of its chunk, at most, up to four times CHUNK_SAMPLES: larger partial
gradients leave the caches.

Measured: with 16384, 4,096 samples of 784-256x3-10 took 3 (float32) to 4 % (float64) longer.
"""

MANY_CHUNKS = 32
"""Chunks into which a batch is cut, at most, unless they would have more than CHUNK_TILES tiles: enough for 32 threads.

Measured: this costs two threads 3 (float64) to 5 % (float32) of 4,096 samples of 784-100x3-10, compared with 16 chunks.
"""

PRIVATE_BYTES = 4 * 1024 * 1024
"""Bytes of a partial gradient, at most: larger gradients are shared."""

PARTIALS_BYTES = 128 * 1024 * 1024
"""Bytes of all partial gradients of a slice, at most: there is room for 32, if there are as many threads."""

SLICE_FLOPS = 2**31
"""Floating-point operations of a slice for each thread, at most, if that is more than a chunk: 20 to 40 ms. Ctrl-C and
progress are answered between slices."""

STAGED_BYTES = 2 * 1024 * 1024
"""Bytes of the columns of a slice, at most, where these are converted first, if each thread has more than one chunk."""

GIVEN_BYTES = 64 * 1024 * 1024
"""Bytes of the notebooks' lists that a slice reads or writes, at most, if each thread has more than one chunk: the
system may take seconds to find new memory."""

SHARED_FLOPS = 2**22
"""Floating-point operations of a batch of one chunk from which threads share it: 50 us."""

SHARED_TILE_SAMPLES = 128
"""Samples of a tile whose group is shared."""

GROUP_TILES = 8
"""Tiles of a group, at most. A block of the gradient reads a part of each, and is written once for the group.

Measured: 784-1024-1024-1024-10 took 230, 214, 207, 205 and 210 ms with 1, 2, 4, 8 and 16 (float32, one thread).
"""

GROUP_BYTES = 128 * 1024 * 1024
"""Bytes of the tiles of a group, at most, if it has more than two."""

BLOCK_ROWS, BLOCK_COLUMNS = 128, 448
"""Rows and columns of a block of a shared gradient, at most: so that it stays in an L2, and there are enough blocks.

Measured: with 256 rows, 784-1024x3-10 took 2 to 3 % less time, but had too few blocks for 32 threads. Of 64 samples of
784-100x3-10, each of two threads has a block of the first layer: with 128 columns they took 3 % longer, with 784
columns 17 % (float32, float64).
"""

BLOCK_ELEMENTS = 4096
"""Elements of a block that is summed over partial gradients."""


@dataclass(frozen=True, eq=False)
class Layout:
    """Where a pass finds what it reads: the fields of the records of its layers and blocks, and of a call's network."""

    layers: tuple[dict[str, int], ...]
    blocks: tuple[dict[str, int], ...]
    call: dict[str, int]
    tile_samples: int
    rows: int
    """The rows of a tile."""
    parameters: int
    sums: int
    """The elements of what is summed: a gradient, or that and the squares."""
    flops: int
    """Floating-point operations of a gradient, for each sample; those of a prediction are a third."""

    @property
    def tile_bytes(self) -> int:
        """Bytes of a tile."""
        return self.call["tile_bytes"]

    @property
    def partial_bytes(self) -> int:
        """Bytes of a partial gradient, or of the scratch memory of a thread."""
        return self.call["partial_bytes"]


@dataclass(frozen=True, eq=False)
class Plan:
    """How one batch goes through the network."""

    scheme: str
    """few, private or shared."""
    layout: Layout
    samples: int
    chunks: int
    """The chunks of the batch, or the groups of a shared pass."""
    most_chunks: int
    """The chunks of a slice, at most."""
    tile_samples: int
    """Samples of a tile: at most those that the layout has room for."""
    flops: int
    """Floating-point operations for each sample."""
    has_sums: bool = True
    """Whether each chunk has a partial gradient."""

    @functools.cached_property
    def pieces(self) -> int:
        """How many threads can work on a slice at once."""
        return -(-self.longest // STRIP) if self.scheme == "shared" else min(self.chunks, self.most_chunks)

    @functools.cached_property
    def at_once(self) -> list[tuple[int, int]]:
        """All chunks in one slice."""
        return [(0, self.chunks)]

    @functools.cached_property
    def longest(self) -> int:
        """Samples of a chunk, at most."""
        return longest(self.samples, self.chunks)

    def cut(self, chunk: int) -> int:
        """Where a chunk of the batch begins, and the one before it ends; see passes.chunks.cut."""
        return min(STRIP * (-(-self.samples // STRIP) * chunk // max(self.chunks, 1)), self.samples)

    def slices(self, threads: int, most_samples: int | None = None) -> list[tuple[int, int]]:
        """The ranges of chunks of each slice: as many for each thread, as even as can be.

        No slice has many more than most_samples samples, unless it has a chunk for each thread and no more. Where a
        batch is cut into slices does not change what is added up, nor in which order.
        """
        if self.samples * self.flops <= SLICE_FLOPS and most_samples is None and self.chunks <= self.most_chunks:
            return self.at_once
        each = max(SLICE_FLOPS // (self.longest * self.flops), 1)
        if most_samples is not None:
            each = max(min(each, most_samples // (self.longest * threads)), 1)
        most = max(self.most_chunks // threads * threads, min(self.most_chunks, threads))
        step = min(each * threads, most)
        count = -(-self.chunks // step)
        step = min(round_up(-(-self.chunks // count), threads), most)
        return [(first, min(first + step, self.chunks)) for first in range(0, self.chunks, step)]


def plan_gradient(layer_sizes: tuple[int, ...], itemsize: int, samples: int) -> Plan:
    """How the gradient of a batch is computed."""
    if 0 < samples <= FEW:
        return plan_few(layer_sizes, itemsize, samples)
    weights = sum(a * b for a, b in itertools.pairwise(layer_sizes))
    layout = private_layout(layer_sizes, itemsize) if weights * itemsize <= PRIVATE_BYTES else None
    if layout is not None and layout.partial_bytes <= PRIVATE_BYTES:
        chunks = count_chunks(layout, itemsize, samples)
        is_worth_sharing = samples > STRIP and samples * layout.flops >= SHARED_FLOPS
        if chunks != 1 or not is_worth_sharing:  # threads share the one chunk of a batch that is too small for two
            return cut_in_chunks(layout, samples, chunks)
    layout = shared_layout(layer_sizes, itemsize)
    group_tiles = min(GROUP_TILES, max(GROUP_BYTES // layout.tile_bytes, 2))
    groups = -(-samples // (group_tiles * SHARED_TILE_SAMPLES))
    return Plan("shared", layout, samples, groups, 1, even_tile(layout, longest(samples, groups)), layout.flops)


def plan_backward_pass(layer_sizes: tuple[int, ...], itemsize: int, samples: int) -> Plan:
    """How the notebooks' backward pass is computed: in chunks, however large their partial gradients."""
    layout = private_layout(layer_sizes, itemsize)
    return cut_in_chunks(layout, samples, count_chunks(layout, itemsize, samples))


def plan_prediction(layer_sizes: tuple[int, ...], itemsize: int, samples: int) -> Plan:
    """How the output of a batch is computed."""
    if 0 < samples <= FEW:
        return plan_few(layer_sizes, itemsize, samples)
    return plan_forward_pass(layer_sizes, itemsize, samples)


def plan_forward_pass(layer_sizes: tuple[int, ...], itemsize: int, samples: int) -> Plan:
    """How the notebooks' forward pass is computed."""
    layout = private_layout(layer_sizes, itemsize)
    return cut_short(layout, samples, layout.flops // 3)


def plan_norms(layer_sizes: tuple[int, ...], itemsize: int, samples: int) -> Plan:
    """How the norm of each sample's gradient is computed."""
    layout = kept_layout(layer_sizes, itemsize, 1, 1)
    return cut_short(layout, samples, layout.flops * 2 // 3)


def plan_layer_norms(layer_sizes: tuple[int, ...], itemsize: int, samples: int) -> Plan:
    """How the norms of each sample's gradient by the parameters of each layer are computed."""
    layout = kept_layout(layer_sizes, itemsize, len(layer_sizes) - 1, 1)
    return cut_short(layout, samples, layout.flops * 2 // 3)


def plan_sample_gradients(layer_sizes: tuple[int, ...], itemsize: int, samples: int) -> Plan:
    """How the gradient of each sample is computed. To write an element takes as long as some 16 operations."""
    layout = kept_layout(layer_sizes, itemsize, 1, 1)
    return cut_short(layout, samples, layout.flops * 3)


def plan_clipped_gradient(layer_sizes: tuple[int, ...], itemsize: int, samples: int) -> Plan:
    """How the sum of clipped gradients is computed: in chunks, however large their partial gradients."""
    layout = kept_layout(layer_sizes, itemsize, 1, 1)
    return cut_in_chunks(layout, samples, count_chunks(layout, itemsize, samples))


def plan_squares(layer_sizes: tuple[int, ...], itemsize: int, samples: int) -> Plan:
    """How the sums of gradients and of their squares are computed: in chunks, however large their partial gradients."""
    layout = kept_layout(layer_sizes, itemsize, 1, 2)
    return cut_in_chunks(layout, samples, count_chunks(layout, itemsize, samples))


PLANS = {
    "gradient": plan_gradient,
    "prediction": plan_prediction,
    "forward pass": plan_forward_pass,
    "backward pass": plan_backward_pass,
    "norms": plan_norms,
    "layer norms": plan_layer_norms,
    "sample gradients": plan_sample_gradients,
    "clipped gradient": plan_clipped_gradient,
    "squares": plan_squares,
}
"""What is computed: its plan, by the sizes of the layers, the bytes of an element and the number of samples."""


def plan_few(layer_sizes: tuple[int, ...], itemsize: int, samples: int) -> Plan:
    """A plan of few samples, which one thread computes."""
    layout = few_layout(layer_sizes, itemsize)
    return Plan("few", layout, samples, 1, 1, FEW, layout.flops, has_sums=False)


def cut_in_chunks(layout: Layout, samples: int, chunks: int) -> Plan:
    """A private plan of so many chunks; two have room, however large their partial gradients."""
    most = max(PARTIALS_BYTES // layout.partial_bytes, 2)
    tile_samples = even_tile(layout, longest(samples, chunks))
    return Plan("private", layout, samples, chunks, most, tile_samples, layout.flops)


def cut_short(layout: Layout, samples: int, flops: int) -> Plan:
    """A private plan without sums, whose chunks may be short."""
    short = min(-(-samples // STRIP), MANY_CHUNKS, samples * flops // CHUNK_FLOPS)
    chunks = max(short, -(-samples // (CHUNK_TILES * layout.tile_samples)))
    tile_samples = even_tile(layout, longest(samples, chunks))
    return Plan("private", layout, samples, chunks, max(chunks, 1), tile_samples, flops, has_sums=False)


def longest(samples: int, chunks: int) -> int:
    """Samples of the longest of so many chunks, which begin at multiples of STRIP."""
    strips = -(-samples // STRIP)
    return min(STRIP * -(-strips // max(chunks, 1)), samples)


def even_tile(layout: Layout, samples: int) -> int:
    """Samples of a tile, so that the tiles of so many samples are as even as multiples of STRIP allow."""
    tiles = max(-(-samples // layout.tile_samples), 1)
    return max(round_up(-(-samples // tiles), STRIP), STRIP)


def count_chunks(layout: Layout, itemsize: int, samples: int) -> int:
    """Into how many chunks the gradient of a batch is cut: a power of two, which most numbers of threads share evenly,
    until chunks have CHUNK_TILES tiles."""
    least_samples = max(CHUNK_SAMPLES, min(layout.parameters * itemsize // CHUNK_GRADIENT_BYTES, 4 * CHUNK_SAMPLES))
    most = samples // least_samples
    if least_samples == CHUNK_SAMPLES and TWO_CHUNKS <= samples < 2 * CHUNK_SAMPLES:
        most = 2
    most = min(most, samples * layout.flops // CHUNK_FLOPS, MANY_CHUNKS)
    number = 1 << max(most.bit_length() - 1, 0)
    return max(min(number, samples), -(-samples // (CHUNK_TILES * layout.tile_samples)))


# Where rows lie.


@functools.lru_cache(maxsize=64)
def few_layout(layer_sizes: tuple[int, ...], itemsize: int) -> Layout:
    """The workspace of few samples: all offsets are for one sample, see passes.few."""
    units, outputs = sum(layer_sizes), layer_sizes[-1]
    starts = list(itertools.accumulate(layer_sizes, initial=0))
    layers = [
        described(k, layer_sizes, itemsize)
        | {"h_at": starts[k] * itemsize, "f_at": starts[k + 1] * itemsize}
        | {"dl_df_at": (units + starts[k + 1]) * itemsize}
        for k in range(len(layer_sizes) - 1)
    ]
    layers[-1]["dl_df_at"] = layers[-1]["f_at"]
    behind = units + units - outputs
    call = {
        "output_at": layers[-1]["f_at"],
        "dl_dinput_at": units * itemsize,
        "target_at": behind * itemsize,
        "tile_bytes": FEW * (behind + 2 * outputs + LOSS_ROWS) * itemsize,
        "partial_bytes": 0,
    }
    return finished(layer_sizes, itemsize, layers, [], call, FEW, behind + 2 * outputs + LOSS_ROWS)


@functools.lru_cache(maxsize=64)
def private_layout(layer_sizes: tuple[int, ...], itemsize: int) -> Layout:
    """Tiles in which dl/df_{k-1} takes the place of h_k, and partial gradients in which wide layers have padded
    rows."""
    layers, call, tile_samples = place_tile(layer_sizes, itemsize, rows_of_tile(layer_sizes))
    blocks = place_partial(layers, call, itemsize)
    return finished(layer_sizes, itemsize, layers, blocks, call, tile_samples, rows_of_tile(layer_sizes))


@functools.lru_cache(maxsize=64)
def kept_layout(layer_sizes: tuple[int, ...], itemsize: int, norms: int, gradients: int) -> Layout:
    """Tiles that keep both h_k and dl/df_k of every layer, for what each sample says, see passes.per_sample.

    dl/df_k have rows of their own, behind those of a private tile; the results of each sample, its loss and its
    `norms`, have rows behind these, and in double precision behind the transposed activations. A partial gradient is
    followed by one of squares where there are two `gradients`.
    """
    start = rows_of_tile(layer_sizes)
    results = start + sum(layer_sizes[1:-1])
    rows = results + 1 + norms
    layers, call, tile_samples = place_tile(layer_sizes, itemsize, rows)
    for layer, before in zip(layers[:-1], itertools.accumulate(layer_sizes[1:], initial=start), strict=False):
        layer["dl_df_at"] = before * call["row_bytes"]
    call["results_at"] = results * call["row_bytes"]
    transposed = max(layer["transposed_row"] for layer in layers)
    call["losses_at"] = round_up(call["transposed_at"] + tile_samples * transposed, CACHE_LINE)
    call["norms_at"] = call["losses_at"] + 8 * tile_samples
    call["tile_bytes"] = call["norms_at"] + norms * 8 * tile_samples
    call |= {"norms": norms, "norms_row": 8 * tile_samples if norms == len(layers) else 0}
    blocks = place_partial(layers, call, itemsize)
    layout = finished(layer_sizes, itemsize, layers, blocks, call, tile_samples, rows)
    if gradients == 1:
        return layout
    call["squares_at"] = layout.partial_bytes
    behind = {"gradient_at": layout.parameters * itemsize, "partial_at": layout.partial_bytes}
    squares = [block | {name: block[name] + offset for name, offset in behind.items()} for block in blocks]
    call["partial_bytes"] *= 2
    return replace(layout, blocks=(*blocks, *squares), call=call | {"blocks": 2 * len(blocks)}, sums=2 * layout.sums)


def place_tile(
    layer_sizes: tuple[int, ...], itemsize: int, rows: int
) -> tuple[list[dict[str, int]], dict[str, int], int]:
    """Where the rows of a tile lie, and behind them transposed activations; and the samples of a tile."""
    fitting = TILE_BYTES // (rows * itemsize) // CACHE_LINE * CACHE_LINE
    large = max(a * b for a, b in itertools.pairwise(layer_sizes)) * itemsize > LARGE_WEIGHTS_BYTES
    tile_samples = min(max(fitting, BESIDE_LARGE_WEIGHTS if large else TILE_SAMPLES[0]), TILE_SAMPLES[1])
    layers, call = place_rows(layer_sizes, itemsize, tile_samples)
    call["transposed_at"] = rows * call["row_bytes"]
    for layer in layers:
        layer["transposed_row"] = transposed_row(layer["units_in"], itemsize)
    transposed = max(layer["transposed_row"] * layer["along_units"] for layer in layers)
    call["tile_bytes"] = round_up(call["transposed_at"] + tile_samples * transposed, CACHE_LINE)
    return layers, call, tile_samples


@functools.lru_cache(maxsize=64)
def shared_layout(layer_sizes: tuple[int, ...], itemsize: int) -> Layout:
    """Tiles in which dl/dinput and dl/df_k have rows of their own, and blocks of one gradient."""
    rows = rows_of_tile(layer_sizes)
    layers, call = place_rows(layer_sizes, itemsize, SHARED_TILE_SAMPLES)
    for layer, before in zip(layers[:-1], itertools.accumulate(layer_sizes), strict=False):
        layer["dl_df_at"] = (rows + before) * call["row_bytes"]
    call["dl_dinput_at"] = rows * call["row_bytes"]
    rows += sum(layer_sizes[:-1])
    call["tile_bytes"] = rows * call["row_bytes"]
    blocks, columns = [], BLOCK_COLUMNS
    for k, layer in enumerate(layers):
        layer["transposed_row"] = transposed_row(min(layer["units_in"], columns), itemsize)
        gradient_row = layer["units_in"] * itemsize
        for row, last_row in parts(layer["units_out"], BLOCK_ROWS, 1):
            for column, last_column in parts(layer["units_in"], columns, CACHE_LINE):
                block = {"k": k, "row": row, "rows": last_row - row, "column": column, "columns": last_column - column}
                block["gradient_at"] = layer["weights_at"] + row * gradient_row + column * itemsize
                block["gradient_row"] = gradient_row
                block["partial_row"] = padded(last_column - column) * itemsize
                blocks.append(block | {"partial_at": 0})
    # The scratch memory of a thread: a block, the biases of its rows, and a tile of transposed columns.
    biases_at = max(block["rows"] * block["partial_row"] for block in blocks)
    for layer in layers:
        layer["partial_biases_at"] = biases_at
    call["transposed_at"] = round_up(biases_at + BLOCK_ROWS * itemsize, CACHE_LINE)
    transposed = max(layer["transposed_row"] for layer in layers)
    call["partial_bytes"] = call["transposed_at"] + SHARED_TILE_SAMPLES * transposed
    return finished(layer_sizes, itemsize, layers, blocks, call, SHARED_TILE_SAMPLES, rows)


def rows_of_tile(layer_sizes: tuple[int, ...]) -> int:
    """The rows h_0 ... h_K, output, target, those of the loss, ones."""
    return sum(layer_sizes) + layer_sizes[-1] + LOSS_ROWS + 1


def place_rows(
    layer_sizes: tuple[int, ...], itemsize: int, tile_samples: int
) -> tuple[list[dict[str, int]], dict[str, int]]:
    """Where the rows of a tile lie. Its rows are an odd number of cache lines apart, so that those of a register tile
    do not fall into the same set of a cache."""
    row_bytes = tile_samples * itemsize + CACHE_LINE
    starts = [row * row_bytes for row in itertools.accumulate(layer_sizes, initial=0)]
    layers = [
        described(k, layer_sizes, itemsize) | {"h_at": starts[k], "f_at": starts[k + 1], "dl_df_at": starts[k + 1]}
        for k in range(len(layer_sizes) - 1)
    ]
    output_at, outputs = starts[-2], layer_sizes[-1]
    call = {
        "row_bytes": row_bytes,
        "output_at": output_at,
        "target_at": output_at + outputs * row_bytes,
        "weight_at": output_at + 2 * outputs * row_bytes,
        "ones_at": output_at + (2 * outputs + LOSS_ROWS) * row_bytes,
        "dl_dinput_at": 0,
    }
    return layers, call


def described(k: int, layer_sizes: tuple[int, ...], itemsize: int) -> dict[str, int]:
    """What is known of a layer wherever its rows lie: its units, and where its parameters are in pack order."""
    units_in, units_out = layer_sizes[k : k + 2]
    before = sum((a + 1) * b for a, b in itertools.pairwise(layer_sizes[: k + 1]))
    return {
        "units_in": units_in,
        "units_out": units_out,
        "weights_at": before * itemsize,
        "biases_at": (before + units_out * units_in) * itemsize,
        "has_relu": int(k < len(layer_sizes) - 2),
        "along_units": int(min(units_in, units_out) >= ALONG_UNITS),
    }


def place_partial(layers: list[dict[str, int]], call: dict[str, int], itemsize: int) -> list[dict[str, int]]:
    """Where a partial gradient lies: the padded weights of wide layers, then all that products add to from the start.

    Returns the blocks in which partial gradients are summed: some rows of a wide layer, or a run of elements that stand
    one behind the other in both gradients.
    """
    blocks: list[dict[str, int]] = []
    at = 0
    for layer in layers:
        if layer["along_units"]:
            layer["partial_at"], layer["partial_row"] = at, padded(layer["units_in"]) * itemsize
            row, rows = layer["units_in"] * itemsize, max(BLOCK_ELEMENTS // layer["units_in"], 1)
            for first, last in parts(layer["units_out"], rows, 1):
                block = {"gradient_at": layer["weights_at"] + first * row, "gradient_row": row}
                block |= {"partial_at": at + first * layer["partial_row"], "partial_row": layer["partial_row"]}
                blocks.append(block | {"rows": last - first, "columns": layer["units_in"]})
            at += layer["units_out"] * layer["partial_row"]
    call["cleared_at"] = at
    runs: list[tuple[int, int, int]] = []
    for layer in layers:
        start, end = layer["biases_at"], layer["biases_at"] + layer["units_out"] * itemsize
        if not layer["along_units"]:
            start = layer["weights_at"]
            layer["partial_at"], layer["partial_row"] = at, layer["units_in"] * itemsize
        layer["partial_biases_at"] = at + layer["biases_at"] - start
        if runs and runs[-1][1] == start:
            start, _, run_at = runs.pop()
            runs.append((start, end, run_at))
        else:
            runs.append((start, end, at))
        at = runs[-1][2] + end - runs[-1][0]
    call["cleared_bytes"] = at - call["cleared_at"]
    call["partial_bytes"] = (-(-at // CACHE_LINE) | 1) * CACHE_LINE
    for start, end, run_at in runs:
        for first, last in parts((end - start) // itemsize, BLOCK_ELEMENTS, 1):
            place = {"gradient_at": start + first * itemsize, "partial_at": run_at + first * itemsize}
            blocks.append(place | {"rows": 1, "columns": last - first, "gradient_row": 0, "partial_row": 0})
    return blocks


def finished(
    layer_sizes: tuple[int, ...],
    itemsize: int,
    layers: list[dict[str, int]],
    blocks: list[dict[str, int]],
    call: dict[str, int],
    tile_samples: int,
    rows: int,
) -> Layout:
    """A layout, with what follows from the layers alone."""
    call |= {"itemsize": itemsize, "layers": len(layers), "inputs": layer_sizes[0], "outputs": layer_sizes[-1]}
    call |= {"blocks": len(blocks), "strip": STRIP}
    weights = sum(a * b for a, b in itertools.pairwise(layer_sizes))
    parameters = weights + sum(layer_sizes[1:])
    return Layout(tuple(layers), tuple(blocks), call, tile_samples, rows, parameters, parameters, 6 * weights)


def padded(elements: int) -> int:
    """The elements of a padded row: an odd number of cache lines (of pairs of them in float64).

    Measured: rows of a power of two share a few sets of the caches: 1024 units took the gradient at 39 % of the peak.
    """
    return (-(-elements // 16) | 1) * 16


def transposed_row(units_in: int, itemsize: int) -> int:
    """Bytes from one sample to the next in transposed activations: an odd number of cache lines or so."""
    return (round_up(units_in, 32) + 16) * itemsize


def round_up(number: int, multiple: int) -> int:
    """The least multiple that is not below a number."""
    return -(-number // multiple) * multiple


def parts(total: int, largest: int, unit: int) -> list[tuple[int, int]]:
    """`total` cut at multiples of `unit` into as few ranges of at most `largest`, a multiple of it, as can be.

    The ranges are as even as these multiples allow.
    """
    units = -(-total // unit)
    count = -(-units // (largest // unit))
    bounds = [min(unit * (units * part // count), total) for part in range(count + 1)]
    return list(itertools.pairwise(bounds))
