"""The weight gradients of wide networks: a block of one layer, over many tiles that a sweep has gone through.

Where private copies of the gradient for each thread would be too large, threads share the work by blocks instead:
each weight gradient is owned by one call, which sums over all tiles in their order.
"""

import functools

from numba import from_dtype, types
from numba.extending import intrinsic
from numba.np.numpy_support import as_dtype

from fastbackprop.kernels import BACK_ROW, BIASES_AT, PARTIAL_AT, ROW, UNITS_IN, WEIGHTS_AT
from fastbackprop.kernels.jit import array_types, compile_callback, compile_entry, source_digest
from fastbackprop.kernels.layers import (
    convert_rows,
    copy_rows,
    dot_gradient,
    fill_row,
    row_stride,
    transpose,
    weight_gradient,
    whole_vectors,
)
from fastbackprop.kernels.simd import advance, pointer, row_of, vector_lanes
from fastbackprop.kernels.sweep import padded, transposed_stride
from fastbackprop.kernels.team import claim, entry, part, read_record


def argument_types(dtype):
    """The types of the arguments of a wide gradient, see there."""
    written, _ = array_types(dtype)
    double = types.Array(types.float64, 1, "C")
    table = types.Array(types.int64, 2, "C", readonly=True)
    arrays = [written(1, "C"), double, double, written(1, "C"), written(2, "C"), written(2, "C"), table, table]
    return [*arrays, *[types.int64] * 5]


@intrinsic
def arguments_of(typing_context, record):
    """The arguments that the record of a wide gradient holds."""
    return read_record(types.Tuple(argument_types(as_dtype(record.dtype))), record)


@functools.cache
def wide_gradient(dtype):
    """What starts a wide gradient, and what each of its lanes runs: compiled for float32 or float64."""
    digest = source_digest()

    def gradient_tasks(record, lane, lanes):
        """Add the gradients of blocks of weights, and of biases, over all tiles: the work of one lane.

        The arguments, the same for all lanes:

        gradient    (P,) in pack order, written where `final`
        sums        (P,) float64, or (0,) where there is one flush only: added to where `flush`
        bias_sums   (P,) float64, of which only those of the biases are added to
        partial     padded sums of the weights' gradient in the element type, written where `fresh`, else added to
        scratches   room for a tile of transposed columns and a row of ones: a row for each lane
        tiles       (number, size of a tile): read; `samples` in all, tile_samples in each but the last
        layout      see parameters.layout_table: read
        tasks       a row (k, first_row, last_row, first, last) for each block, of weights k: rows
                    [first_row, last_row), columns [first, last). With column 0, the biases of these rows are summed too
        """
        digest  # noqa: B018 - a closure cell, see source_digest
        (
            gradient,
            sums,
            bias_sums,
            partial,
            scratches,
            tiles,
            layout,
            tasks,
            tile_samples,
            samples,
            fresh,
            flush,
            final,
        ) = arguments_of(record)
        itemsize = tiles.itemsize
        stride = row_stride(tiles, tile_samples)
        layers = layout.shape[0]
        output_row = row_of(layout, layers - 1)[ROW] + row_of(layout, layers - 1)[UNITS_IN]
        scratch = row_of(scratches, lane)
        number = claim(record)
        while number < tasks.shape[0]:
            task = row_of(tasks, number)
            k, first_row, last_row, first, last = task[0], task[1], task[2], task[3], task[4]
            layer = row_of(layout, k)
            units_in, rows = layer[UNITS_IN], last_row - first_row
            df_row = output_row if k == layers - 1 else row_of(layout, k + 1)[BACK_ROW]
            width = last - first
            row = padded(units_in)
            corner = layer[PARTIAL_AT] + first_row * row + first
            at = layer[WEIGHTS_AT] + first_row * units_in + first
            stored = final and sums.size == 0 and width >= vector_lanes(scratch)  # at once, from the last tile
            target = advance(pointer(gradient), at * itemsize)
            sums_so_far = advance(pointer(partial), corner * itemsize)
            biases = advance(pointer(bias_sums), 8 * (layer[BIASES_AT] + first_row))
            t_stride = transposed_stride(width, itemsize)
            ones_at = tile_samples * (t_stride // itemsize)
            ones = advance(scratch, ones_at * itemsize)
            fill_row(ones, tile_samples)
            for t in range(tiles.shape[0]):
                count = min(tile_samples, samples - t * tile_samples)
                panels = whole_vectors(count, scratch)
                tile = row_of(tiles, t)
                dl_df = advance(tile, (df_row + first_row) * stride)
                h = advance(tile, (layer[ROW] + first) * stride)
                transpose(scratch, t_stride, h, stride, width, panels)
                finished, finished_row = sums_so_far, row * itemsize
                if stored and t == tiles.shape[0] - 1:
                    finished, finished_row = target, units_in * itemsize
                weight_gradient(
                    finished,
                    finished_row,
                    sums_so_far,
                    row * itemsize,
                    dl_df,
                    stride,
                    scratch,
                    t_stride,
                    rows,
                    width,
                    count,
                    0 if fresh and t == 0 else 1,
                )
                if first == 0:
                    dot_gradient(biases, 8, 8, biases, 8, dl_df, stride, h, stride, ones, rows, 1, 1, panels)
            if not stored and sums.size > 0:
                total = advance(pointer(sums), at * 8)
                if flush:
                    convert_rows(total, units_in * 8, sums_so_far, row * itemsize, rows, width, 1)
                if final:
                    convert_rows(target, units_in * itemsize, total, units_in * 8, rows, width, 0)
            elif not stored and final:
                copy_rows(target, units_in * itemsize, sums_so_far, row * itemsize, itemsize, rows, width)
            if final and first == 0:
                at = layer[BIASES_AT] + first_row
                convert_rows(advance(pointer(gradient), at * itemsize), 0, biases, 0, 1, rows, 0)
            number = claim(record)
        part(record, lane, lanes, 0)

    record = types.CPointer(from_dtype(dtype))
    lane = compile_callback(gradient_tasks, types.void(record, types.int64, types.int64))
    return entry(argument_types(dtype)), lane


@functools.cache
def transpose_weights(dtype):
    """The transposition of weights, compiled for float32 or float64."""
    digest = source_digest()

    def transpose_columns(target, source, units_out, units_in, first, last):
        """target[p, i] = source[i, p] for p in [first, last): rows of the target are padded to whole vectors."""
        digest  # noqa: B018 - a closure cell, see source_digest
        itemsize = source.itemsize
        row = padded(units_out) * itemsize
        whole = (last - first) // vector_lanes(source) * vector_lanes(source)
        start = advance(pointer(source), first * itemsize)
        transpose(advance(pointer(target), first * row), row, start, units_in * itemsize, units_out, whole)
        for i in range(units_out):
            for p in range(first + whole, last):
                target[p * padded(units_out) + i] = source[i * units_in + p]

    written, read = array_types(dtype)
    return compile_entry(transpose_columns, types.void(written(1, "C"), read(1, "C"), *[types.int64] * 4))
