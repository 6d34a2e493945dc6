"""The layout: where rows of a tile, partial gradients and blocks lie; the part of a plan that no batch size changes."""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from fastbackprop.engine.limits import (
    ALONG_UNITS,
    BESIDE_LARGE_WEIGHTS,
    BLOCK_COLUMNS,
    BLOCK_ELEMENTS,
    BLOCK_ROWS,
    BLOCK_STEP,
    DEPTH,
    FEW,
    LARGE_WEIGHTS_BYTES,
    LOSS_ROWS,
    PAGE_BYTES,
    PAGES,
    SHARED_TILE_SAMPLES,
    TILE_BYTES,
    TILE_SAMPLES,
    TILE_STEP,
)
from fastbackprop.kernels import CACHE_LINE


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
    """Elements of the sums: a gradient, or a gradient and its squares."""
    flops: int
    """Floating-point operations of a gradient, for each sample; a prediction takes a third of them."""

    @property
    def tile_bytes(self) -> int:
        """Bytes of a tile."""
        return self.call["tile_bytes"]

    @property
    def partial_bytes(self) -> int:
        """Bytes of a partial gradient, or of the scratch memory of a thread."""
        return self.call["partial_bytes"]


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
def chunk_layout(layer_sizes: tuple[int, ...], itemsize: int) -> Layout:
    """Tiles in which dl/df_{k-1} takes the place of h_k, and partial gradients in which wide layers have padded rows.

    If the sums of dl/df_{k-1} are cut into parts, it has rows of its own: the last part needs h_k for the mask.
    Measured: networks of 256 to 512 units took the same time within 1 % (two threads, Zen 4, 2026-11). Uncut float32
    sums of 1,000 terms could have twice NumPy's error.
    """
    start = rows_of_tile(layer_sizes)
    pairs = itertools.pairwise(layer_sizes[1:])
    own = [units_in if units_out > most_terms(units_in, itemsize) else 0 for units_in, units_out in pairs]
    rows = start + sum(own)
    layers, call, tile_samples = place_tile(layer_sizes, itemsize, rows)
    place_derivatives(layers, call, own, start)
    transposed = max(layer["transposed_row"] * layer["along_units"] for layer in layers)
    call["tile_bytes"] = round_up(call["transposed_at"] + tile_samples * transposed, CACHE_LINE)
    blocks = place_partial(layers, call, itemsize)
    return finished(layer_sizes, itemsize, layers, blocks, call, tile_samples, rows)


@functools.lru_cache(maxsize=64)
def kept_layout(layer_sizes: tuple[int, ...], itemsize: int, norms: int, gradients: int) -> Layout:
    """Tiles that keep both h_k and dl/df_k of every layer, for results of single samples: see passes.per_sample.

    dl/df_k has rows of its own, behind those of rows_of_tile. Behind them are a row for the samples' losses and
    `norms` rows for their norms. The same results in double precision are behind the transposed activations. With two
    `gradients`, the gradient of the squares is behind the partial gradient.
    """
    start = rows_of_tile(layer_sizes)
    results = start + sum(layer_sizes[1:-1])
    rows = results + 1 + norms
    layers, call, tile_samples = place_tile(layer_sizes, itemsize, rows)
    place_derivatives(layers, call, layer_sizes[1:-1], start)
    # Gradients of samples are computed from transposed activations of every layer.
    transposed, doubles = max(layer["transposed_row"] for layer in layers), 8 * tile_samples
    call["results_at"] = results * call["row_bytes"]
    call["losses_at"] = round_up(call["transposed_at"] + tile_samples * transposed, CACHE_LINE)
    call["norms_at"] = call["losses_at"] + doubles
    call["tile_bytes"] = call["norms_at"] + norms * doubles
    call |= {"norms": norms, "norms_row": doubles if norms == len(layers) else 0}
    blocks = place_partial(layers, call, itemsize)
    if gradients == 2:
        call["squares_at"] = call["partial_bytes"]
        parameters = sum((units_in + 1) * units_out for units_in, units_out in itertools.pairwise(layer_sizes))
        behind = {"gradient_at": parameters * itemsize, "partial_at": call["squares_at"]}
        blocks += [block | {name: block[name] + offset for name, offset in behind.items()} for block in blocks]
        call["partial_bytes"] *= 2
    return finished(layer_sizes, itemsize, layers, blocks, call, tile_samples, rows, gradients)


def place_tile(
    layer_sizes: tuple[int, ...], itemsize: int, rows: int
) -> tuple[list[dict[str, int]], dict[str, int], int]:
    """Where the rows of a tile lie, and transposed activations behind them; and the samples of a tile."""
    fitting = TILE_BYTES // (rows * itemsize) // TILE_STEP * TILE_STEP
    large = max(a * b for a, b in itertools.pairwise(layer_sizes)) * itemsize > LARGE_WEIGHTS_BYTES
    tile_samples = min(max(fitting, BESIDE_LARGE_WEIGHTS if large else TILE_SAMPLES[0]), TILE_SAMPLES[1])
    layers, call = place_rows(layer_sizes, itemsize, tile_samples)
    call["transposed_at"] = rows * call["row_bytes"]
    for layer in layers:
        layer["transposed_row"] = padded(layer["units_in"]) * itemsize
    return layers, call, tile_samples


@functools.lru_cache(maxsize=64)
def shared_layout(layer_sizes: tuple[int, ...], itemsize: int) -> Layout:
    """Tiles in which dl/dinput and dl/df_k have rows of their own, and blocks of one gradient."""
    rows = rows_of_tile(layer_sizes)
    layers, call = place_rows(layer_sizes, itemsize, SHARED_TILE_SAMPLES)
    place_derivatives(layers, call, layer_sizes[1:-1], rows + layer_sizes[0])
    call["dl_dinput_at"] = rows * call["row_bytes"]
    rows += sum(layer_sizes[:-1])
    call["tile_bytes"] = rows * call["row_bytes"]
    blocks = []
    for k, layer in enumerate(layers):
        layer["transposed_row"] = padded(min(layer["units_in"], BLOCK_COLUMNS)) * itemsize
        gradient_row = layer["units_in"] * itemsize
        layer["stays_in_rows"] = int(not layer["along_units"] or gradient_row % CACHE_LINE == 0)
        for row, last_row in parts(layer["units_out"], BLOCK_ROWS, 1):
            for column, last_column in parts(layer["units_in"], BLOCK_COLUMNS, BLOCK_STEP):
                block = {"k": k, "row": row, "rows": last_row - row, "column": column, "columns": last_column - column}
                block["gradient_at"] = layer["weights_at"] + row * gradient_row + column * itemsize
                block["gradient_row"] = gradient_row
                block["partial_row"] = padded(last_column - column) * itemsize
                blocks.append(block)
    # The scratch memory of a thread: a block, the biases of its rows, and a tile of transposed columns.
    biases_at = max(block["rows"] * block["partial_row"] for block in blocks)
    for layer in layers:
        layer["partial_biases_at"] = biases_at
    call["transposed_at"] = round_up(biases_at + BLOCK_ROWS * itemsize, CACHE_LINE)
    transposed = max(layer["transposed_row"] for layer in layers)
    call["partial_bytes"] = call["transposed_at"] + SHARED_TILE_SAMPLES * transposed
    return finished(layer_sizes, itemsize, layers, blocks, call, SHARED_TILE_SAMPLES, rows)


def place_derivatives(layers: list[dict[str, int]], call: dict[str, int], own: Sequence[int], start: int) -> None:
    """Give each dl/df_k rows of its own, as many as `own` says, from row `start` on; with 0, it overwrites f_k."""
    for layer, units, row in zip(layers[:-1], own, itertools.accumulate(own, initial=start), strict=False):
        if units:
            layer["dl_df_at"] = row * call["row_bytes"]


def rows_of_tile(layer_sizes: tuple[int, ...]) -> int:
    """The number of rows of a tile: h_0 ... h_K, output, target, LOSS_ROWS, ones."""
    return sum(layer_sizes) + layer_sizes[-1] + LOSS_ROWS + 1


def place_rows(
    layer_sizes: tuple[int, ...], itemsize: int, tile_samples: int
) -> tuple[list[dict[str, int]], dict[str, int]]:
    """Where the rows of a tile lie. They are an odd number of cache lines apart, so that the rows of a register tile
    fall into different sets of a cache."""
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
        "sample_weight_at": output_at + 2 * outputs * row_bytes,
        "ones_at": output_at + (2 * outputs + LOSS_ROWS) * row_bytes,
        "dl_dinput_at": 0,
    }
    return layers, call


def described(k: int, layer_sizes: tuple[int, ...], itemsize: int) -> dict[str, int]:
    """The fields of a layer that are the same in every layout: its units, and its parameters' places in pack order."""
    units_in, units_out = layer_sizes[k : k + 2]
    before = sum((a + 1) * b for a, b in itertools.pairwise(layer_sizes[: k + 1]))
    return {
        "units_in": units_in,
        "units_out": units_out,
        "weights_at": before * itemsize,
        "biases_at": (before + units_out * units_in) * itemsize,
        "has_relu": int(k < len(layer_sizes) - 2),
        "most_terms": most_terms(units_in, itemsize),
        "along_units": int(min(units_in, units_out) >= ALONG_UNITS),
    }


def most_terms(units_in: int, itemsize: int) -> int:
    """Largest number of terms that the backward product of a layer sums at once: rows of its weights."""
    return min(DEPTH, PAGES * PAGE_BYTES // min(units_in * itemsize, PAGE_BYTES))


def place_partial(layers: list[dict[str, int]], call: dict[str, int], itemsize: int) -> list[dict[str, int]]:
    """Where a partial gradient lies: the padded weights of wide layers, then what products add to from the start.

    Returns the blocks in which partial gradients are summed: some rows of a wide layer, or a run of elements that are
    contiguous in both gradients.
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
    gradients: int = 1,
) -> Layout:
    """A layout, with the fields that follow from the layers alone."""
    call |= {"itemsize": itemsize, "layers": len(layers), "inputs": layer_sizes[0], "outputs": layer_sizes[-1]}
    call |= {"blocks": len(blocks), "gradients": gradients}
    weights = sum(a * b for a, b in itertools.pairwise(layer_sizes))
    parameters = weights + sum(layer_sizes[1:])
    return Layout(
        tuple(layers), tuple(blocks), call, tile_samples, rows, parameters, gradients * parameters, 6 * weights
    )


def padded(elements: int) -> int:
    """The elements of a padded row: an odd number of cache lines (pairs in float64).

    Measured: rows of a power of two share a few sets of the caches: the gradient of 1024 units ran at 39 % of the peak.
    """
    return (-(-elements // 16) | 1) * 16


def round_up(number: int, multiple: int) -> int:
    """The smallest multiple that is not below a number."""
    return -(-number // multiple) * multiple


def parts(total: int, largest: int, unit: int) -> list[tuple[int, int]]:
    """The fewest ranges of at most `largest` that make up `total`, cut at multiples of `unit`.

    `largest` is a multiple of `unit`. The ranges are as even as these multiples allow.
    """
    units = -(-total // unit)
    count = -(-units // (largest // unit))
    bounds = [min(unit * (units * part // count), total) for part in range(count + 1)]
    return list(itertools.pairwise(bounds))
