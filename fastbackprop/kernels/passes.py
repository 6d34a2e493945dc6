"""One layer over all columns of the caller's own arrays: the forward and the backward pass of the notebooks.

The arrays are the caller's, of any strides and alignment, and hold one layer each; tile by tile they are copied into
the workspace, where rows start at cache lines and tails are zero, and the results are copied out again.
"""

import functools

import numpy as np
from numba import types

from fastbackprop.kernels.few import forward_samples, relu, sum_rows
from fastbackprop.kernels.jit import array_types, compile_entry, source_digest
from fastbackprop.kernels.layers import (
    backward_layer,
    clear_tail,
    copy_rows,
    dot_gradient,
    fill_row,
    forward_layer,
    row_stride,
    whole_vectors,
)
from fastbackprop.kernels.simd import advance, pointer


@functools.cache
def forward_pass(dtype):
    """The forward pass of one layer, compiled for float32 or float64."""
    digest = source_digest()

    def forward_columns(f, h_next, weights, biases, h, tile, tile_samples):
        """f = weights h + biases, and h_next = ReLU(f) unless h_next has no columns.

        f (D_out, N), h_next (D_out, N) or (D_out, 0): written, contiguous along a row;  weights (D_out, D_in),
        biases (D_out,), h (D_in, N): read, any strides;  tile: workspace of D_in + D_out rows.

        With tile_samples = 1 (and N = 1, f and the rows of weights contiguous) lanes go along the inputs, see few.
        """
        digest  # noqa: B018 - a closure cell, see source_digest
        itemsize = tile.itemsize
        stride = row_stride(tile, tile_samples)
        units_out, units_in = weights.shape
        if tile_samples == 1:
            for p in range(units_in):
                tile[p] = h[p, 0]
            forward_samples(
                pointer(f),
                itemsize,
                pointer(weights),
                weights.strides[0],
                pointer(biases),
                biases.strides[0],
                pointer(tile),
                itemsize,
                units_out,
                units_in,
                1,
            )
            for i in range(h_next.size):
                value = f[i, 0]
                h_next[i, 0] = max(value, tile.dtype.type(0.0))
            return
        lowest = tile.dtype.type(-np.inf)
        h_tile = pointer(tile)
        f_tile = advance(h_tile, units_in * stride)
        for first in range(0, h.shape[1], tile_samples):
            count = min(tile_samples, h.shape[1] - first)
            samples = whole_vectors(count, tile)
            source = advance(pointer(h), first * h.strides[1])
            copy_rows(h_tile, stride, source, h.strides[0], h.strides[1], units_in, count)
            clear_tail(h_tile, stride, units_in, count, samples)
            forward_layer(
                f_tile,
                stride,
                pointer(weights),
                weights.strides[0],
                weights.strides[1],
                pointer(biases),
                biases.strides[0],
                h_tile,
                stride,
                units_out,
                units_in,
                samples,
                lowest,
            )
            copy_rows(advance(pointer(f), first * itemsize), f.strides[0], f_tile, stride, itemsize, units_out, count)
            if h_next.shape[1] > 0:
                for i in range(units_out):
                    at = (units_in + i) * (stride // itemsize)
                    relu(tile[at : at + count])
                target = advance(pointer(h_next), first * itemsize)
                copy_rows(target, h_next.strides[0], f_tile, stride, itemsize, units_out, count)

    written, read = array_types(dtype)
    return compile_entry(
        forward_columns, types.void(written(2), written(2), read(2), read(1), read(2), written(1, "C"), types.int64)
    )


@functools.cache
def backward_pass(dtype):
    """The backward pass of one layer, compiled for float32 or float64."""
    digest = source_digest()

    def backward_columns(gradient, sums, dl_dh, dl_df_before, weights, dl_df, h, f_before, tile, tile_samples, offset):
        """Add dl_df h^T and sum dl_df to the sums; dl_dh = weights^T dl_df; dl_df_before = dl_dh * [f_before > 0].

        sums: float64, added to; dl_dweights (D_out, D_in) starts at `offset`, dl_dbiases (D_out,) follows it
        dl_dh, dl_df_before (D_in, N): written, contiguous along a row; those with no columns are not wanted
        weights (D_out, D_in), dl_df (D_out, N), h and f_before (D_in, N): read, any strides
        tile: workspace of D_out + D_in + 1 rows

        With tile_samples = 1 (and N = 1, dl_dh and dl_df_before contiguous, the rows of weights contiguous) lanes go
        along the inputs, see few, and the gradient (P,) is written instead of the sums.
        """
        digest  # noqa: B018 - a closure cell, see source_digest
        itemsize = tile.itemsize
        stride = row_stride(tile, tile_samples)
        units_out, units_in = weights.shape
        df_tile = pointer(tile)
        if tile_samples == 1:
            start = advance(pointer(gradient), offset * itemsize)
            h_start = advance(df_tile, units_out * itemsize)
            row = units_in * itemsize
            for i in range(units_out):
                tile[i] = dl_df[i, 0]
                gradient[offset + units_out * units_in + i] = dl_df[i, 0]
            for p in range(units_in):
                tile[units_out + p] = h[p, 0]
            sum_rows(start, row, start, df_tile, itemsize, itemsize, h_start, row, units_out, units_in, 1, 0)
            for masked in range(2):
                target = dl_df_before if masked else dl_dh
                if target.size == 0:
                    continue
                before = pointer(target)
                if masked:
                    before = h_start
                    for p in range(units_in):
                        tile[units_out + p] = f_before[p, 0]
                sum_rows(
                    pointer(target),
                    row,
                    before,
                    df_tile,
                    itemsize,
                    itemsize,
                    pointer(weights),
                    weights.strides[0],
                    1,
                    units_in,
                    units_out,
                    masked,
                )
            return
        h_tile = advance(df_tile, units_out * stride)
        ones = advance(df_tile, (units_out + units_in) * stride)
        fill_row(ones, tile_samples)
        for first in range(0, h.shape[1], tile_samples):
            count = min(tile_samples, h.shape[1] - first)
            samples = whole_vectors(count, tile)
            source = advance(pointer(dl_df), first * dl_df.strides[1])
            copy_rows(df_tile, stride, source, dl_df.strides[0], dl_df.strides[1], units_out, count)
            source = advance(pointer(h), first * h.strides[1])
            copy_rows(h_tile, stride, source, h.strides[0], h.strides[1], units_in, count)
            clear_tail(df_tile, stride, units_out + units_in, count, samples)
            dot_gradient(
                advance(pointer(sums), 8 * offset),
                8 * units_in,
                8,
                advance(pointer(sums), 8 * (offset + units_out * units_in)),
                8,
                df_tile,
                stride,
                h_tile,
                stride,
                ones,
                units_out,
                units_in,
                0,
                samples,
            )
            # h has been used: its rows take f_before for the mask, then the product. Both are asked for only where the
            # caller wants the intermediates; computing the product twice is what that costs.
            for masked in range(2):
                target = dl_df_before if masked else dl_dh
                if target.shape[1] == 0:
                    continue
                if masked:
                    source = advance(pointer(f_before), first * f_before.strides[1])
                    copy_rows(h_tile, stride, source, f_before.strides[0], f_before.strides[1], units_in, count)
                backward_layer(
                    h_tile,
                    h_tile,
                    stride,
                    pointer(weights),
                    weights.strides[0],
                    weights.strides[1],
                    df_tile,
                    stride,
                    units_out,
                    units_in,
                    samples,
                    masked,
                )
                columns = advance(pointer(target), first * itemsize)
                copy_rows(columns, target.strides[0], h_tile, stride, itemsize, units_in, count)

    written, read = array_types(dtype)
    arrays = [
        written(1, "C"),
        types.Array(types.float64, 1, "C"),
        written(2),
        written(2),
        read(2),
        read(2),
        read(2),
        read(2),
        written(1, "C"),
    ]
    return compile_entry(backward_columns, types.void(*arrays, types.int64, types.int64))
