"""Register tiles: the two products that all of backpropagation is made of.

A tile of samples is stored feature-major: units in rows, samples contiguous along a row. A row starts at a cache
line, and what is read and written of it are whole vectors, so these kernels have no remainder along the samples.

    product   C[i, s]  = start[i] + sum_p A[i, p] B[p, s]     A: weights, broadcast;  lanes along s
    dot       C[i, p] += sum_s G[i, s] H[p, s]                both operands contiguous; lanes along s

Each is emitted once for every height of its register tile up to the largest, behind a switch; the dot for every width
too, the product for whole panels and for single vectors. Edges get a tile of their own shape, and no operand is ever
padded to more than whole vectors.

Strides are in bytes. Arguments come as outputs, inputs, sizes.
"""

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from fastbackprop.kernels.simd import INT, Simd

HEIGHT = 6
"""The rows of the largest register tile: 6 x 4 vectors of 32 registers, 6 x 2 of 16."""


def _product(simd, c, c_stride, a, a_row, a_column, b, b_stride, rows, vectors, depth, offset, start, finish):
    """Emit C[i, s] = finish(start(i, s) + sum_p A[i, p] B[p, s]) for one register tile at a byte offset of its rows.

    start(row, offset) gives the vector that a sum starts from, finish(value, offset) the one to be stored.
    """
    builder, size = simd.builder, simd.target.vector_bytes
    places = [[simd.add(simd.mul(row, c_stride), offset, v * size) for v in range(vectors)] for row in range(rows)]
    sums = [[simd.variable(start(row, place)) for place in places[row]] for row in range(rows)]
    with simd.loop(depth) as p:
        b_offset = simd.add(simd.mul(p.index, b_stride), offset)
        operands = [simd.load(b, simd.add(b_offset, v * size)) for v in range(vectors)]
        for row in range(rows):
            factor = simd.splat(simd.load_scalar(a, simd.add(simd.mul(row, a_row), simd.mul(p.index, a_column))))
            for slot, operand in zip(sums[row], operands, strict=True):
                builder.store(simd.fma(factor, operand, builder.load(slot)), slot)
    for slots, row_places in zip(sums, places, strict=True):
        for slot, place in zip(slots, row_places, strict=True):
            simd.store(finish(builder.load(slot), place), c, place)


@intrinsic
def forward_rows(
    typing_context, f, f_stride, weights, row, column, biases, bias_stride, h, h_stride, height, depth, samples, floor
):
    """f[i, s] = max(floor, biases[i] + sum_p weights[i, p] h[p, s]) for up to HEIGHT rows i and all samples s.

    floor is 0 for a ReLU and -inf for none; NaN passes through either. f is written, the others are read; f must
    not alias h.
    """
    element = f.dtype

    def generate(context, builder, signature, arguments):
        f, f_stride, weights, row, column, biases, bias_stride, h, h_stride, height, depth, samples, floor = arguments
        simd = Simd(context, builder, element)
        floors = simd.splat(floor)

        def start(row, _offset):
            return simd.splat(simd.load_scalar(biases, simd.mul(row, bias_stride)))

        def finish(value, offset):
            return simd.select(simd.greater(floors, value), floors, value)

        for rows in simd.cases(height, range(1, HEIGHT + 1)):
            for vectors, offset in simd.panels(builder.sdiv(samples, simd.int(simd.lanes))):
                operands = (weights, row, column, h, h_stride)
                _product(simd, f, f_stride, *operands, rows, vectors, depth, offset, start, finish)
        return context.get_dummy_value()

    strides = [types.intp] * 2
    sizes = [types.intp] * 3
    return types.void(f, types.intp, weights, *strides, biases, types.intp, h, types.intp, *sizes, element), generate


@intrinsic
def backward_rows(
    typing_context, dl_dh, h, stride, weights, row, column, dl_df, df_stride, height, depth, samples, masked
):
    """dl_dh[i, s] = m(h[i, s]) sum_p weights[p, i] dl_df[p, s] for up to HEIGHT rows i and all samples s.

    The mask is taken from h, a preactivation or its ReLU, which may be dl_dh itself: m(v) = 1 where v > 0, 0 where
    v <= 0 (so at 0 and -0.0), NaN where v is NaN. It multiplies, so that 0 times infinity is NaN as in NumPy. Where
    `masked` is 0, m = 1, whatever h holds. dl_df is read and must not alias dl_dh.
    """
    element = dl_dh.dtype

    def generate(context, builder, signature, arguments):
        dl_dh, h, stride, weights, row, column, dl_df, df_stride, height, depth, samples, masked = arguments
        simd = Simd(context, builder, element)
        zeros, ones = simd.splat(simd.constant(0.0)), simd.splat(simd.constant(1.0))
        wanted = builder.icmp_signed("!=", masked, simd.int(0))

        def start(_row, _offset):
            return zeros

        def finish(value, offset):
            before = simd.load(h, offset)
            relu = simd.select(simd.greater(zeros, before), zeros, before)
            mask = simd.select(simd.greater(before, zeros), ones, relu)
            return builder.fmul(value, simd.select(wanted, mask, ones))

        for rows in simd.cases(height, range(1, HEIGHT + 1)):
            for vectors, offset in simd.panels(builder.sdiv(samples, simd.int(simd.lanes))):
                operands = (weights, row, column, dl_df, df_stride)
                _product(simd, dl_dh, stride, *operands, rows, vectors, depth, offset, start, finish)
        return context.get_dummy_value()

    return types.void(
        dl_dh, h, types.intp, weights, types.intp, types.intp, dl_df, types.intp, *[types.intp] * 4
    ), generate


@intrinsic
def dot_block(
    typing_context, c, row, column, c_last, last_row, g, g_stride, h, h_stride, h_last, height, width, samples
):
    """c[i, p] += sum_s g[i, s] h[p, s] for up to HEIGHT rows i and up to dot_width(g) rows p, the last given apart.

    Its operand is h_last and its targets are c_last[i]: the bias gradient is the product with a row of ones, which
    stands elsewhere. c is float64 and added to: lanes sum one tile's samples in the element type, tiles are summed
    in double. g and h are read and may alias each other, c aliases neither.
    """
    element = g.dtype

    def generate(context, builder, signature, arguments):
        c, row, column, c_last, last_row, g, g_stride, h, h_stride, h_last, height, width, samples = arguments
        simd = Simd(context, builder, element)
        double = ir.DoubleType()
        steps = builder.sdiv(samples, simd.int(simd.lanes))
        zeros = simd.splat(simd.constant(0.0))
        for rows in simd.cases(height, range(1, HEIGHT + 1)):
            for columns in simd.cases(width, range(1, simd.tile_vectors + 1)):
                starts = [simd.at(h, simd.mul(p, h_stride)) for p in range(columns - 1)] + [simd.at(h_last, 0)]
                sums = [simd.variables(columns, zeros) for _ in range(rows)]
                with simd.loop(steps) as step:
                    offset = simd.mul(step.index, simd.target.vector_bytes)
                    operands = [simd.load(start, offset) for start in starts]
                    for i in range(rows):
                        left = simd.load(g, simd.add(simd.mul(i, g_stride), offset))
                        for slot, right in zip(sums[i], operands, strict=True):
                            builder.store(simd.fma(left, right, builder.load(slot)), slot)
                for i in range(rows):
                    targets = [
                        simd.at(c, simd.add(simd.mul(i, row), simd.mul(p, column)), double) for p in range(columns - 1)
                    ]
                    targets.append(simd.at(c_last, simd.mul(i, last_row), double))
                    for slot, entry in zip(sums[i], targets, strict=True):
                        total = simd.sum(builder.load(slot))
                        if element.bitwidth < 64:
                            total = builder.fpext(total, double)
                        builder.store(builder.fadd(builder.load(entry), total), entry)
        return context.get_dummy_value()

    strides = [types.intp] * 2
    arguments = (c, *strides, c_last, types.intp, g, types.intp, h, types.intp, h_last, types.intp, *strides)
    return types.void(*arguments), generate


@intrinsic
def dot_width(typing_context, g):
    """The rows p of the largest tile of `dot_block`, a compile-time constant."""

    def generate(context, builder, signature, arguments):
        return ir.Constant(INT, Simd(context, builder, g.dtype).tile_vectors)

    return types.intp(g), generate


@intrinsic
def gradient_rows(typing_context, c, c_stride, g, g_stride, transposed, stride, height, columns, samples):
    """c[i, p] += sum_s g[i, s] transposed[s, p] for up to HEIGHT rows i and all p < columns.

    Columns are rounded up to whole vectors: what the rows of c and transposed hold behind them is overwritten and
    read. c is added to; g and transposed are read and alias neither it nor each other.
    """
    element = g.dtype

    def generate(context, builder, signature, arguments):
        c, c_stride, g, g_stride, transposed, stride, height, columns, samples = arguments
        simd = Simd(context, builder, element)
        count = builder.sdiv(builder.add(columns, simd.int(simd.lanes - 1)), simd.int(simd.lanes))
        zeros = simd.splat(simd.constant(0.0))

        # The sum so far is added at the end, not started from: the first products need not wait for it to arrive.
        def start(_row, _place):
            return zeros

        def finish(value, place):
            return builder.fadd(value, simd.load(c, place))

        for rows in simd.cases(height, range(1, HEIGHT + 1)):
            operands = (g, g_stride, simd.int(simd.itemsize), transposed, stride)
            for vectors, offset in simd.panels(count):
                _product(simd, c, c_stride, *operands, rows, vectors, samples, offset, start, finish)
        return context.get_dummy_value()

    return types.void(c, types.intp, g, types.intp, transposed, *[types.intp] * 4), generate


@intrinsic
def transpose_block(typing_context, target, target_stride, source, source_stride, rows):
    """target[s, p] = source[p, s] for a square block of vector_lanes(source) rows and columns.

    Only the first `rows` rows of the source are read; the columns behind them hold copies of the last.
    """
    element = source.dtype

    def generate(context, builder, signature, arguments):
        target, target_stride, source, source_stride, rows = arguments
        simd = Simd(context, builder, element)
        last = builder.sub(rows, simd.int(1))
        block = []
        for p in range(simd.lanes):
            row = builder.select(builder.icmp_signed("<", last, simd.int(p)), last, simd.int(p))
            block.append(simd.load(source, simd.mul(row, source_stride)))
        for s, vector in enumerate(simd.transpose(block)):
            simd.store(vector, target, simd.mul(s, target_stride))
        return context.get_dummy_value()

    return types.void(target, types.intp, source, types.intp, types.intp), generate


@intrinsic
def copy_row(typing_context, target, source, stride, count):
    """target[s] = source[s * stride] for s < count; target is contiguous, the stride in bytes and of any sign."""
    element = target.dtype

    def generate(context, builder, signature, arguments):
        target, source, stride, count = arguments
        simd = Simd(context, builder, element)
        contiguous = builder.icmp_signed("==", stride, simd.int(simd.itemsize))
        with builder.if_else(contiguous) as (then, otherwise):
            with then:
                cgutils.raw_memcpy(builder, target, source, count, simd.itemsize)
            with otherwise, simd.loop(count) as s:
                value = simd.load_scalar(source, simd.mul(s.index, stride))
                simd.store_scalar(value, target, simd.mul(s.index, simd.itemsize))
        return context.get_dummy_value()

    return types.void(target, source, types.intp, types.intp), generate


@intrinsic
def clear_row(typing_context, target, count):
    """target[s] = 0 for s < count."""
    element = target.dtype

    def generate(context, builder, signature, arguments):
        target, count = arguments
        simd = Simd(context, builder, element)
        cgutils.memset(builder, target, simd.mul(count, simd.itemsize), 0)
        return context.get_dummy_value()

    return types.void(target, types.intp), generate
