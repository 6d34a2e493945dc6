"""Few samples: the whole network with vector lanes along the units, in one call.

With fewer samples than a vector has lanes, tiles of samples would be padding for the most part. Here activations are
stored sample by sample, units contiguous, and weights are used as they come, row by row:

    forward     f[s, i]      = biases[i] + sum_p weights[i, p] h[s, p]      dot products along the inputs
    backward    dl_dh[s, p]  = sum_i dl_df[s, i] weights[i, p]              lanes along the inputs
    gradient    dw[i, p]     = sum_s dl_df[s, i] h[s, p]                    lanes along the inputs

The last two are one kernel. What is left of a row behind its last whole vector is gone through element by element:
nothing is read or written behind a row's end.
"""

import functools

from numba import types
from numba.extending import intrinsic

from fastbackprop.kernels import (
    ALL_BIASES,
    ALL_DL_DF,
    ALL_DL_DH,
    ALL_F,
    ALL_H,
    ALL_WEIGHTS,
    BIASES_AT,
    PREDICT,
    ROW,
    SEED,
    UNITS_IN,
    UNITS_OUT,
    WEIGHTS_AT,
)
from fastbackprop.kernels.jit import array_types, compile_entry, inner, source_digest
from fastbackprop.kernels.layers import clear_tail, copy_rows, fill_row
from fastbackprop.kernels.lists import array_at, parameters_at
from fastbackprop.kernels.losses import take_loss
from fastbackprop.kernels.microkernels import dots, multiply
from fastbackprop.kernels.simd import advance, outlined, pointer, row_of

ROWS = 64
"""The rows of weights that the backward product goes through at once: as many pages as a first-level TLB has."""


@intrinsic
def forward_samples(
    typing_context, f, f_stride, weights, row, biases, bias_stride, h, h_stride, units_out, units_in, samples
):
    """f[s, i] = biases[i] + sum_p weights[i, p] h[s, p].

    f is written, the others are read; f must not alias h. Elements of weights, f and h are contiguous along a row.
    """

    def emit(simd, f, f_stride, weights, row, biases, bias_stride, h, h_stride, units_out, units_in, samples):
        builder, scalar = simd.builder, simd.scalar()
        whole = simd.mul(builder.sdiv(units_in, simd.int(simd.lanes)), simd.lanes)
        rest = builder.sub(units_in, whole)
        for s, width in simd.tiles(samples, simd.tile_vectors):
            operands = [simd.behind(h, simd.mul(simd.add(s, q), h_stride)) for q in range(width)]

            def finish(i, q, total, s=s):
                total = builder.fadd(total, simd.load_scalar(biases, simd.mul(i, bias_stride)))
                place = simd.add(simd.mul(simd.add(s, q), f_stride), simd.mul(i, simd.itemsize))
                simd.store(total, f, place)

            dots(simd, weights, row, operands, units_out, whole, finish)
        with builder.if_then(builder.icmp_signed(">", rest, simd.int(0))), simd.loop(samples) as s:
            behind = simd.mul(whole, simd.itemsize)
            with simd.loop(units_out) as i:
                place = simd.add(simd.mul(s.index, f_stride), simd.mul(i.index, simd.itemsize))
                (total,) = scalar.variables(1, scalar.load(f, place))
                with simd.loop(rest) as p:
                    offset = simd.add(behind, simd.mul(p.index, simd.itemsize))
                    left = scalar.load(weights, simd.add(simd.mul(i.index, row), offset))
                    right = scalar.load(h, simd.add(simd.mul(s.index, h_stride), offset))
                    builder.store(scalar.fma(left, right, builder.load(total)), total)
                scalar.store(builder.load(total), f, place)

    arguments = (f, types.intp, weights, types.intp, biases, types.intp, h, *[types.intp] * 4)
    return types.void(*arguments), outlined("forward_samples", f.dtype, emit)


@intrinsic
def sum_rows(typing_context, c, c_stride, h, a, a_row, a_column, b, b_stride, rows, columns, depth, with_mask):
    """c[i, p] = m(h[i, p]) sum_q a[i, q] b[q, p], with the mask m of backward_layer where with_mask is 1, else m = 1.

    c is written in rows of `columns` elements. h has c's strides and is read where there is a mask. c must not alias a
    or b.
    """

    def emit(simd, c, c_stride, h, a, a_row, a_column, b, b_stride, rows, columns, depth, with_mask):
        builder = simd.builder
        asked = builder.icmp_signed("!=", with_mask, simd.int(0))
        whole = builder.sdiv(columns, simd.int(simd.lanes))
        for q, count in simd.parts(depth, ROWS):
            multiply(
                simd,
                c=c,
                c_row=c_stride,
                a=simd.behind(a, simd.mul(q, a_column)),
                a_row=a_row,
                a_column=a_column,
                b=simd.behind(b, simd.mul(q, b_stride)),
                b_row=b_stride,
                rows=rows,
                vectors=whole,
                rest=builder.sub(columns, simd.mul(whole, simd.lanes)),
                depth=count,
                fresh=builder.icmp_signed("==", q, simd.int(0)),
                h=h,
                masked=builder.and_(asked, builder.icmp_signed("==", simd.add(q, count), depth)),
            )

    strides = [types.intp] * 2
    arguments = (c, types.intp, h, a, *strides, b, types.intp, *[types.intp] * 4)
    return types.void(*arguments), outlined("sum_rows", c.dtype, emit)


@intrinsic
def relu(typing_context, row, count):
    """row[s] = max(0, row[s]) for s < count, any number of them; NaN where it is NaN."""

    def emit(simd, row, count):
        zero = simd.constant(0.0)
        with simd.loop(count) as s:
            value = simd.load_item(row, s.index)
            simd.store(simd.greatest(zero, value), simd.item(row, s.index), 0)

    return types.void(row, types.intp), outlined("relu", row.dtype, emit)


@inner
def take_samples(rows, samples, itemsize, place, units):
    """Copy the caller's array at that place to rows of the workspace, one for each sample."""
    copy_rows(rows, units * itemsize, array_at(place, rows), place[2], place[1], samples, units)


@inner
def give_samples(rows, samples, itemsize, place, units):
    """Copy rows of the workspace to the caller's array, contiguous along a row, see take_samples."""
    copy_rows(array_at(place, rows), place[1], rows, itemsize, units * itemsize, units, samples)


@functools.cache
def few(dtype):
    """The gradient of a few samples, compiled for float32 or float64."""
    digest = source_digest()

    def few_samples(
        gradient,
        loss_lanes,
        columns_out,
        net_input,
        target,
        sample_weight,
        parameters,
        places,
        layout,
        space,
        mode,
        factor,
        scale,
        cross_entropy,
    ):
        """Write the gradient and the loss of the columns of net_input, or their output.

        gradient       (P,) written in pack order, unless mode is PREDICT
        loss_lanes     float64, written: the sum in the first element; N elements at least
        columns_out    written: (D_o, N) the output where mode is PREDICT; else (D_i, N) dl/dinput, or (D_i, 0) for none
        net_input      (D_i, N), target (D_o, N) or (1, N) class numbers, sample_weight (N,) or (0,): read, any strides,
                       any alignment
        parameters     in pack order, or nothing of it: read
        places         where the parameters are, if they are arrays, and what the notebooks' passes hand over, see
                       kernels: read
        layout         a row for each layer, see parameters.layout_table: read
        mode, factor   what is done at the output, see kernels and losses; scale: what dl/df_K is multiplied with;
                       cross_entropy: the address of a compiled one, where the mode needs it
        space          workspace, the activations sample by sample: h_0 ... h_K, output | dl/dh_0 ... dl/dh_K | the
                       rows of the loss, units by samples (see losses)
        """
        digest  # noqa: B018 - a closure cell, see source_digest
        itemsize = space.itemsize
        layers, samples = layout.shape[0], net_input.shape[1]
        inputs, outputs = row_of(layout, 0)[UNITS_IN], row_of(layout, layers - 1)[UNITS_OUT]
        start, parameters_start, target_rows = pointer(space), pointer(parameters), target.shape[0]
        unit = samples * itemsize  # the bytes of all activations of one
        output_row = row_of(layout, layers - 1)[ROW] + row_of(layout, layers - 1)[UNITS_IN]
        output = advance(start, output_row * unit)
        back = advance(output, outputs * unit)
        has_columns, wants_columns = places.shape[0] > ALL_F * layers, places.shape[0] > ALL_DL_DH * layers
        source = pointer(net_input)
        copy_rows(start, inputs * itemsize, source, net_input.strides[1], net_input.strides[0], samples, inputs)
        for k in range(layers):
            layer = row_of(layout, k)
            h, row = advance(start, layer[ROW] * unit), layer[UNITS_IN] * itemsize
            f = advance(h, layer[UNITS_IN] * unit)
            f_place, h_place = row_of(places, ALL_F * layers + k), row_of(places, ALL_H * layers + k)
            if has_columns and mode != PREDICT:
                take_samples(f, samples, itemsize, h_place, layer[UNITS_OUT])
                continue
            weights = parameters_at(parameters_start, places, layout, k, ALL_WEIGHTS, itemsize)
            biases = parameters_at(parameters_start, places, layout, k, ALL_BIASES, itemsize)
            f_row = layer[UNITS_OUT] * itemsize
            forward_samples(
                f, f_row, weights, row, biases, itemsize, h, row, layer[UNITS_OUT], layer[UNITS_IN], samples
            )
            if k < layers - 1:
                if has_columns:
                    give_samples(f, samples, itemsize, f_place, layer[UNITS_OUT])
                relu(f, samples * layer[UNITS_OUT])
                if has_columns:
                    give_samples(f, samples, itemsize, h_place, layer[UNITS_OUT])
        output_size = outputs * itemsize
        if mode == PREDICT:
            target_start = pointer(columns_out)
            copy_rows(target_start, columns_out.strides[0], output, itemsize, output_size, outputs, samples)
            return

        y, (y_row, y_column) = pointer(target), target.strides
        if mode == SEED:
            copy_rows(output, output_size, y, y_column, y_row, samples, outputs)
        else:
            rows = advance(back, output_row * unit)
            weight = advance(rows, 2 * outputs * unit)
            losses = pointer(loss_lanes)
            clear_tail(losses, 0, 1, 0, samples)
            fill_row(weight, samples)
            if sample_weight.size > 0:
                copy_rows(weight, 0, pointer(sample_weight), 0, sample_weight.strides[0], 1, samples)
            copy_rows(rows, unit, output, itemsize, output_size, outputs, samples)
            copy_rows(advance(rows, outputs * unit), unit, y, y_row, y_column, target_rows, samples)
            take_loss(losses, rows, samples, outputs, target_rows, samples, mode, factor, scale, cross_entropy)
            copy_rows(output, output_size, rows, itemsize, unit, samples, outputs)
            for s in range(1, samples):
                losses[0] += losses[s]
        if wants_columns:
            give_samples(output, samples, itemsize, row_of(places, ALL_DL_DF * layers + layers - 1), outputs)

        for k in range(layers - 1, -1, -1):
            layer = row_of(layout, k)
            units_in, units_out = layer[UNITS_IN], layer[UNITS_OUT]
            dl_df, h = output, advance(start, layer[ROW] * unit)
            if k < layers - 1:
                dl_df = advance(back, row_of(layout, k + 1)[ROW] * unit)
            row, df_row = units_in * itemsize, units_out * itemsize
            dl_dweights = advance(pointer(gradient), layer[WEIGHTS_AT] * itemsize)
            dl_dbiases = advance(pointer(gradient), layer[BIASES_AT] * itemsize)
            sum_rows(dl_dweights, row, dl_dweights, dl_df, itemsize, df_row, h, row, units_out, units_in, samples, 0)
            for i in range(units_out):
                total = dl_df[i]
                for s in range(1, samples):
                    total += dl_df[s * units_out + i]
                dl_dbiases[i] = total
            if k == 0 and columns_out.shape[1] == 0:
                continue
            dl_dh = advance(back, layer[ROW] * unit)
            if has_columns and k > 0:  # h has been used: its place takes f_k for the mask
                take_samples(h, samples, itemsize, row_of(places, ALL_F * layers + k - 1), units_in)
            weights = parameters_at(parameters_start, places, layout, k, ALL_WEIGHTS, itemsize)
            for with_mask in range(0 if k == 0 or wants_columns else 1, 2 if k > 0 else 1):
                sum_rows(dl_dh, row, h, dl_df, df_row, itemsize, weights, row, samples, units_in, units_out, with_mask)
                if wants_columns and k > 0:
                    place = row_of(places, (ALL_DL_DF if with_mask else ALL_DL_DH) * layers + k - 1)
                    give_samples(dl_dh, samples, itemsize, place, units_in)
        if columns_out.shape[1] > 0:
            dl_dinput = pointer(columns_out)
            copy_rows(dl_dinput, columns_out.strides[0], back, itemsize, inputs * itemsize, inputs, samples)

    written, read = array_types(dtype)
    return compile_entry(
        few_samples,
        types.void(
            written(1, "C"),
            types.Array(types.float64, 1, "C"),
            written(2),
            read(2),
            read(2),
            read(1),
            read(1, "C"),
            types.Array(types.int64, 2, "C", readonly=True),
            types.Array(types.int64, 2, "C", readonly=True),
            written(1, "C"),
            types.int64,
            types.float64,
            types.float64,
            types.int64,
        ),
    )
