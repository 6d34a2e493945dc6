"""Rows: operations on rows of a tile besides the products: copy, clear, fill, and the sum over chunks.

Strides are in bytes. Arguments come as outputs, inputs, sizes.
"""

import itertools

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from fastbackprop.kernels.register_tiles import transpose_vectors
from fastbackprop.kernels.simd import Simd, kernel


@intrinsic
def whole_vectors(typing_context, count, tile):
    """`count` samples rounded up to whole vectors of the target."""

    def generate(context, builder, signature, arguments):
        simd = Simd(context, builder, tile.dtype)
        return simd.mul(simd.ceil_div(arguments[0], simd.lanes), simd.lanes)

    return types.intp(types.intp, tile), generate


@kernel
def copy_rows(simd, target, target_stride, source, source_row, source_column, rows, count):
    """target[r, s] = source[r, s] for s < count. The source has any strides, the target's rows are contiguous.

    Contiguous rows of the source are copied vector by vector. Contiguous columns (samples in rows, seen transposed)
    are transposed in registers. Everything else is copied element by element.
    """
    builder, itemsize = simd.builder, simd.int(simd.itemsize)

    def place(r, s):
        corner = simd.behind(target, simd.mul(r, target_stride), simd.mul(s, itemsize))
        return corner, simd.behind(source, simd.mul(r, source_row), simd.mul(s, source_column))

    with builder.if_else(builder.icmp_signed("==", source_column, itemsize)) as (then, otherwise):
        with then, simd.loop(rows) as r:
            # A call of memcpy for each row would take longer than the copy of a strip.
            to, start = place(r.index, simd.int(0))
            vectors = builder.sdiv(count, simd.int(simd.lanes))
            with simd.loop(vectors) as v:
                offset = simd.mul(v.index, simd.target.vector_bytes)
                simd.store(simd.load(start, offset), to, offset)
            done = simd.mul(vectors, simd.lanes)
            with simd.loop(builder.sub(count, done)) as s:
                item = simd.add(done, s.index)
                simd.store(simd.load_item(start, item), simd.item(to, item), 0)
        with otherwise:
            by_columns = builder.icmp_signed("==", source_row, itemsize)
            whole = [
                builder.select(by_columns, simd.mul(builder.sdiv(size, simd.int(simd.lanes)), simd.lanes), simd.int(0))
                for size in (rows, count)
            ]
            for r, _ in simd.range(whole[0], simd.lanes):
                for s, _ in simd.range(whole[1], simd.lanes):
                    to, start = place(r, s)
                    transpose_vectors(simd, to, target_stride, start, source_column, simd.int(simd.lanes))
            with simd.loop(rows) as r:
                is_transposed = builder.icmp_signed("<", r.index, whole[0])
                done = builder.select(is_transposed, whole[1], simd.int(0))
                with simd.loop(builder.sub(count, done)) as s:
                    to, start = place(r.index, simd.add(done, s.index))
                    simd.store(simd.load_scalar(start, 0), to, 0)


@intrinsic
def clear(typing_context, start, count):
    """start[s] = 0 for s < count."""

    def generate(context, builder, signature, arguments):
        simd = Simd(context, builder, start.dtype)
        cgutils.memset(builder, arguments[0], simd.mul(arguments[1], simd.itemsize), 0)
        return context.get_dummy_value()

    return types.void(start, types.intp), generate


@kernel
def clear_tail(simd, tile, stride, rows, count, samples):
    """tile[r, s] = 0 for count <= s < samples."""
    builder = simd.builder
    with builder.if_then(builder.icmp_signed("<", count, samples)), simd.loop(rows) as r:
        start = simd.behind(tile, simd.mul(r.index, stride), simd.mul(count, simd.itemsize))
        cgutils.memset(builder, start, simd.mul(builder.sub(samples, count), simd.itemsize), 0)


@kernel
def relu_rows(simd, h, h_stride, f, f_stride, rows, samples):
    """h[r, s] = max(0, f[r, s]), NaN where it is NaN; samples are whole vectors. h may be f."""
    with simd.loop(rows) as r, simd.loop(simd.builder.sdiv(samples, simd.int(simd.lanes))) as s:
        column = simd.mul(s.index, simd.target.vector_bytes)
        value = simd.load(f, simd.add(simd.mul(r.index, f_stride), column))
        simd.store(simd.greatest(simd.zeros, value), h, simd.add(simd.mul(r.index, h_stride), column))


@kernel
def fill_with_ones(simd, row, count):
    """row[s] = 1 for s < count."""
    with simd.loop(count) as s:
        simd.store(simd.constant(1.0), row, simd.mul(s.index, simd.itemsize))


@intrinsic
def sum_row(typing_context, row, count):
    """The sum of `count` doubles, whole vectors of the target: lane by lane, then the lanes by halves."""

    def generate(context, builder, signature, arguments):
        simd = Simd(context, builder, types.float64)
        row, count = arguments
        (total,) = simd.variables(1, simd.zeros)
        with simd.loop(builder.sdiv(count, simd.int(simd.lanes))) as step:
            vector = simd.load(row, simd.mul(step.index, simd.target.vector_bytes))
            builder.store(builder.fadd(builder.load(total), vector), total)
        return simd.sum(builder.load(total))

    return types.float64(row, types.intp), generate


@kernel
def add_partials(
    simd, gradient, gradient_row, total, partial, partial_row, partial_bytes, partials, rows, columns, is_first, is_last
):
    """total += sum_c partial_c, in double precision and in the order of c; gradient = total where is_last is not 0.

    gradient, partial_c: `rows` rows of `columns` elements; partial_c is c * partial_bytes behind partial_0. If is_last,
    gradient is written, else total (the same rows, of doubles, gradient_row elements apart). total is read unless
    is_first, which means 0.

    For doubles, the rounding errors of the additions are summed too and added at the end. So the sum of thousands of
    chunks rounds as rarely as NumPy's, which adds by halves. total then holds vectors of sums and of errors in turn:
    two doubles for each element.
    """
    builder = simd.builder
    fresh, final = (builder.icmp_signed("!=", flag, simd.int(0)) for flag in (is_first, is_last))

    def add_part(simd, r, p, vectors):
        """Elements [p, p + vectors * lanes) of row r."""
        at = simd.add(simd.mul(r, gradient_row), simd.mul(p, simd.itemsize))
        total_at = simd.mul(at, 2)  # floats become doubles, doubles two of them
        source = simd.behind(partial, simd.mul(r, partial_row), simd.mul(p, simd.itemsize))
        places = simd.behind(gradient, at), simd.behind(total, total_at), source
        add_vectors(simd, *places, partial_bytes, partials, vectors, fresh, final)

    panel = simd.tile_vectors * simd.lanes
    panels, vectors = builder.sdiv(columns, simd.int(panel)), builder.sdiv(columns, simd.int(simd.lanes))
    done, whole = simd.mul(panels, simd.tile_vectors), simd.mul(vectors, simd.lanes)
    with simd.loop(rows) as r:
        with simd.loop(panels) as step:
            add_part(simd, r.index, simd.mul(step.index, panel), simd.tile_vectors)
        with simd.loop(builder.sub(vectors, done)) as step:
            add_part(simd, r.index, simd.mul(simd.add(done, step.index), simd.lanes), 1)
        with simd.loop(builder.sub(columns, whole)) as step:
            add_part(simd.scalar(), r.index, simd.add(whole, step.index), 1)


def add_vectors(simd, gradient, total, partial, partial_bytes, partials, vectors, fresh, final):
    """add_partials for `vectors` vectors from these addresses on."""
    builder, size = simd.builder, simd.target.vector_bytes
    doubles = ir.VectorType(ir.DoubleType(), simd.lanes)
    parts = 2 if simd.itemsize == 8 else 1  # a sum, and its rounding errors
    sums = [[cgutils.alloca_once(builder, doubles) for _ in range(parts)] for _ in range(vectors)]
    kept = [(slot, k * simd.lanes * 8) for k, slot in enumerate(itertools.chain.from_iterable(sums))]
    for slot, place in kept:
        builder.store(ir.Constant(doubles, [0.0] * simd.lanes), slot)
        with builder.if_then(builder.not_(fresh)):
            builder.store(builder.load(simd.behind(total, place), typ=doubles, align=1), slot)
    with simd.loop(partials) as c:
        start = simd.behind(partial, simd.mul(c.index, partial_bytes))
        for v, slots in enumerate(sums):
            add_term(builder, simd.widened(simd.load(start, v * size)), *slots)
    with builder.if_else(final) as (then, otherwise):
        with then:
            for v, slots in enumerate(sums):
                simd.store(simd.narrowed(whole_sum(builder, *slots)), gradient, v * size)
        with otherwise:
            for slot, place in kept:
                simd.store(builder.load(slot), total, place)


def add_term(builder, term, total, *error_sum):
    """total += term, and the rounding error of this addition is added to error_sum, if given (Knuth's two-sum)."""
    before = builder.load(total)
    after = builder.fadd(before, term)
    builder.store(after, total)
    for errors in error_sum:
        added = builder.fsub(after, before)
        error = builder.fadd(builder.fsub(before, builder.fsub(after, added)), builder.fsub(term, added))
        builder.store(builder.fadd(builder.load(errors), error), errors)


def whole_sum(builder, total, *error_sum):
    """total + error_sum; total alone where error_sum is NaN, because total is infinite."""
    value = builder.load(total)
    for errors in map(builder.load, error_sum):
        is_number = builder.fcmp_ordered("ord", errors, errors)
        value = builder.select(is_number, builder.fadd(value, errors), value)
    return value
