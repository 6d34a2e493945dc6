"""Products over few samples, stored sample by sample, units contiguous: vector lanes along the units.

    forward     f[s, i]      = biases[i] + sum_p weights[i, p] h[s, p]      dot products along the inputs
    backward    dl_dh[s, p]  = sum_i dl_df[s, i] weights[i, p]              lanes along the inputs
    gradient    dw[i, p]     = sum_s dl_df[s, i] h[s, p]                    lanes along the inputs

The last two are one kernel. The elements behind a row's last whole vector are computed one by one: nothing is read or
written behind a row's end. Strides are in bytes. Arguments come as outputs, inputs, sizes.
"""

from fastbackprop.engine.limits import PAGES
from fastbackprop.kernels.register_tiles import dots, multiply
from fastbackprop.kernels.simd import kernel


@kernel
def forward_samples(simd, f, f_stride, weights, biases, h, h_stride, units_out, units_in, samples):
    """f[s, i] = biases[i] + sum_p weights[i, p] h[s, p].

    f is written, the others are read; f must not alias h. weights and biases are contiguous.
    """
    builder, scalar = simd.builder, simd.scalar()
    row = simd.mul(units_in, simd.itemsize)
    whole = simd.mul(builder.sdiv(units_in, simd.int(simd.lanes)), simd.lanes)
    rest = builder.sub(units_in, whole)
    for s, width in simd.tiles(samples, simd.tile_vectors):
        operands = [simd.behind(h, simd.mul(simd.add(s, q), h_stride)) for q in range(width)]

        def store_sum(i, q, total, s=s):
            total = builder.fadd(total, simd.load_scalar(biases, simd.mul(i, simd.itemsize)))
            place = simd.add(simd.mul(simd.add(s, q), f_stride), simd.mul(i, simd.itemsize))
            simd.store(total, f, place)

        dots(simd, weights, row, operands, units_out, whole, store_sum)
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


@kernel
def multiply_samples(simd, c, c_stride, h, a, a_row, a_column, b, b_stride, rows, columns, depth, with_mask):
    """c[i, p] = m(h[i, p]) sum_q a[i, q] b[q, p], with the mask m of backward_layer where with_mask is 1, else m = 1.

    c is written in rows of `columns` elements. h has c's strides and is read if there is a mask. c must not alias a or
    b.
    """
    builder = simd.builder
    asked = builder.icmp_signed("!=", with_mask, simd.int(0))
    whole = builder.sdiv(columns, simd.int(simd.lanes))
    for q, count in simd.parts(depth, PAGES):
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


@kernel
def relu(simd, row, count):
    """row[s] = max(0, row[s]) for s < count, which may be any number; NaN stays NaN."""
    zero = simd.constant(0.0)
    with simd.loop(count) as s:
        value = simd.load_item(row, s.index)
        simd.store(simd.greatest(zero, value), simd.item(row, s.index), 0)
