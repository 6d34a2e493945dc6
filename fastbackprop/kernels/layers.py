"""One dense layer over one tile of samples: forward, backward, weight gradient.

A tile is a block of rows in a workspace: row r starts at `tile + r * stride`, a cache line, and holds `samples`
samples, whole vectors of the target. What lies behind the last true sample of a batch is called its tail. Tails are
zero in every operand of a weight gradient along the samples, so they add nothing, not even NaN. Rows of h and f may be
those of a caller's array as well, at any address and stride, if it holds whole vectors of samples.

Strides and columns are in bytes. Arguments come as outputs, inputs, sizes.
"""

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from fastbackprop.kernels import CACHE_LINE
from fastbackprop.kernels.microkernels import dots, multiply, transpose_block
from fastbackprop.kernels.simd import Simd, outlined

DEPTH_BYTES = 4096
"""Bytes of one sample's activations that a product goes through at once, so that those of a tile stay in L2.

With 1 MB of L2 and a depth of 1024, that made no difference beyond the noise, 5 %: a smaller L2 is what it is for. With
2048, 1024 or 512 bytes, 784-100x3-10, 784-256x3-10 and 784-1024x3-10 took 0 to 6 % longer (one thread, Zen 5).
"""

SAMPLES = 128
"""The samples of a transposed tile that one pass over the weight gradient takes: 4 vectors of each are 32 KB."""

COLUMN_BYTES = 4096
"""Bytes of each of these that it takes at once for all rows, so that they stay in L2.

With all of them, 10000-50-10 took 1.2 to 1.6 times as long in float64, and 1024 units reached 81 % of the peak instead
of 88. With 1024 bytes, 3072-100-10 and 784-512-10 took 1 to 10 % longer (one thread, Zen 5).
"""


@intrinsic
def whole_vectors(typing_context, count, tile):
    """`count` samples rounded up to whole vectors of the target."""

    def generate(context, builder, signature, arguments):
        simd = Simd(context, builder, tile.dtype)
        return simd.mul(simd.blocks(arguments[0], simd.lanes), simd.lanes)

    return types.intp(types.intp, tile), generate


@intrinsic
def row_stride(typing_context, tile, tile_samples):
    """The bytes from one row of a tile to the next: an odd number of cache lines, so that no two rows of a register
    tile fall into the same set of a cache."""

    def generate(context, builder, signature, arguments):
        simd = Simd(context, builder, tile.dtype)
        return simd.add(simd.mul(arguments[1], simd.itemsize), CACHE_LINE)

    return types.intp(tile, types.intp), generate


@intrinsic
def forward_layer(
    typing_context,
    f,
    f_stride,
    weights,
    row,
    column,
    biases,
    bias_stride,
    h,
    h_stride,
    units_out,
    units_in,
    samples,
    floor,
):
    """f = max(floor, weights h + biases) over one tile.

    floor is 0 for a ReLU and -inf for none; NaN passes through either. f is written, the others are read; f must
    not alias h.
    """

    def emit(
        simd, f, f_stride, weights, row, column, biases, bias_stride, h, h_stride, units_out, units_in, samples, floor
    ):
        builder = simd.builder
        for p, depth in simd.parts(units_in, DEPTH_BYTES // simd.itemsize):
            last = builder.icmp_signed("==", simd.add(p, depth), units_in)
            multiply(
                simd,
                c=f,
                c_row=f_stride,
                a=simd.behind(weights, simd.mul(p, column)),
                a_row=row,
                a_column=column,
                b=simd.behind(h, simd.mul(p, h_stride)),
                b_row=h_stride,
                rows=units_out,
                vectors=builder.sdiv(samples, simd.int(simd.lanes)),
                depth=depth,
                fresh=builder.icmp_signed("==", p, simd.int(0)),
                start=biases,
                start_row=bias_stride,
                floor=simd.select(last, floor, simd.lowest),
            )

    strides = [types.intp] * 2
    sizes = [types.intp] * 3
    arguments = (f, types.intp, weights, *strides, biases, types.intp, h, types.intp, *sizes, f.dtype)
    return types.void(*arguments), outlined("forward_layer", f.dtype, emit)


@intrinsic
def backward_layer(
    typing_context,
    dl_dh,
    h,
    stride,
    weights,
    row,
    column,
    dl_df,
    df_stride,
    units_out,
    units_in,
    samples,
    with_mask,
):
    """dl_dh = m(h) * (weights^T dl_df) over one tile.

    The mask is taken from h, a preactivation or its ReLU, which may be dl_dh itself. Where `with_mask` is 0, m = 1,
    whatever h holds. dl_dh is written, h and dl_df are read; dl_df must not alias dl_dh.
    """

    def emit(simd, dl_dh, h, stride, weights, row, column, dl_df, df_stride, units_out, units_in, samples, with_mask):
        builder = simd.builder
        # Where the sums overwrite h, there must be one pass: the second would take the mask from them.
        alone = builder.icmp_unsigned("==", dl_dh, h)
        most = builder.select(alone, units_out, simd.int(DEPTH_BYTES // simd.itemsize))
        for p, depth in simd.parts(units_out, most):
            last = builder.icmp_signed("==", simd.add(p, depth), units_out)
            multiply(
                simd,
                c=dl_dh,
                c_row=stride,
                a=simd.behind(weights, simd.mul(p, row)),
                a_row=column,
                a_column=row,
                b=simd.behind(dl_df, simd.mul(p, df_stride)),
                b_row=df_stride,
                rows=units_in,
                vectors=builder.sdiv(samples, simd.int(simd.lanes)),
                depth=depth,
                fresh=builder.icmp_signed("==", p, simd.int(0)),
                h=h,
                masked=builder.and_(last, builder.icmp_signed("!=", with_mask, simd.int(0))),
            )

    strides = [types.intp] * 2
    arguments = (dl_dh, h, types.intp, weights, *strides, dl_df, types.intp, *[types.intp] * 4)
    return types.void(*arguments), outlined("backward_layer", h.dtype, emit)


@intrinsic
def dot_gradient(
    typing_context,
    dl_dweights,
    row,
    column,
    dl_dbiases,
    bias_stride,
    dl_df,
    df_stride,
    h,
    h_stride,
    ones,
    units_out,
    units_in,
    first_column,
    samples,
):
    """dl_dweights += dl_df h^T and dl_dbiases += dl_df ones^T over one tile, along the samples.

    dl_dweights and dl_dbiases are float64 and added to: lanes sum one tile's samples in the element type, tiles are
    summed in double. dl_df and h are read, their tails are zero; so is `ones`, a row of ones: the bias gradient is
    one more column of the product. Columns in front of first_column are left out.
    """

    def emit(
        simd,
        dl_dweights,
        row,
        column,
        dl_dbiases,
        bias_stride,
        dl_df,
        df_stride,
        h,
        h_stride,
        ones,
        units_out,
        units_in,
        first_column,
        samples,
    ):
        builder, double = simd.builder, ir.DoubleType()
        total = builder.sub(simd.add(units_in, 1), first_column)
        for panel, width in simd.tiles(total, simd.tile_vectors):
            p = simd.add(first_column, panel)
            ends = builder.icmp_signed(">", simd.add(p, width), units_in)
            behind = simd.add(p, width - 1)
            last = builder.select(ends, ones, simd.behind(h, simd.mul(behind, h_stride)))
            operands = [simd.behind(h, simd.mul(simd.add(p, q), h_stride)) for q in range(width - 1)] + [last]
            last_start = builder.select(ends, dl_dbiases, simd.behind(dl_dweights, simd.mul(behind, column)))
            last_row = builder.select(ends, bias_stride, row)

            def finish(i, q, total, p=p, width=width, last_start=last_start, last_row=last_row):
                if q < width - 1:
                    offset = simd.add(simd.mul(i, row), simd.mul(simd.add(p, q), column))
                    target = simd.behind(dl_dweights, offset)
                else:
                    target = simd.behind(last_start, simd.mul(i, last_row))
                builder.store(builder.fadd(builder.load(target, typ=double), simd.widened(total)), target)

            dots(simd, dl_df, df_stride, operands, units_out, samples, finish)

    strides = [types.intp] * 2
    arguments = (dl_dweights, *strides, dl_dbiases, types.intp, dl_df, types.intp, h, types.intp, ones)
    return types.void(*arguments, *[types.intp] * 4), outlined("dot_gradient", h.dtype, emit)


@intrinsic
def weight_gradient(
    typing_context,
    dl_dweights,
    row,
    partial,
    partial_row,
    dl_df,
    df_stride,
    transposed,
    stride,
    units_out,
    units_in,
    samples,
    added,
):
    """dl_dweights = dl_df h^T over one tile, along the units, from h already transposed; + partial where `added`.

    partial is of the element type, in rows of whole vectors: what its rows and those of `transposed` hold behind
    units_in is read, and overwritten in partial. dl_dweights is either partial itself or an array of its own, of which
    nothing else is written: then there must be a vector's worth of units, and partial is workspace. Samples need not be
    a multiple of anything: tails are not read.
    """

    def emit(
        simd,
        dl_dweights,
        row,
        partial,
        partial_row,
        dl_df,
        df_stride,
        transposed,
        stride,
        units_out,
        units_in,
        samples,
        added,
    ):
        builder = simd.builder
        apart = builder.icmp_unsigned("!=", dl_dweights, partial)
        vectors, whole = simd.blocks(units_in, simd.lanes), builder.sdiv(units_in, simd.int(simd.lanes))
        for s, depth in simd.parts(samples, SAMPLES):
            exact = builder.and_(apart, builder.icmp_signed("==", simd.add(s, depth), samples))
            # The last vector of a row that must not be left begins within the one before it, and gives the same again.
            tails = builder.select(exact, builder.sub(vectors, whole), simd.int(0))
            left = builder.sub(vectors, tails)
            for first, count in simd.range(left, COLUMN_BYTES // simd.target.vector_bytes):
                column = simd.mul(first, simd.target.vector_bytes)
                found = simd.behind(partial, column)
                end = builder.icmp_signed("==", simd.add(first, count), left)
                tail = simd.mul(builder.sub(units_in, simd.int(simd.lanes)), simd.itemsize)
                multiply(
                    simd,
                    c=builder.select(exact, simd.behind(dl_dweights, column), found),
                    c_row=builder.select(exact, row, partial_row),
                    a=simd.behind(dl_df, simd.mul(s, simd.itemsize)),
                    a_row=df_stride,
                    a_column=simd.itemsize,
                    b=simd.behind(transposed, simd.mul(s, stride), column),
                    b_row=stride,
                    rows=units_out,
                    vectors=count,
                    tails=builder.select(end, tails, simd.int(0)),
                    tail=builder.sub(tail, column),
                    depth=depth,
                    fresh=builder.icmp_signed("==", simd.add(s, added), simd.int(0)),
                    found=found,
                    found_row=partial_row,
                    # In wide networks these rows come from L3, and this saves 1 to 7 %. Of a transposed tile, of what
                    # is transposed or copied into a tile, of weights, or of what products write, it saved nothing. Nor
                    # did it that one panel stays in L1, for all rows, transposed right before: 0.97 to 1.03.
                    ahead=depth,
                )

    arguments = (dl_dweights, types.intp, partial, types.intp, dl_df, types.intp, transposed, types.intp)
    return types.void(*arguments, *[types.intp] * 4), outlined("weight_gradient", dl_df.dtype, emit)


@intrinsic
def transpose(typing_context, target, target_stride, source, source_stride, rows, samples):
    """target[s, p] = source[p, s]; whole vectors are written, samples are a multiple of their lanes."""

    def emit(simd, target, target_stride, source, source_stride, rows, samples):
        for p, height in simd.range(rows, simd.lanes):
            for s, _ in simd.range(samples, simd.lanes):
                corner = simd.behind(target, simd.mul(s, target_stride), simd.mul(p, simd.itemsize))
                block = simd.behind(source, simd.mul(p, source_stride), simd.mul(s, simd.itemsize))
                transpose_block(simd, corner, target_stride, block, source_stride, height)

    return types.void(target, types.intp, source, *[types.intp] * 3), outlined("transpose", source.dtype, emit)


@intrinsic
def copy_rows(typing_context, target, target_stride, source, source_row, source_column, rows, count):
    """target[r, s] = source[r, s] for s < count. The source has any strides, the target's rows are contiguous.

    Rows of the source that are contiguous are copied as they are; of columns that are (samples in rows, seen
    transposed), square blocks are transposed in registers; all else goes element by element.
    """

    def emit(simd, target, target_stride, source, source_row, source_column, rows, count):
        builder, itemsize = simd.builder, simd.int(simd.itemsize)

        def place(r, s):
            corner = simd.behind(target, simd.mul(r, target_stride), simd.mul(s, itemsize))
            return corner, simd.behind(source, simd.mul(r, source_row), simd.mul(s, source_column))

        with builder.if_else(builder.icmp_signed("==", source_column, itemsize)) as (then, otherwise):
            with then, simd.loop(rows) as r:
                cgutils.raw_memcpy(builder, *place(r.index, simd.int(0)), count, simd.itemsize)
            with otherwise:
                by_columns = builder.icmp_signed("==", source_row, itemsize)
                whole = [
                    builder.select(
                        by_columns, simd.mul(builder.sdiv(size, simd.int(simd.lanes)), simd.lanes), simd.int(0)
                    )
                    for size in (rows, count)
                ]
                for r, _ in simd.range(whole[0], simd.lanes):
                    for s, _ in simd.range(whole[1], simd.lanes):
                        to, start = place(r, s)
                        transpose_block(simd, to, target_stride, start, source_column, simd.int(simd.lanes))
                with simd.loop(rows) as r:
                    in_block = builder.icmp_signed("<", r.index, whole[0])
                    done = builder.select(in_block, whole[1], simd.int(0))
                    with simd.loop(builder.sub(count, done)) as s:
                        to, start = place(r.index, simd.add(done, s.index))
                        simd.store(simd.load_scalar(start, 0), to, 0)

    return types.void(target, types.intp, source, *[types.intp] * 4), outlined("copy_rows", target.dtype, emit)


@intrinsic
def convert_rows(typing_context, target, target_row, source, source_row, rows, count, added):
    """target[r, p] = source[r, p] for p < count, from one element type to another; += where `added` is not 0."""

    source_element = source.dtype

    def emit(simd, target, target_row, source, source_row, rows, count, added):
        context, builder, _ = simd.made_of
        from_other = Simd(context, builder, source_element)

        def copy(plus):
            with simd.loop(rows) as r:
                start = simd.behind(target, simd.mul(r.index, target_row))
                other = simd.behind(source, simd.mul(r.index, source_row))
                with simd.loop(count) as p:
                    value = simd.narrowed(from_other.widened(from_other.load_item(other, p.index)))
                    if plus:
                        value = builder.fadd(simd.load_item(start, p.index), value)
                    simd.store(value, simd.item(start, p.index), 0)

        with builder.if_else(builder.icmp_signed("!=", added, simd.int(0))) as (then, otherwise):
            with then:
                copy(plus=True)
            with otherwise:
                copy(plus=False)

    name = f"convert_rows.{source.dtype}"
    return types.void(target, types.intp, source, *[types.intp] * 4), outlined(name, target.dtype, emit)


@intrinsic
def clear_tail(typing_context, tile, stride, rows, count, samples):
    """tile[r, s] = 0 for count <= s < samples."""

    def emit(simd, tile, stride, rows, count, samples):
        builder = simd.builder
        with builder.if_then(builder.icmp_signed("<", count, samples)), simd.loop(rows) as r:
            start = simd.behind(tile, simd.mul(r.index, stride), simd.mul(count, simd.itemsize))
            cgutils.memset(builder, start, simd.mul(builder.sub(samples, count), simd.itemsize), 0)

    return types.void(tile, *[types.intp] * 4), outlined("clear_tail", tile.dtype, emit)


@intrinsic
def relu_rows(typing_context, h, h_stride, f, f_stride, rows, samples):
    """h[r, s] = max(0, f[r, s]), NaN where it is NaN; samples are whole vectors. h may be f."""

    def emit(simd, h, h_stride, f, f_stride, rows, samples):
        with simd.loop(rows) as r, simd.loop(simd.builder.sdiv(samples, simd.int(simd.lanes))) as s:
            column = simd.mul(s.index, simd.target.vector_bytes)
            value = simd.load(f, simd.add(simd.mul(r.index, f_stride), column))
            simd.store(simd.greatest(simd.zeros, value), h, simd.add(simd.mul(r.index, h_stride), column))

    return types.void(h, types.intp, f, *[types.intp] * 3), outlined("relu_rows", h.dtype, emit)


@intrinsic
def fill_row(typing_context, row, count):
    """row[s] = 1 for s < count."""

    def emit(simd, row, count):
        with simd.loop(count) as s:
            simd.store(simd.constant(1.0), row, simd.mul(s.index, simd.itemsize))

    return types.void(row, types.intp), outlined("fill_row", row.dtype, emit)
