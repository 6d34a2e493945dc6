"""Columns: operations on single samples of a tile.

Strides are in bytes. Arguments come as outputs, inputs, sizes.
"""

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from fastbackprop.kernels.simd import INT, Simd, kernel

DOUBLE = ir.DoubleType()

SMALLEST_SQUARES = 2.0**-930
"""Smallest sum of squares that is trusted: a smaller sum may have lost terms that are too small for a double."""

STREAMED_BYTES = 16
"""Size of a store past the caches, in bytes, and the alignment that it needs."""


@kernel
def add_squared_norms(simd, squares, dl_df, h, stride, units_out, units_in, samples):
    """squares[s] += (sum_i dl_df[i, s]^2) (1 + sum_j h[j, s]^2), in double precision.

    That is ||dl/dOmega_k||^2 + ||dl/dbeta_k||^2 for each sample: its weight gradient is an outer product. squares
    (samples,) are added to; dl_df and h, rows of a tile, are read; samples are whole vectors. NaN is added if the first
    sum underflows although dl_df is not 0; infinity or NaN is added if a sum overflows.
    """
    builder = simd.builder
    vector = ir.VectorType(DOUBLE, simd.lanes)

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


def sums_of_squares(simd, rows, stride, units, vectors, offset, start):
    """start + sum_i rows[i, s]^2 of `vectors` vectors of samples at that byte offset, as doubles.

    Also returns, for doubles, the bits without signs of all elements, combined by OR: 0 if all elements are 0.
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
def with_norm(typing_context, norm, dl_df, h, stride, units_out, units_in):
    """sqrt(norm^2 + ||dl_df||^2 (||h||^2 + 1)) of one sample, without squares that overflow or underflow.

    dl_df and h are columns of a tile, read. The result is infinite only if it overflows itself or an input is infinite.
    """

    def generate(context, builder, signature, arguments):
        norm, dl_df, h, stride, units_out, units_in = arguments
        simd = Simd(context, builder, signature.args[1].dtype)
        slope, activation = length(simd, dl_df, stride, units_out), length(simd, h, stride, units_in)
        return hypotenuse(simd, norm, builder.fmul(slope, hypotenuse(simd, activation, DOUBLE(1.0))))

    return types.float64(types.float64, dl_df, h, *[types.intp] * 3), generate


def length(simd, column, stride, units):
    """sqrt(sum_i x_i^2) of a column, by its largest |x_i|."""
    builder = simd.builder
    largest, total, squares = (cgutils.alloca_once(builder, DOUBLE) for _ in range(3))
    for slot in largest, total, squares:
        builder.store(DOUBLE(0.0), slot)

    def size_of(i):
        value = simd.load_scalar(column, simd.mul(i.index, stride))
        return unary(builder, "fabs", value if simd.itemsize == 8 else builder.fpext(value, DOUBLE))

    with simd.loop(units) as i:
        size = size_of(i)
        builder.store(simd.greatest(size, builder.load(largest)), largest)
        builder.store(builder.fadd(builder.load(total), size), total)
    with builder.if_then(is_usual(builder, builder.load(largest), builder.load(total))):
        with simd.loop(units) as i:
            share = builder.fdiv(size_of(i), builder.load(largest))
            builder.store(builder.fadd(builder.load(squares), builder.fmul(share, share)), squares)
        builder.store(builder.fmul(builder.load(largest), unary(builder, "sqrt", builder.load(squares))), total)
    return builder.load(total)


def hypotenuse(simd, a, b):
    """sqrt(a^2 + b^2) of numbers that are not negative."""
    builder = simd.builder
    a_is_larger, total = simd.greater(a, b), builder.fadd(a, b)
    larger, smaller = builder.select(a_is_larger, a, b), builder.select(a_is_larger, b, a)
    ratio = builder.fdiv(smaller, larger)
    root = unary(builder, "sqrt", builder.fadd(DOUBLE(1.0), builder.fmul(ratio, ratio)))
    return builder.select(is_usual(builder, larger, total), builder.fmul(larger, root), total)


def is_usual(builder, largest, total):
    """Whether the largest of some numbers can divide them: it is neither 0 nor infinite, and their sum is not NaN."""
    fine = builder.and_(
        builder.fcmp_ordered(">", largest, DOUBLE(0.0)), builder.fcmp_ordered("<", largest, DOUBLE(float("inf")))
    )
    return builder.and_(fine, builder.fcmp_ordered("ord", total, total))


def unary(builder, name, value):
    """An intrinsic function of LLVM, of a double."""
    kind = ir.FunctionType(DOUBLE, [DOUBLE])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.f64"), [value])


@kernel
def multiply_rows(simd, rows, stride, factors, factors_stride, units, samples):
    """rows[i, s] *= factors[i, s]; samples are whole vectors.

    factors may be rows itself, which is then squared. With factors_stride 0, factors is one row for all.
    """
    builder = simd.builder
    with simd.loop(units) as i, simd.loop(builder.sdiv(samples, simd.int(simd.lanes))) as s:
        column = simd.mul(s.index, simd.target.vector_bytes)
        at = simd.add(simd.mul(i.index, stride), column)
        factor = simd.load(factors, simd.add(simd.mul(i.index, factors_stride), column))
        simd.store(builder.fmul(simd.load(rows, at), factor), rows, at)


@kernel
def outer_products(simd, target, target_stride, dl_df, df_stride, h, h_stride, units_out, units_in, samples):
    """target[s, i, j] = dl_df[i, s] h[s, j]: the weight gradient of each sample.

    target[s] (units_out, units_in) are contiguous, target_stride apart; written. dl_df, rows of a tile, and h, with a
    row for each sample, are read.

    Aligned rows are written past the caches, which then need not read them first. Measured, as shares of the speed of a
    fill: 784-100-10 72 (float32) and 80 % (float64) instead of 68 and 53, 64-128x4-10 87 and 92 instead of 64 and 78
    (2 threads, Zen 4, 2026-11).
    """
    builder, row = simd.builder, simd.mul(units_in, simd.itemsize)
    places = builder.or_(builder.or_(builder.ptrtoint(target, INT), target_stride), row)
    streams = builder.icmp_signed("==", builder.and_(places, simd.int(STREAMED_BYTES - 1)), simd.int(0))
    with simd.loop(samples) as s, simd.loop(units_out) as i:
        slope = simd.load_scalar(dl_df, simd.add(simd.mul(i.index, df_stride), simd.mul(s.index, simd.itemsize)))
        activations = simd.behind(h, simd.mul(s.index, h_stride))
        start = simd.behind(target, simd.mul(s.index, target_stride), simd.mul(i.index, row))
        with builder.if_else(streams) as (then, otherwise):
            with then:
                stream_scaled(simd.of_bytes(STREAMED_BYTES), start, activations, slope, units_in)
            with otherwise:
                store_scaled(simd, start, activations, slope, units_in)
    builder.fence("seq_cst")  # nothing else orders streamed stores


def stream_scaled(simd, target, source, factor, count):
    """target[j] = factor source[j] for j < count, whole vectors, past the caches."""
    builder, size = simd.builder, simd.target.vector_bytes
    factor = simd.splat(factor)
    flag = builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])
    with simd.loop(builder.sdiv(count, simd.int(simd.lanes))) as step:
        at = simd.mul(step.index, size)
        product = builder.fmul(factor, simd.load(source, at))
        builder.store(product, simd.behind(target, at), align=size).set_metadata("nontemporal", flag)


def store_scaled(simd, target, source, factor, count):
    """target[j] = factor source[j] for j < count."""
    builder = simd.builder
    vectors = builder.sdiv(count, simd.int(simd.lanes))
    whole = simd.mul(vectors, simd.lanes)
    for width, offset in simd.panels(vectors):
        for v in range(width):
            at = simd.add(offset, v * simd.target.vector_bytes)
            simd.store(builder.fmul(simd.splat(factor), simd.load(source, at)), target, at)
    with simd.loop(builder.sub(count, whole)) as p:
        j = simd.add(whole, p.index)
        simd.store(builder.fmul(factor, simd.load_item(source, j)), simd.item(target, j), 0)
