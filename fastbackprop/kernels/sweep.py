"""One tile of samples through the whole network: forward, loss, backward, while it is in cache.

Rows of a tile, one cache-line-aligned row of samples each (`layout` gives the first row of every h_k):

    h_0 ... h_K | output, then dl/df_K | target | LOSS_ROWS of the loss | ones

h_{k+1} = ReLU(f_k) overwrites nothing; on the way back dl/df_{k-1} overwrites h_k once the weight gradient of layer
k has been taken, and dl/dh_0 overwrites the input: a tile is sum(D_k) rows and no more. Where weight gradients are
taken later, dl/dh_k have rows of their own behind the ones: in wide networks (see wide), and where a tile has several
lanes. Each of those takes a share of its samples forward and back, and then, when all have, a share of the rows of each
weight gradient, or of its columns: every sum has one owner, who adds it up in the order that a single lane would.

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
    FLUSH_TILES,
    IN_PLACE_UNITS,
    INPUT_BYTES,
    INPUT_COLUMNS,
    LOSS_ROWS,
    PANEL,
    PREDICT,
    SEED,
    STRIP,
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
from fastbackprop.kernels.simd import advance, pointer
from fastbackprop.kernels.team import claim, entry, meet, part, read_record


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
def share(total, lane, lanes):
    """Where the share of a lane begins; it ends where that of the next one does."""
    return total * lane // lanes


@inner
def part_of_gradient(layout, k, lane, lanes):
    """What a lane sums of the weight gradient of layer k: first row, rows, first column, columns."""
    units_in, units_out = layout[k, 0], layout[k, 1]
    if k == 0 and lanes > 1 and units_in >= INPUT_COLUMNS * lanes and along_units(units_in, units_out):
        blocks = units_in // PANEL
        first, last = share(blocks, lane, lanes) * PANEL, share(blocks, lane + 1, lanes) * PANEL
        return 0, units_out, first, (units_in if lane == lanes - 1 else last) - first
    first = share(units_out, lane, lanes)
    return first, share(units_out, lane + 1, lanes) - first, 0, units_in


@inner
def clear_sums(sums, layout, lane, lanes, stored):
    """Set to 0 what is added to: where the gradient is `stored` only what flush then reads. A lane's share."""
    for k in range(layout.shape[0]):
        units_in, units_out = layout[k, 0], layout[k, 1]
        first, last = share(units_out, lane, lanes), share(units_out, lane + 1, lanes)
        if not stored or not along_units(units_in, units_out):
            clear_tail(advance(sums, layout[k, 2] * 8), 0, 1, first * units_in, last * units_in)
        clear_tail(advance(sums, layout[k, 3] * 8), 0, 1, first, last)


@inner
def flush(gradient, sums, tile, itemsize, layout, lane, lanes, stored):
    """sums += partial sums, from padded rows to the packed order; or, where what is taken along the units has been
    `stored` in the gradient at once, gradient = sums for all else. A lane's share."""
    for k in range(layout.shape[0]):
        units_in, units_out = layout[k, 0], layout[k, 1]
        first = share(units_out, lane, lanes)
        rows = share(units_out, lane + 1, lanes) - first
        start, biases = layout[k, 2] + first * units_in, layout[k, 3] + first
        if stored:
            convert_rows(advance(gradient, biases * itemsize), 0, advance(sums, biases * 8), 0, 1, rows, 0)
        if along_units(units_in, units_out):
            if not stored:
                top, height, left, width = part_of_gradient(layout, k, lane, lanes)
                row = padded(units_in) * itemsize
                target = advance(sums, (layout[k, 2] + top * units_in + left) * 8)
                partial = advance(tile, (layout[k, 5] + left) * itemsize + top * row)
                convert_rows(target, units_in * 8, partial, row, height, width, 1)
        elif stored:
            convert_rows(advance(gradient, start * itemsize), 0, advance(sums, start * 8), 0, 1, rows * units_in, 0)


def argument_types(dtype):
    """The types of a sweep's arguments, see there."""
    written, read = array_types(dtype)
    double = types.Array(types.float64, 2, "C")
    table = types.Array(types.int64, 2, "C", readonly=True)
    columns = [written(2), read(2), read(2), read(1)]
    arrays = [written(1, "C"), double, *columns, read(1, "C"), table, table, written(2, "C")]
    return [*arrays, *[types.int64] * 5, types.float64, types.float64, types.int64]


@inner
def take_columns(rows, stride, places, place, units, first, count):
    """Copy columns of the caller's array at that place to rows of a tile."""
    source = advance(array_at(places, place, rows), first * places[place, 2])
    copy_rows(rows, stride, source, places[place, 1], places[place, 2], units, count)


@inner
def give_columns(rows, stride, places, place, units, first, count, itemsize):
    """Copy rows of a tile to columns of the caller's array at that place, contiguous along a row."""
    target = advance(array_at(places, place, rows), first * itemsize)
    copy_rows(target, places[place, 1], rows, stride, itemsize, units, count)


@inner
def rows_at(places, place, like, first, itemsize):
    """The rows of the caller's array at that place, from a column on, and their stride."""
    return advance(array_at(places, place, like), first * itemsize), places[place, 1]


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

        Columns are cut into chunks of chunk_samples. A lane takes one chunk after the other; all share a single one.
        The arguments, the same for all lanes:

        gradient       (P,) written in pack order where it is the gradient of a single chunk, with no more columns than
                       are summed in the element type: the first sum of the loss then is that of all. Else (0,)
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
            chunk_samples,
            fresh,
            mode,
            factor,
            scale,
            cross_entropy,
        ) = arguments_of(record)
        itemsize = tiles.itemsize
        stride = row_stride(tiles, tile_samples)
        layers = layout.shape[0]
        units_in, units_out = layout[0, 0], layout[layers - 1, 1]
        output_row = layout[layers - 1, 4] + layout[layers - 1, 0]
        target_row = output_row + units_out
        weight_row = target_row + units_out
        ones_row = weight_row + LOSS_ROWS
        parameters_start = pointer(parameters)
        zero = tiles.dtype.type(0.0)
        lowest = tiles.dtype.type(-np.inf)
        wants_gradients = accumulators.shape[1] > tile_samples
        has_columns = places.shape[0] > ALL_F * layers
        given = has_columns and mode != PREDICT
        wants_columns = places.shape[0] > ALL_DL_DH * layers
        # Rows of the caller's are read and written where they are, unless gradients are taken later, from the tile.
        gradients_later = not wants_gradients and mode != PREDICT
        has_rows = has_columns and not gradients_later
        for k in range(layers - 1 if has_rows else 0):
            if layout[k, 1] > IN_PLACE_UNITS:
                has_rows = False
        for place in range(ALL_F * layers, places.shape[0] if has_rows else 0):
            if places[place, 2] != itemsize:
                has_rows = False
        as_it_is = net_input.strides[1] == itemsize and 0 < net_input.strides[0] <= INPUT_BYTES and not gradients_later

        chunks = accumulators.shape[0]
        own_lane, met, team = lane, 0, lanes
        if chunks > 1:
            lane, lanes = 0, 1
        # Of a layer, dl/dh is behind the ones and its gradient is taken later.
        apart = lanes > 1 or not wants_gradients
        chunk = claim(record) if chunks > 1 else 0
        while chunk < chunks:
            tile = tiles[chunk if tile_each else own_lane if chunks > 1 else 0]
            sums = accumulators[chunk]
            loss_lanes = sums[sums.size - tile_samples :]
            start, sums_start = pointer(tile), pointer(sums)
            ones = advance(start, ones_row * stride)
            begin_chunk = chunk * chunk_samples
            end_chunk = min(begin_chunk + chunk_samples, net_input.shape[1])
            if lane == 0:
                fill_row(ones, tile_samples)
                fill_row(advance(start, weight_row * stride), tile_samples)
                for s in range(tile_samples if fresh else 0):
                    loss_lanes[s] = 0.0
            if fresh and wants_gradients:
                clear_sums(sums_start, layout, lane, lanes, gradient.size > 0)
            number = 0
            for first in range(begin_chunk, end_chunk, tile_samples):
                met = meet(record, lanes, met)
                count = min(tile_samples, end_chunk - first)
                samples = whole_vectors(count, tile)
                strips = (count + STRIP - 1) // STRIP
                begin = min(share(strips, lane, lanes) * STRIP, count)
                own = min(share(strips, lane + 1, lanes) * STRIP, count) - begin
                own_first = first + begin
                own_samples = whole_vectors(own, tile)
                strip = advance(start, begin * itemsize)
                output = advance(strip, output_row * stride)
                columns = advance(pointer(net_input), (own_first) * net_input.strides[1])
                h_0, h_0_stride = columns, net_input.strides[0]
                if not (as_it_is and count == samples):
                    h_0, h_0_stride = strip, stride
                    copy_rows(h_0, stride, columns, net_input.strides[0], net_input.strides[1], units_in, own)
                    clear_tail(h_0, stride, units_in, own, own_samples)

                in_place = has_rows and count == samples
                h, h_stride = h_0, h_0_stride
                for k in range(layers):
                    behind, f_stride = advance(strip, (layout[k, 4] + layout[k, 0]) * stride), stride  # f_k
                    hidden = has_columns and k < layers - 1
                    if given:
                        if not (in_place and hidden):
                            take_columns(behind, stride, places, ALL_H * layers + k, layout[k, 1], own_first, own)
                        continue
                    if in_place and hidden:
                        behind, f_stride = rows_at(places, ALL_F * layers + k, strip, own_first, itemsize)
                    forward_layer(
                        behind,
                        f_stride,
                        parameters_at(parameters_start, places, layout, k, ALL_WEIGHTS, itemsize),
                        layout[k, 0] * itemsize,
                        itemsize,
                        parameters_at(parameters_start, places, layout, k, ALL_BIASES, itemsize),
                        itemsize,
                        h,
                        h_stride,
                        layout[k, 1],
                        layout[k, 0],
                        own_samples,
                        zero if k < layers - 1 and not has_columns else lowest,
                    )
                    h, h_stride = behind, stride
                    if in_place and hidden:
                        h, h_stride = rows_at(places, ALL_H * layers + k, strip, own_first, itemsize)
                        relu_rows(h, h_stride, behind, f_stride, layout[k, 1], own_samples)
                    elif hidden:
                        give_columns(behind, stride, places, ALL_F * layers + k, layout[k, 1], own_first, own, itemsize)
                        relu_rows(behind, stride, behind, stride, layout[k, 1], own_samples)
                        give_columns(behind, stride, places, ALL_H * layers + k, layout[k, 1], own_first, own, itemsize)
                if mode == PREDICT:
                    columns = advance(pointer(columns_out), (own_first) * itemsize)
                    copy_rows(columns, columns_out.strides[0], output, stride, itemsize, units_out, own)
                    continue
                # Tails of hidden layers hold ReLU(biases ...), which may be infinite: 0 times that would be NaN.
                clear_tail(advance(strip, units_in * stride), stride, target_row - units_in, own, own_samples)

                columns = advance(pointer(target), (own_first) * target.strides[1])
                if mode == SEED:
                    copy_rows(output, stride, columns, target.strides[0], target.strides[1], units_out, own)
                else:
                    targets = advance(strip, target_row * stride)
                    copy_rows(targets, stride, columns, target.strides[0], target.strides[1], target.shape[0], own)
                    if sample_weight.size > 0:
                        weights = advance(strip, weight_row * stride)
                        step = sample_weight.strides[0]
                        columns = advance(pointer(sample_weight), (own_first) * step)
                        copy_rows(weights, stride, columns, 0, step, 1, own)
                    row = stride // itemsize
                    rows = tile[output_row * row + begin :]
                    lanes_of_loss = loss_lanes[begin:]
                    take_loss(
                        lanes_of_loss, rows, row, units_out, target.shape[0], own, mode, factor, scale, cross_entropy
                    )
                if wants_columns:
                    place = ALL_DL_DF * layers + layers - 1
                    give_columns(output, stride, places, place, units_out, own_first, own, itemsize)

                # Layer by layer, weight gradient and dl/dh; of several lanes, all of dl/dh and then the gradients. Of
                # these, each takes rows, from samples that all have transposed, or columns of the first layer's, from
                # those it has transposed.
                together = lanes > 1 and wants_gradients
                for step in range(2 * layers if together else layers):
                    k = layers - 1 - step % layers
                    if step == layers:
                        met = meet(record, lanes, met)
                    if k == 0:
                        h, h_stride = h_0, h_0_stride
                    elif in_place and given:
                        h, h_stride = rows_at(places, ALL_H * layers + k - 1, strip, own_first, itemsize)
                    else:
                        h, h_stride = advance(strip, layout[k, 4] * stride), stride
                    dl_df = (output_row if k == layers - 1 else layout[k + 1, 6 if apart else 4]) * stride
                    transposed = advance(start, layout[k if together else 0, 8] * itemsize)
                    t_stride = transposed_stride(layout[k, 0], itemsize)
                    top, height, left, width = part_of_gradient(layout, k, lane, lanes)
                    whole_rows = width == layout[k, 0]
                    if wants_gradients and step < layers and along_units(layout[k, 0], layout[k, 1]) and whole_rows:
                        own_rows = advance(transposed, begin * t_stride)
                        transpose(own_rows, t_stride, h, h_stride, layout[k, 0], own_samples)
                    if wants_gradients and (step >= layers or not together):
                        first_row = share(layout[k, 1], lane, lanes)
                        rows_taken = share(layout[k, 1], lane + 1, lanes) - first_row
                        dl_df_rows = advance(start, dl_df + first_row * stride)
                        first_column = 0
                        if along_units(layout[k, 0], layout[k, 1]):
                            first_column = layout[k, 0]
                            if not whole_rows:
                                columns = advance(h, left * h_stride - begin * itemsize)
                                target_columns = advance(transposed, left * itemsize)
                                transpose(target_columns, t_stride, columns, h_stride, width, samples)
                            row = padded(layout[k, 0]) * itemsize
                            partial = advance(start, (layout[k, 5] + left) * itemsize + top * row)
                            finished, finished_row = partial, row
                            if gradient.size > 0 and first + count == end_chunk:
                                finished_row = layout[k, 0] * itemsize
                                place = (layout[k, 2] + left) * itemsize + top * finished_row
                                finished = advance(pointer(gradient), place)
                            weight_gradient(
                                finished,
                                finished_row,
                                partial,
                                row,
                                advance(start, dl_df + top * stride),
                                stride,
                                advance(transposed, left * itemsize),
                                t_stride,
                                height,
                                width,
                                count,
                                number % FLUSH_TILES,
                            )
                        dot_gradient(
                            advance(sums_start, (layout[k, 2] + first_row * layout[k, 0]) * 8),
                            layout[k, 0] * 8,
                            8,
                            advance(sums_start, (layout[k, 3] + first_row) * 8),
                            8,
                            dl_df_rows,
                            stride,
                            advance(h, -begin * itemsize),
                            h_stride,
                            ones,
                            rows_taken,
                            layout[k, 0],
                            first_column,
                            samples,
                        )
                    if step < layers and (k > 0 or columns_out.shape[1] > 0):
                        dl_dh = advance(strip, layout[k, 6 if apart else 4] * stride)
                        weights = parameters_at(parameters_start, places, layout, k, ALL_WEIGHTS, itemsize)
                        row, column = layout[k, 0] * itemsize, itemsize
                        if layout[k, 7] > 0:
                            weights = advance(parameters_start, layout[k, 7] * itemsize)
                            row, column = itemsize, padded(layout[k, 1]) * itemsize
                        before = advance(strip, layout[k, 4] * stride)
                        # Where all_dl_dh is asked for too, the product is taken twice: that is what it costs.
                        for with_mask in range(0 if k == 0 or wants_columns else 1, 2 if k > 0 else 1):
                            if given and k > 0:
                                before = dl_dh
                                take_columns(
                                    before, stride, places, ALL_F * layers + k - 1, layout[k, 0], own_first, own
                                )
                            backward_layer(
                                dl_dh,
                                before,
                                stride,
                                weights,
                                row,
                                column,
                                advance(strip, dl_df),
                                stride,
                                layout[k, 1],
                                layout[k, 0],
                                own_samples,
                                with_mask,
                            )
                            if wants_columns and k > 0:
                                place = (ALL_DL_DF if with_mask else ALL_DL_DH) * layers + k - 1
                                give_columns(dl_dh, stride, places, place, layout[k, 0], own_first, own, itemsize)
                        clear_tail(dl_dh, stride, layout[k, 0], own, own_samples)
                if columns_out.shape[1] > 0:
                    columns = advance(pointer(columns_out), (own_first) * itemsize)
                    dl_dinput = advance(strip, layout[0, 6 if apart else 4] * stride)
                    copy_rows(columns, columns_out.strides[0], dl_dinput, stride, itemsize, units_in, own)
                number += 1
                last = number % FLUSH_TILES == 0 or first + count == end_chunk
                if wants_gradients and last:
                    flush(pointer(gradient), sums_start, start, itemsize, layout, lane, lanes, gradient.size > 0)
            if gradient.size > 0:
                for s in range(1, tile_samples if lane == 0 else 0):
                    loss_lanes[0] += loss_lanes[s]
            chunk = claim(record) if chunks > 1 else chunks
        part(record, own_lane, team, met)

    record = types.CPointer(from_dtype(dtype))
    lane = compile_callback(sweep_columns, types.void(record, types.int64, types.int64))
    return entry(argument_types(dtype)), lane
