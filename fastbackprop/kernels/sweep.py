"""One tile of samples through the whole network: forward, loss, backward, while it is in cache.

Rows of a tile, one cache-line-aligned row of samples each (`layout` gives the first row of every h_k):

    h_0 ... h_K | output, then dl/df_K | target | LOSS_ROWS of the loss | ones

h_{k+1} = ReLU(f_k) overwrites nothing; on the way back dl/df_{k-1} overwrites h_k once the weight gradient of layer
k has been taken, and dl/dh_0 overwrites the input: a tile is sum(D_k) rows and no more. Wide networks, whose weight
gradients are taken later (see wide), have rows of their own for them behind the ones.
"""

import functools

import numpy as np
from numba import types

from fastbackprop.kernels import FLUSH_TILES, LOSS_ROWS, PREDICT, SEED
from fastbackprop.kernels.jit import array_types, compile_entry, inner, source_digest
from fastbackprop.kernels.layers import (
    backward_layer,
    clear_tail,
    copy_rows,
    dot_gradient,
    fill_row,
    forward_layer,
    row_stride,
    transpose,
    weight_gradient,
    whole_vectors,
)
from fastbackprop.kernels.losses import take_loss
from fastbackprop.kernels.simd import advance, array_at, pointer

ALONG_UNITS = 24
"""Layers with fewer units on either side take the weight gradient along the samples: below, vectors of units are mostly
padding, or the transposition is not worth its product."""


@inner
def along_units(units_in, units_out):
    """Whether the weight gradient of a layer is taken along the units, from transposed activations."""
    return units_in >= ALONG_UNITS and units_out >= ALONG_UNITS


@inner
def padded(units_in):
    """The elements of a row of a padded array: see parameters.padded."""
    return ((units_in + 15) // 16 | 1) * 16


@inner
def transposed_stride(units_in, itemsize):
    """The bytes from one sample to the next in transposed activations: an odd number of cache lines or so."""
    return (units_in + 31) // 32 * 32 * itemsize + 16 * itemsize


@inner
def flush(accumulators, partial_sums, layout):
    """accumulators += partial_sums, from padded rows to the packed order, and partial_sums = 0."""
    for k in range(layout.shape[0]):
        units_in, units_out = layout[k, 0], layout[k, 1]
        if along_units(units_in, units_out):
            for i in range(units_out):
                source = layout[k, 5] + i * padded(units_in)
                target = layout[k, 2] + i * units_in
                row, sums = partial_sums[source : source + units_in], accumulators[target : target + units_in]
                for p in range(units_in):
                    sums[p] += row[p]
                    row[p] = row.dtype.type(0.0)


@inner
def clear_sums(sums, layout):
    """Set to 0 what take_gradient adds to in float64: biases, and weights that are not taken along the units."""
    for k in range(layout.shape[0]):
        start = layout[k, 3] if along_units(layout[k, 0], layout[k, 1]) else layout[k, 2]
        for p in range(start, layout[k, 3] + layout[k, 1]):
            sums[p] = 0.0


@inner
def store(gradient, sums, partial_sums, layout):
    """gradient = sums + partial_sums in pack order, where either holds what the other does not."""
    itemsize = gradient.itemsize
    for k in range(layout.shape[0]):
        units_in, units_out, start = layout[k, 0], layout[k, 1], layout[k, 2]
        if along_units(units_in, units_out):
            target = advance(pointer(gradient), start * itemsize)
            source = advance(pointer(partial_sums), layout[k, 5] * itemsize)
            copy_rows(target, units_in * itemsize, source, padded(units_in) * itemsize, itemsize, units_out, units_in)
            start = layout[k, 3]
        for p in range(start, layout[k, 3] + units_out):
            gradient[p] = sums[p]


@functools.cache
def locate(dtype):
    """What tells kernels where the arrays of a layer are, compiled for float32 or float64."""
    digest = source_digest()

    def locate_layer(table, k, weights, biases):
        """table[k, 8] and table[k, 9] = the addresses of weights (D_{k+1}, D_k) and biases (D_{k+1},), no more read."""
        digest  # noqa: B018 - a closure cell, see source_digest
        # From NumPy, an address takes 1 (ctypes.data) to 3 us (__array_interface__), this call 0.33 for both.
        table[k, 8], table[k, 9] = weights.ctypes.data, biases.ctypes.data

    _, read = array_types(dtype)
    return compile_entry(
        locate_layer, types.void(types.Array(types.int64, 2, "C"), types.int64, read(2, "C"), read(1, "C"))
    )


@functools.cache
def sweep(dtype):
    """The sweep over a batch, compiled for float32 or float64."""
    digest = source_digest()

    def sweep_columns(
        gradient,
        accumulators,
        columns_out,
        net_input,
        target,
        sample_weight,
        parameters,
        layout,
        tile,
        tile_samples,
        mode,
        factor,
        scale,
        cross_entropy,
    ):
        """Add the gradient and the loss of all columns of net_input to the accumulators.

        gradient       (P,) written in pack order where it is the gradient of these columns alone, and they are no more
                       than are summed in the element type: the accumulators need not be zero then, and the first sum
                       of the loss is that of all. Else (0,)
        accumulators   float64, added to: the gradient in pack order or nothing of it, then tile_samples sums of loss
        columns_out    written: (D_o, N) the output where mode is PREDICT; else (D_i, N) dl/dinput, or (D_i, 0) for none
        net_input      (D_i, N), target (D_o, N), or (1, N) class numbers, sample_weight (N,) or (0,): read, any
                       strides, any alignment
        parameters     in pack order, or transposed weights, or neither: read
        layout         a row for each layer, see parameters.layout_table, which says where the parameters are: read
        mode, factor   what is done at the output, see kernels and losses; scale: what dl/df_K is multiplied with;
                       cross_entropy: the address of a compiled one, where the mode needs it
        tile           workspace, starts at a cache line; tile_samples, a multiple of 64, is the length of its rows
        """
        digest  # noqa: B018 - a closure cell, see source_digest
        itemsize = tile.itemsize
        stride = row_stride(tile, tile_samples)
        layers = layout.shape[0]
        units_in, units_out = layout[0, 0], layout[layers - 1, 1]
        output_row = layout[layers - 1, 4] + layout[layers - 1, 0]
        target_row = output_row + units_out
        weight_row = target_row + units_out
        ones_row = weight_row + LOSS_ROWS

        start = pointer(tile)
        parameters_start = pointer(parameters)
        sums = pointer(accumulators)
        output = advance(start, output_row * stride)
        ones = advance(start, ones_row * stride)
        loss_lanes = accumulators[accumulators.size - tile_samples :]
        zero = tile.dtype.type(0.0)
        lowest = tile.dtype.type(-np.inf)
        fill_row(ones, tile_samples)
        weights_of_samples = advance(start, weight_row * stride)
        fill_row(weights_of_samples, tile_samples)
        widest = 0
        for k in range(layers):
            widest = max(widest, layout[k, 0])
        transposed = advance(start, (ones_row + 1) * stride)
        partial_at = (ones_row + 1) * (stride // itemsize) + tile_samples * transposed_stride(widest, 1)
        partial = advance(start, partial_at * itemsize)
        wants_gradients = accumulators.size > tile_samples
        partial_sums = tile[partial_at:]
        if wants_gradients:
            for p in range(partial_sums.size):
                partial_sums[p] = zero
        if gradient.size > 0:
            for s in range(min(tile_samples, net_input.shape[1])):
                loss_lanes[s] = 0.0
            clear_sums(accumulators, layout)

        for first in range(0, net_input.shape[1], tile_samples):
            count = min(tile_samples, net_input.shape[1] - first)
            samples = whole_vectors(count, tile)
            columns = advance(pointer(net_input), first * net_input.strides[1])
            copy_rows(start, stride, columns, net_input.strides[0], net_input.strides[1], units_in, count)
            clear_tail(start, stride, units_in, count, samples)

            for k in range(layers):
                forward_layer(
                    advance(start, (layout[k, 4] + layout[k, 0]) * stride),
                    stride,
                    array_at(layout, k, 8, advance(parameters_start, layout[k, 2] * itemsize)),
                    layout[k, 0] * itemsize,
                    itemsize,
                    array_at(layout, k, 9, advance(parameters_start, layout[k, 3] * itemsize)),
                    itemsize,
                    advance(start, layout[k, 4] * stride),
                    stride,
                    layout[k, 1],
                    layout[k, 0],
                    samples,
                    zero if k < layers - 1 else lowest,
                )
            if mode == PREDICT:
                columns = advance(pointer(columns_out), first * itemsize)
                copy_rows(columns, columns_out.strides[0], output, stride, itemsize, units_out, count)
                continue
            # Tails of hidden layers hold ReLU(biases ...), which may be infinite: 0 times that would be NaN.
            clear_tail(advance(start, units_in * stride), stride, output_row + units_out - units_in, count, samples)

            columns = advance(pointer(target), first * target.strides[1])
            if mode == SEED:
                copy_rows(output, stride, columns, target.strides[0], target.strides[1], units_out, count)
            else:
                targets = advance(start, target_row * stride)
                copy_rows(targets, stride, columns, target.strides[0], target.strides[1], target.shape[0], count)
                if sample_weight.size > 0:
                    step = sample_weight.strides[0]
                    copy_rows(
                        weights_of_samples, stride, advance(pointer(sample_weight), first * step), 0, step, 1, count
                    )
                row = stride // itemsize
                rows = tile[output_row * row :]
                take_loss(loss_lanes, rows, row, units_out, target.shape[0], count, mode, factor, scale, cross_entropy)

            for k in range(layers - 1, -1, -1):
                h = advance(start, layout[k, 4] * stride)
                dl_df = advance(start, (output_row if k == layers - 1 else layout[k + 1, 6]) * stride)
                if wants_gradients:
                    first_column = 0
                    if along_units(layout[k, 0], layout[k, 1]):
                        first_column = layout[k, 0]
                        t_stride = transposed_stride(layout[k, 0], itemsize)
                        transpose(transposed, t_stride, h, stride, layout[k, 0], samples)
                        weight_gradient(
                            advance(partial, layout[k, 5] * itemsize),
                            padded(layout[k, 0]) * itemsize,
                            dl_df,
                            stride,
                            transposed,
                            t_stride,
                            layout[k, 1],
                            layout[k, 0],
                            count,
                        )
                    dot_gradient(
                        advance(sums, layout[k, 2] * 8),
                        layout[k, 0] * 8,
                        8,
                        advance(sums, layout[k, 3] * 8),
                        8,
                        dl_df,
                        stride,
                        h,
                        stride,
                        ones,
                        layout[k, 1],
                        layout[k, 0],
                        first_column,
                        samples,
                    )
                if k > 0 or columns_out.shape[1] > 0:
                    dl_dh = advance(start, layout[k, 6] * stride)
                    weights = array_at(layout, k, 8, advance(parameters_start, layout[k, 2] * itemsize))
                    row, column = layout[k, 0] * itemsize, itemsize
                    if layout[k, 7] > 0:
                        weights = advance(parameters_start, layout[k, 7] * itemsize)
                        row, column = itemsize, padded(layout[k, 1]) * itemsize
                    backward_layer(
                        dl_dh,
                        h,
                        stride,
                        weights,
                        row,
                        column,
                        dl_df,
                        stride,
                        layout[k, 1],
                        layout[k, 0],
                        samples,
                        1 if k > 0 else 0,
                    )
                    clear_tail(dl_dh, stride, layout[k, 0], count, samples)
            if columns_out.shape[1] > 0:
                columns = advance(pointer(columns_out), first * itemsize)
                dl_dinput = advance(start, layout[0, 6] * stride)
                copy_rows(columns, columns_out.strides[0], dl_dinput, stride, itemsize, units_in, count)
            last = (first // tile_samples + 1) % FLUSH_TILES == 0 or first + count == net_input.shape[1]
            if wants_gradients and gradient.size == 0 and last:
                flush(accumulators, partial_sums, layout)
        if gradient.size > 0:
            store(gradient, accumulators, partial_sums, layout)
            for s in range(1, min(tile_samples, net_input.shape[1])):
                loss_lanes[0] += loss_lanes[s]

    written, read = array_types(dtype)
    return compile_entry(
        sweep_columns,
        types.void(
            written(1, "C"),
            types.Array(types.float64, 1, "C"),
            written(2),
            read(2),
            read(2),
            read(1),
            read(1, "C"),
            types.Array(types.int64, 2, "C", readonly=True),
            written(1, "C"),
            types.int64,
            types.int64,
            types.float64,
            types.float64,
            types.int64,
        ),
    )
