"""Columns: what is done to each sample of a tile for itself, besides the products.

Strides are in bytes. Arguments come as outputs, inputs, sizes.
"""

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from fastbackprop.kernels.simd import INT, outlined

SMALLEST_SQUARES = 2.0**-930
"""A sum of squares of doubles, from which on those that are too small for a double do not count."""


@intrinsic
def add_squared_norms(typing_context, squares, dl_df, h, stride, units_out, units_in, samples):
    """squares[s] += (sum_i dl_df[i, s]^2) (1 + sum_j h[j, s]^2), in double precision.

    That is ||dl/dOmega_k||^2 + ||dl/dbeta_k||^2 for each sample: its weight gradient is an outer product. squares
    (samples,) are added to; dl_df and h, rows of a tile, are read; samples are whole vectors. NaN is added where a
    double is too small for the first sum, though dl_df is not 0; infinity or NaN where it is too large for one.
    """

    def emit(simd, squares, dl_df, h, stride, units_out, units_in, samples):
        builder = simd.builder
        vector = ir.VectorType(ir.DoubleType(), simd.lanes)

        def constant(value):
            return ir.Constant(vector, [value] * simd.lanes)

        for vectors, offset in simd.panels(builder.sdiv(samples, simd.int(simd.lanes))):
            slopes, bits = sums_of_squares(simd, dl_df, stride, units_out, vectors, offset, constant(0.0))
            activations, _ = sums_of_squares(simd, h, stride, units_in, vectors, offset, constant(1.0))
            start = simd.behind(squares, simd.mul(offset, 8 // simd.itemsize))
            for v, (slope, found) in enumerate(zip(slopes, bits, strict=True)):
                place = simd.behind(start, v * simd.lanes * 8)
                added = builder.fmul(slope, activations[v])
                if simd.itemsize == 8:  # squares of float32 fit into a double
                    nothing = builder.icmp_unsigned("==", found, ir.Constant(found.type, [0] * simd.lanes))
                    fine = builder.or_(nothing, builder.fcmp_ordered(">=", slope, constant(SMALLEST_SQUARES)))
                    added = builder.select(fine, added, constant(float("nan")))
                total = builder.load(place, typ=vector, align=1)
                builder.store(builder.fadd(total, added), place, align=1)

    arguments = (types.CPointer(types.float64), dl_df, h, *[types.intp] * 4)
    return types.void(*arguments), outlined("add_squared_norms", dl_df.dtype, emit)


def sums_of_squares(simd, rows, stride, units, vectors, offset, start):
    """start + sum_i rows[i, s]^2 of `vectors` vectors of samples at that byte offset, as doubles.

    And all bits of these elements but their signs, of doubles: none where they are all 0.
    """
    builder, size = simd.builder, simd.target.vector_bytes
    bits = ir.VectorType(INT, simd.lanes)
    sums, found = ([cgutils.alloca_once(builder, kind) for _ in range(vectors)] for kind in (start.type, bits))
    for v in range(vectors):
        builder.store(start, sums[v])
        builder.store(ir.Constant(bits, [0] * simd.lanes), found[v])
    with simd.loop(units) as i:
        row = simd.behind(rows, simd.mul(i.index, stride), offset)
        for v in range(vectors):
            element = simd.widened(simd.load(row, v * size))
            builder.store(simd.fma(element, element, builder.load(sums[v])), sums[v])
            if simd.itemsize == 8:
                builder.store(builder.or_(builder.load(found[v]), builder.bitcast(element, bits)), found[v])
    magnitude = ir.Constant(bits, [2**63 - 1] * simd.lanes)
    return [builder.load(slot) for slot in sums], [builder.and_(builder.load(slot), magnitude) for slot in found]


@intrinsic
def multiply_rows(typing_context, rows, stride, factors, factors_stride, units, samples):
    """rows[i, s] *= factors[i, s]; samples are whole vectors.

    factors may be rows, which are squared then, or one row for all where factors_stride is 0.
    """

    def emit(simd, rows, stride, factors, factors_stride, units, samples):
        builder = simd.builder
        with simd.loop(units) as i, simd.loop(builder.sdiv(samples, simd.int(simd.lanes))) as s:
            column = simd.mul(s.index, simd.target.vector_bytes)
            at = simd.add(simd.mul(i.index, stride), column)
            factor = simd.load(factors, simd.add(simd.mul(i.index, factors_stride), column))
            simd.store(builder.fmul(simd.load(rows, at), factor), rows, at)

    return types.void(rows, types.intp, factors, *[types.intp] * 3), outlined("multiply_rows", rows.dtype, emit)


@intrinsic
def outer_products(typing_context, target, target_stride, dl_df, df_stride, h, h_stride, units_out, units_in, samples):
    """target[s, i, j] = dl_df[i, s] h[s, j]: the weight gradient of each sample.

    target[s] (units_out, units_in) are contiguous, target_stride apart; written. dl_df, rows of a tile, and h, with a
    row for each sample, are read.
    """

    def emit(simd, target, target_stride, dl_df, df_stride, h, h_stride, units_out, units_in, samples):
        builder, row = simd.builder, simd.mul(units_in, simd.itemsize)
        vectors = builder.sdiv(units_in, simd.int(simd.lanes))
        whole = simd.mul(vectors, simd.lanes)
        with simd.loop(samples) as s, simd.loop(units_out) as i:
            slope = simd.load_scalar(dl_df, simd.add(simd.mul(i.index, df_stride), simd.mul(s.index, simd.itemsize)))
            activations = simd.behind(h, simd.mul(s.index, h_stride))
            start = simd.behind(target, simd.mul(s.index, target_stride), simd.mul(i.index, row))
            for width, offset in simd.panels(vectors):
                for v in range(width):
                    at = simd.add(offset, v * simd.target.vector_bytes)
                    simd.store(builder.fmul(simd.splat(slope), simd.load(activations, at)), start, at)
            with simd.loop(builder.sub(units_in, whole)) as p:
                j = simd.add(whole, p.index)
                simd.store(builder.fmul(slope, simd.load_item(activations, j)), simd.item(start, j), 0)

    arguments = (target, types.intp, dl_df, types.intp, h, *[types.intp] * 4)
    return types.void(*arguments), outlined("outer_products", target.dtype, emit)
