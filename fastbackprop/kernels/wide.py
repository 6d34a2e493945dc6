"""The weight gradients of wide networks: a block of one layer, over many tiles that a sweep has gone through.

Where private copies of the gradient for each thread would be too large, threads share the work by blocks instead:
each weight gradient is owned by one call, which sums over all tiles in their order.
"""

import functools

from numba import types

from fastbackprop.kernels.jit import array_types, compile_entry, source_digest
from fastbackprop.kernels.layers import dot_gradient, fill_row, row_stride, transpose, weight_gradient, whole_vectors
from fastbackprop.kernels.simd import advance, pointer, vector_lanes
from fastbackprop.kernels.sweep import padded, transposed_stride


@functools.cache
def wide_gradient(dtype):
    """The gradient of a block of weights, compiled for float32 or float64."""
    digest = source_digest()

    def gradient_columns(
        gradient,
        sums,
        bias_sums,
        partial,
        scratch,
        tiles,
        layout,
        tile_samples,
        samples,
        k,
        first_row,
        last_row,
        first,
        last,
        fresh,
        flush,
        final,
    ):
        """Add the gradient of a block of weights k, and of its rows' biases if its first column is 0, over all tiles.

        The block is rows [first_row, last_row), columns [first, last).

        gradient    (P,) in pack order, written where `final`
        sums        (P,) float64, or (0,) where there is one flush only: added to where `flush`
        bias_sums   (P,) float64, added to at the biases
        partial     padded sums of the weights' gradient in the element type, written where `fresh`, else added to
        scratch     room for a tile of transposed columns and a row of ones
        tiles       (number, size of a tile): read; `samples` in all, tile_samples in each but the last
        """
        digest  # noqa: B018 - a closure cell, see source_digest
        itemsize = tiles.itemsize
        stride = row_stride(tiles, tile_samples)
        layers = layout.shape[0]
        units_in, rows = layout[k, 0], last_row - first_row
        output_row = layout[layers - 1, 4] + layout[layers - 1, 0]
        df_row = output_row if k == layers - 1 else layout[k + 1, 6]
        width = last - first
        row = padded(units_in)
        corner = layout[k, 5] + first_row * row + first
        at = layout[k, 2] + first_row * units_in + first
        stored = final and sums.size == 0 and width >= vector_lanes(scratch)  # at once, from the last tile
        t_stride = transposed_stride(width, itemsize)
        ones_at = tile_samples * (t_stride // itemsize)
        ones = advance(pointer(scratch), ones_at * itemsize)
        fill_row(ones, tile_samples)
        for t in range(tiles.shape[0]):
            count = min(tile_samples, samples - t * tile_samples)
            panels = whole_vectors(count, scratch)
            tile = pointer(tiles[t])
            dl_df = advance(tile, (df_row + first_row) * stride)
            h = advance(tile, (layout[k, 4] + first) * stride)
            transpose(pointer(scratch), t_stride, h, stride, width, panels)
            sums_so_far = advance(pointer(partial), corner * itemsize)
            finished, finished_row = sums_so_far, row * itemsize
            if stored and t == tiles.shape[0] - 1:
                finished, finished_row = advance(pointer(gradient), at * itemsize), units_in * itemsize
            weight_gradient(
                finished,
                finished_row,
                sums_so_far,
                row * itemsize,
                dl_df,
                stride,
                pointer(scratch),
                t_stride,
                rows,
                width,
                count,
                0 if fresh and t == 0 else 1,
            )
            if first == 0:
                biases = advance(pointer(bias_sums), 8 * (layout[k, 3] + first_row))
                dot_gradient(biases, 8, 8, biases, 8, dl_df, stride, h, stride, ones, rows, 1, 1, panels)
        for i in range(0 if stored else rows):
            part = partial[corner + i * row : corner + i * row + width]
            if sums.size == 0:
                if final:
                    for p in range(width):
                        gradient[at + i * units_in + p] = part[p]
            else:
                total = sums[at + i * units_in : at + i * units_in + width]
                if flush:
                    for p in range(width):
                        total[p] += part[p]
                if final:
                    for p in range(width):
                        gradient[at + i * units_in + p] = total[p]
        if final and first == 0:
            for i in range(layout[k, 3] + first_row, layout[k, 3] + last_row):
                gradient[i] = bias_sums[i]

    written, _ = array_types(dtype)
    double = types.Array(types.float64, 1, "C")
    table = types.Array(types.int64, 2, "C", readonly=True)
    arrays = [written(1, "C"), double, double, written(1, "C"), written(1, "C"), written(2, "C"), table]
    return compile_entry(gradient_columns, types.void(*arrays, *[types.int64] * 7, *[types.boolean] * 3))


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
