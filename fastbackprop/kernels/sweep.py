"""One tile of samples through the whole network: forward, loss, backward, while it is in cache.

Rows of a tile, one cache-line-aligned row of samples each (`layout` gives the first row of every h_k):

    h_0 ... h_K | output, then dl/df_K | target | LOSS_ROWS of the loss | ones

h_{k+1} = ReLU(f_k) overwrites nothing; on the way back dl/df_{k-1} overwrites h_k once the weight gradient of layer
k has been taken, and dl/dh_0 overwrites the input: a tile is sum(D_k) rows and no more. Where weight gradients are
taken later, dl/dh_k have rows of their own behind the ones: in wide networks (see wide), and where a tile has several
lanes. Each of those takes a share of its samples forward and back, and then, when all have, a share of the rows of each
weight gradient, or of its columns: every sum has one owner, who adds it up in the order that a single lane would. So
it is with the gradients of few chunks, when all of these are done.

The notebooks' passes are halves of this: one stops at the output, and gives out each f_k and h_{k+1}; the other begins
there, and takes in what it is given. Masks then come from f_k, which may have been edited, like h_{k+1}.

Rows of the caller's arrays may be used where they are, instead of rows of the tile: see INPUT_BYTES, IN_PLACE_UNITS.
"""

import functools

import numpy as np
from numba import from_dtype, types
from numba.extending import intrinsic
from numba.np.numpy_support import as_dtype

from fastbackprop.kernels import (
    ALL_BIASES,
    ALL_DL_DF,
    ALL_DL_DH,
    ALL_F,
    ALL_H,
    ALL_WEIGHTS,
    ALONG_UNITS,
    BACK_ROW,
    BIASES_AT,
    FLUSH_TILES,
    IN_PLACE_UNITS,
    INPUT_BYTES,
    INPUT_COLUMNS,
    LOSS_ROWS,
    PANEL,
    PARTIAL_AT,
    PREDICT,
    ROW,
    SEED,
    STRIP,
    TRANSPOSED_AT,
    TRANSPOSED_WEIGHTS_AT,
    UNITS_IN,
    UNITS_OUT,
    WEIGHTS_AT,
)
from fastbackprop.kernels.jit import array_types, compile_callback, inner, source_digest
from fastbackprop.kernels.layers import (
    backward_layer,
    clear_tail,
    convert_rows,
    copy_rows,
    dot_gradient,
    fill_row,
    forward_layer,
    relu_rows,
    row_stride,
    transpose,
    weight_gradient,
    whole_vectors,
)
from fastbackprop.kernels.lists import array_at, parameters_at
from fastbackprop.kernels.losses import take_loss
from fastbackprop.kernels.simd import advance, pointer, row_of
from fastbackprop.kernels.team import claim, entry, meet, part, read_record


@inner
def along_units(layer):
    """Whether the weight gradient of a layer is taken along the units, from transposed activations."""
    return layer[UNITS_IN] >= ALONG_UNITS and layer[UNITS_OUT] >= ALONG_UNITS


@inner
def padded(units_in):
    """The elements of a row of a padded array: see parameters.padded."""
    return ((units_in + 15) // 16 | 1) * 16


@inner
def transposed_stride(units_in, itemsize):
    """The bytes from one sample to the next in transposed activations: an odd number of cache lines or so."""
    return (units_in + 31) // 32 * 32 * itemsize + 16 * itemsize


@inner
def share(total, lane, lanes):
    """Where the share of a lane begins, and how much it is: it ends where that of the next one begins."""
    first = total * lane // lanes
    return first, total * (lane + 1) // lanes - first


@inner
def part_of_gradient(layer, along, lane, lanes):
    """What a lane sums of the weight gradient of a layer: first row, rows, first column, columns."""
    if along and layer[ROW] == 0 and lanes > 1 and layer[UNITS_IN] >= INPUT_COLUMNS * lanes:
        first, blocks = share(layer[UNITS_IN] // PANEL, lane, lanes)
        left = first * PANEL
        return 0, layer[UNITS_OUT], left, (layer[UNITS_IN] - left if lane == lanes - 1 else blocks * PANEL)
    first, rows = share(layer[UNITS_OUT], lane, lanes)
    return first, rows, 0, layer[UNITS_IN]


@inner
def clear_sums(sums, layer, first, rows, only_biases):
    """sums = 0, for rows of a layer: its biases and, unless `only_biases`, its weights."""
    clear_tail(advance(sums, (layer[BIASES_AT] + first) * 8), 0, 1, 0, rows)
    if not only_biases:
        clear_tail(advance(sums, (layer[WEIGHTS_AT] + first * layer[UNITS_IN]) * 8), 0, 1, 0, rows * layer[UNITS_IN])


@inner
def store_sums(gradient, sums, itemsize, layer, first, rows, only_biases):
    """gradient = sums, for rows of a layer: its biases and, unless `only_biases`, its weights."""
    biases = layer[BIASES_AT] + first
    convert_rows(advance(gradient, biases * itemsize), 0, advance(sums, biases * 8), 0, 1, rows, 0)
    if not only_biases:
        start, size = layer[WEIGHTS_AT] + first * layer[UNITS_IN], rows * layer[UNITS_IN]
        convert_rows(advance(gradient, start * itemsize), 0, advance(sums, start * 8), 0, 1, size, 0)


def argument_types(dtype):
    """The types of a sweep's arguments, see there."""
    written, read = array_types(dtype)
    double = types.Array(types.float64, 2, "C")
    table = types.Array(types.int64, 2, "C", readonly=True)
    columns = [written(2), read(2), read(2), read(1)]
    arrays = [written(1, "C"), written(2, "C"), double, *columns, read(1, "C"), table, table, written(2, "C")]
    return [*arrays, *[types.int64] * 5, types.float64, types.float64, types.int64]


@inner
def take_columns(rows, stride, place, units, first, count):
    """Copy columns of the caller's array at that place to rows of a tile."""
    source = advance(array_at(place, rows), first * place[2])
    copy_rows(rows, stride, source, place[1], place[2], units, count)


@inner
def give_columns(rows, stride, place, units, first, count, itemsize):
    """Copy rows of a tile to columns of the caller's array at that place, contiguous along a row."""
    target = advance(array_at(place, rows), first * itemsize)
    copy_rows(target, place[1], rows, stride, itemsize, units, count)


@inner
def rows_at(place, like, first, itemsize):
    """The rows of the caller's array at that place, from a column on."""
    return advance(array_at(place, like), first * itemsize)


@intrinsic
def arguments_of(typing_context, record):
    """The arguments that a sweep's record holds."""
    return read_record(types.Tuple(argument_types(as_dtype(record.dtype))), record)


@functools.cache
def sweep(dtype):
    """What starts a sweep over a batch, and what each of its lanes runs: compiled for float32 or float64."""
    digest = source_digest()

    def sweep_columns(record, lane, lanes):
        """Add the gradient and the loss of all columns of net_input to the accumulators: the work of one lane.

        Columns are cut into chunks, at multiples of chunk_unit, as even as these allow. A lane takes one chunk after
        the other; all share a single one.
        The arguments, the same for all lanes:

        gradient       (P,) written in pack order: the sum over the chunks, where these have no more columns than are
                       summed in the element type. The first sum of a chunk's loss then is all of it. Else (0,)
        gradients      workspace there, a row for each chunk but the first
        accumulators   float64, a row for each chunk, added to, or written where `fresh`: the gradient in pack order or
                       nothing of it, then tile_samples sums of loss
        columns_out    written: (D_o, N) the output where mode is PREDICT; else (D_i, N) dl/dinput, or (D_i, 0) for none
        net_input      (D_i, N), target (D_o, N), or (1, N) class numbers, sample_weight (N,) or (0,): read, any
                       strides, any alignment
        parameters     in pack order, or transposed weights, or neither: read
        places         where the parameters are, if they are arrays, and what the notebooks' passes hand over, see
                       kernels: read
        layout         a row for each layer, see parameters.layout_table: read
        tiles          workspace, a row for each lane, or for each chunk where tile_each is not 0. Rows start at a cache
                       line; tile_samples, a multiple of 64, is the length of a tile's rows
        mode, factor   what is done at the output, see kernels and losses; scale: what dl/df_K is multiplied with;
                       cross_entropy: the address of a compiled one, where the mode needs it
        """
        digest  # noqa: B018 - a closure cell, see source_digest
        (
            gradient,
            gradients,
            accumulators,
            columns_out,
            net_input,
            target,
            sample_weight,
            parameters,
            places,
            layout,
            tiles,
            tile_samples,
            tile_each,
            chunk_unit,
            fresh,
            mode,
            factor,
            scale,
            cross_entropy,
        ) = arguments_of(record)
        itemsize = tiles.itemsize
        stride = row_stride(tiles, tile_samples)
        layers = layout.shape[0]
        units_in, units_out = row_of(layout, 0)[UNITS_IN], row_of(layout, layers - 1)[UNITS_OUT]
        output_row = row_of(layout, layers - 1)[ROW] + row_of(layout, layers - 1)[UNITS_IN]
        target_row = output_row + units_out
        weight_row = target_row + units_out
        ones_row = weight_row + LOSS_ROWS
        inputs, (input_row, input_column) = pointer(net_input), net_input.strides
        targets, target_rows, (target_stride, target_column) = pointer(target), target.shape[0], target.strides
        parameters_start = pointer(parameters)
        zero = tiles.dtype.type(0.0)
        lowest = tiles.dtype.type(-np.inf)
        samples_end, chunks, sums_size = net_input.shape[1], accumulators.shape[0], accumulators.shape[1]
        wants_gradients, stored = sums_size > tile_samples, gradient.size > 0
        is_weighted, wants_dl_dinput = sample_weight.size > 0, columns_out.shape[1] > 0
        has_columns = places.shape[0] > ALL_F * layers
        given = has_columns and mode != PREDICT
        wants_columns = places.shape[0] > ALL_DL_DH * layers
        # Rows of the caller's are read and written where they are, unless gradients are taken later, from the tile.
        gradients_later = not wants_gradients and mode != PREDICT
        has_rows = has_columns and not gradients_later
        for k in range(layers - 1 if has_rows else 0):
            if row_of(layout, k)[UNITS_OUT] > IN_PLACE_UNITS:
                has_rows = False
        for row in range(ALL_F * layers, places.shape[0] if has_rows else 0):
            if row_of(places, row)[2] != itemsize:
                has_rows = False
        as_it_is = input_column == itemsize and 0 < input_row <= INPUT_BYTES and not gradients_later

        own_lane, met, team = lane, 0, lanes
        if chunks > 1:
            lane, lanes = 0, 1
        # Of a layer, dl/dh is behind the ones and its gradient is taken later.
        apart = lanes > 1 or not wants_gradients
        back_row = BACK_ROW if apart else ROW
        chunk = claim(record) if chunks > 1 else 0
        while chunk < chunks:
            tile = row_of(tiles, chunk if tile_each else own_lane if chunks > 1 else 0)
            sums = row_of(accumulators, chunk)
            finished_gradient = pointer(gradient) if chunk == 0 else row_of(gradients, chunk - 1)
            loss_lanes = advance(sums, (sums_size - tile_samples) * 8)
            ones = advance(tile, ones_row * stride)
            begin_chunk, length = share((samples_end + chunk_unit - 1) // chunk_unit, chunk, chunks)
            begin_chunk *= chunk_unit
            end_chunk = min(begin_chunk + length * chunk_unit, samples_end)
            if lane == 0:
                fill_row(ones, tile_samples)
                fill_row(advance(tile, weight_row * stride), tile_samples)
                if fresh:
                    clear_tail(loss_lanes, 0, 1, 0, tile_samples)
            for k in range(layers if fresh and wants_gradients else 0):
                layer = row_of(layout, k)
                first_row, rows = share(layer[UNITS_OUT], lane, lanes)
                clear_sums(sums, layer, first_row, rows, stored and along_units(layer))
            number = 0
            for first in range(begin_chunk, end_chunk, tile_samples):
                met = meet(record, lanes, met)
                count = min(tile_samples, end_chunk - first)
                samples = whole_vectors(count, tile)
                begin, strips = share((count + STRIP - 1) // STRIP, lane, lanes)
                begin = min(begin * STRIP, count)
                own = min(begin + strips * STRIP, count) - begin
                own_first = first + begin
                own_samples = whole_vectors(own, tile)
                strip = advance(tile, begin * itemsize)
                output = advance(strip, output_row * stride)
                h_0, h_0_stride = advance(inputs, own_first * input_column), input_row
                if not (as_it_is and count == samples):
                    copy_rows(strip, stride, h_0, input_row, input_column, units_in, own)
                    h_0, h_0_stride = strip, stride
                    clear_tail(h_0, stride, units_in, own, own_samples)

                in_place = has_rows and count == samples
                h, h_stride = h_0, h_0_stride
                for k in range(layers):
                    layer = row_of(layout, k)
                    behind, f_stride = advance(strip, (layer[ROW] + layer[UNITS_IN]) * stride), stride  # f_k
                    hidden = has_columns and k < layers - 1
                    f_place, h_place = row_of(places, ALL_F * layers + k), row_of(places, ALL_H * layers + k)
                    if given:
                        if not (in_place and hidden):
                            take_columns(behind, stride, h_place, layer[UNITS_OUT], own_first, own)
                        continue
                    if in_place and hidden:
                        behind, f_stride = rows_at(f_place, strip, own_first, itemsize), f_place[1]
                    forward_layer(
                        behind,
                        f_stride,
                        parameters_at(parameters_start, places, layout, k, ALL_WEIGHTS, itemsize),
                        layer[UNITS_IN] * itemsize,
                        itemsize,
                        parameters_at(parameters_start, places, layout, k, ALL_BIASES, itemsize),
                        itemsize,
                        h,
                        h_stride,
                        layer[UNITS_OUT],
                        layer[UNITS_IN],
                        own_samples,
                        zero if k < layers - 1 and not has_columns else lowest,
                    )
                    h, h_stride = behind, stride
                    if in_place and hidden:
                        h, h_stride = rows_at(h_place, strip, own_first, itemsize), h_place[1]
                        relu_rows(h, h_stride, behind, f_stride, layer[UNITS_OUT], own_samples)
                    elif hidden:
                        give_columns(behind, stride, f_place, layer[UNITS_OUT], own_first, own, itemsize)
                        relu_rows(behind, stride, behind, stride, layer[UNITS_OUT], own_samples)
                        give_columns(behind, stride, h_place, layer[UNITS_OUT], own_first, own, itemsize)
                if mode == PREDICT:
                    net_output = advance(pointer(columns_out), own_first * itemsize)
                    copy_rows(net_output, columns_out.strides[0], output, stride, itemsize, units_out, own)
                    continue
                # Tails of hidden layers hold ReLU(biases ...), which may be infinite: 0 times that would be NaN.
                clear_tail(advance(strip, units_in * stride), stride, target_row - units_in, own, own_samples)

                y = advance(targets, own_first * target_column)
                if mode == SEED:
                    copy_rows(output, stride, y, target_stride, target_column, units_out, own)
                else:
                    y_rows = advance(strip, target_row * stride)
                    copy_rows(y_rows, stride, y, target_stride, target_column, target_rows, own)
                    if is_weighted:
                        step = sample_weight.strides[0]
                        weights = advance(pointer(sample_weight), own_first * step)
                        copy_rows(advance(strip, weight_row * stride), stride, weights, 0, step, 1, own)
                    own_losses = advance(loss_lanes, begin * 8)
                    row = stride // itemsize
                    take_loss(own_losses, output, row, units_out, target_rows, own, mode, factor, scale, cross_entropy)
                if wants_columns:
                    place = row_of(places, ALL_DL_DF * layers + layers - 1)
                    give_columns(output, stride, place, units_out, own_first, own, itemsize)

                # Layer by layer, weight gradient and dl/dh; of several lanes, all of dl/dh and then the gradients. Of
                # these, each takes rows, from samples that all have transposed, or columns of the first layer's, from
                # those it has transposed.
                together = lanes > 1 and wants_gradients
                for step in range(2 * layers if together else layers):
                    k = layers - 1 - step % layers
                    layer = row_of(layout, k)
                    if step == layers:
                        met = meet(record, lanes, met)
                    h, h_stride = advance(strip, layer[ROW] * stride), stride
                    if k == 0:
                        h, h_stride = h_0, h_0_stride
                    elif in_place and given:
                        place = row_of(places, ALL_H * layers + k - 1)
                        h, h_stride = rows_at(place, strip, own_first, itemsize), place[1]
                    dl_df = (output_row if k == layers - 1 else row_of(layout, k + 1)[back_row]) * stride
                    transposed = advance(tile, row_of(layout, k if together else 0)[TRANSPOSED_AT] * itemsize)
                    t_stride = transposed_stride(layer[UNITS_IN], itemsize)
                    along = along_units(layer)
                    top, height, left, width = part_of_gradient(layer, along, lane, lanes)
                    whole_rows = width == layer[UNITS_IN]
                    if wants_gradients and step < layers and along and whole_rows:
                        transpose(advance(transposed, begin * t_stride), t_stride, h, h_stride, width, own_samples)
                    if wants_gradients and (step >= layers or not together):
                        first_row, rows = share(layer[UNITS_OUT], lane, lanes)
                        all_h = advance(h, -begin * itemsize)
                        first_column = 0
                        if along:
                            first_column = layer[UNITS_IN]
                            transposed = advance(transposed, left * itemsize)
                            if not whole_rows:
                                own_columns = advance(all_h, left * h_stride)
                                transpose(transposed, t_stride, own_columns, h_stride, width, samples)
                            row = padded(layer[UNITS_IN]) * itemsize
                            partial = advance(tile, (layer[PARTIAL_AT] + left) * itemsize + top * row)
                            finished, finished_row = partial, row
                            if stored and first + count == end_chunk:
                                finished_row = layer[UNITS_IN] * itemsize
                                corner = (layer[WEIGHTS_AT] + left) * itemsize + top * finished_row
                                finished = advance(finished_gradient, corner)
                            weight_gradient(
                                finished,
                                finished_row,
                                partial,
                                row,
                                advance(tile, dl_df + top * stride),
                                stride,
                                transposed,
                                t_stride,
                                height,
                                width,
                                count,
                                number % FLUSH_TILES,
                            )
                        dot_gradient(
                            advance(sums, (layer[WEIGHTS_AT] + first_row * layer[UNITS_IN]) * 8),
                            layer[UNITS_IN] * 8,
                            8,
                            advance(sums, (layer[BIASES_AT] + first_row) * 8),
                            8,
                            advance(tile, dl_df + first_row * stride),
                            stride,
                            all_h,
                            h_stride,
                            ones,
                            rows,
                            layer[UNITS_IN],
                            first_column,
                            samples,
                        )
                    if step < layers and (k > 0 or wants_dl_dinput):
                        dl_dh = advance(strip, layer[back_row] * stride)
                        weights = parameters_at(parameters_start, places, layout, k, ALL_WEIGHTS, itemsize)
                        row, column = layer[UNITS_IN] * itemsize, itemsize
                        if layer[TRANSPOSED_WEIGHTS_AT] > 0:
                            weights = advance(parameters_start, layer[TRANSPOSED_WEIGHTS_AT] * itemsize)
                            row, column = itemsize, padded(layer[UNITS_OUT]) * itemsize
                        before = advance(strip, layer[ROW] * stride)
                        # Where all_dl_dh is asked for too, the product is taken twice: that is what it costs.
                        for with_mask in range(0 if k == 0 or wants_columns else 1, 2 if k > 0 else 1):
                            if given and k > 0:
                                before, place = dl_dh, row_of(places, ALL_F * layers + k - 1)
                                take_columns(before, stride, place, layer[UNITS_IN], own_first, own)
                            backward_layer(
                                dl_dh,
                                before,
                                stride,
                                weights,
                                row,
                                column,
                                advance(strip, dl_df),
                                stride,
                                layer[UNITS_OUT],
                                layer[UNITS_IN],
                                own_samples,
                                with_mask,
                            )
                            if wants_columns and k > 0:
                                place = row_of(places, (ALL_DL_DF if with_mask else ALL_DL_DH) * layers + k - 1)
                                give_columns(dl_dh, stride, place, layer[UNITS_IN], own_first, own, itemsize)
                        clear_tail(dl_dh, stride, layer[UNITS_IN], own, own_samples)
                if wants_dl_dinput:
                    own_columns = advance(pointer(columns_out), own_first * itemsize)
                    dl_dinput = advance(strip, row_of(layout, 0)[back_row] * stride)
                    copy_rows(own_columns, columns_out.strides[0], dl_dinput, stride, itemsize, units_in, own)
                number += 1
                last = number % FLUSH_TILES == 0 or first + count == end_chunk
                for k in range(layers if wants_gradients and last else 0):
                    layer = row_of(layout, k)
                    along = along_units(layer)
                    if stored:
                        first_row, rows = share(layer[UNITS_OUT], lane, lanes)
                        store_sums(finished_gradient, sums, itemsize, layer, first_row, rows, along)
                    elif along:
                        top, height, left, width = part_of_gradient(layer, along, lane, lanes)
                        row = padded(layer[UNITS_IN]) * itemsize
                        total = advance(sums, (layer[WEIGHTS_AT] + top * layer[UNITS_IN] + left) * 8)
                        partial = advance(tile, (layer[PARTIAL_AT] + left) * itemsize + top * row)
                        convert_rows(total, layer[UNITS_IN] * 8, partial, row, height, width, 1)
            if stored and lane == 0:
                for s in range(1, tile_samples):
                    loss_lanes[0] += loss_lanes[s]
            chunk = claim(record) if chunks > 1 else chunks
        if stored and chunks > 1:
            met = meet(record, team, met)
            first, count = share(gradient.size, own_lane, team)
            total = advance(pointer(gradient), first * itemsize)
            for k in range(chunks - 1):
                convert_rows(total, 0, advance(row_of(gradients, k), first * itemsize), 0, 1, count, 1)
        part(record, own_lane, team, met)

    record = types.CPointer(from_dtype(dtype))
    lane = compile_callback(sweep_columns, types.void(record, types.int64, types.int64))
    return entry(argument_types(dtype)), lane
