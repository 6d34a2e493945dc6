"""Register tiles: the two products that all of backpropagation is made of.

A tile of samples is stored feature-major: units in rows, samples contiguous along a row. A row starts at a cache
line, or anywhere in an array of the caller, and what is read and written of it are whole vectors, so these kernels have
no remainder along the samples.

    product   C[i, s]  = start[i, s] + sum_p A[i, p] B[p, s]    A: weights, broadcast;  lanes along s
    dots      C[i, p]  = sum_s G[i, s] H[p, s]                  both operands contiguous; lanes along s

Each function writes the instructions of one register tile; who calls it does so once for every shape of tile, behind
a switch (see Simd.tiles). Edges get a tile of their own shape, and no operand is ever padded to more than whole
vectors. Strides and offsets are in bytes. Arguments come as outputs, inputs, sizes.
"""

from numba.core import cgutils

HEIGHT = 6
"""The rows of the largest register tile: 6 x 4 vectors of 32 registers, 6 x 2 of 16."""


def product(simd, c, c_stride, a, a_row, a_column, b, b_stride, rows, vectors, depth, offset, start, finish):
    """C[i, s] = finish(start(i, s) + sum_p A[i, p] B[p, s]) for a tile of rows x vectors at `offset` of its rows.

    start(slots, places) stores what the sums start from in slots[i][v], for the places (byte offsets) [i][v] of C;
    finish(sum, place) gives the vector to be stored. C is written, or added to if start reads it, and may be what
    finish reads; it aliases neither A nor B.
    """
    builder, size = simd.builder, simd.target.vector_bytes
    places = [[simd.add(simd.mul(i, c_stride), offset, v * size) for v in range(vectors)] for i in range(rows)]
    slots = [simd.variables(vectors) for _ in range(rows)]
    start(slots, places)
    with simd.loop(depth) as p:
        b_offset = simd.add(simd.mul(p.index, b_stride), offset)
        operands = [simd.load(b, simd.add(b_offset, v * size)) for v in range(vectors)]
        for i in range(rows):
            factor = simd.splat(simd.load_scalar(a, simd.add(simd.mul(i, a_row), simd.mul(p.index, a_column))))
            for slot, operand in zip(slots[i], operands, strict=True):
                builder.store(simd.fma(factor, operand, builder.load(slot)), slot)
    for i in range(rows):
        for slot, place in zip(slots[i], places[i], strict=True):
            simd.store(finish(builder.load(slot), place), c, place)


def resumed(simd, fresh, begin, c, found=None):
    """A start of `product`, for one of several parts of its depth: begin(slots) where `fresh`, else what c holds.

    It is read at the places of C, or where it is `found` instead.
    """

    def start(slots, places):
        with simd.builder.if_else(fresh) as (then, otherwise):
            with then:
                begin(slots)
            with otherwise:
                simd.load_into(slots, c, found or places)

    return start


def masked(simd, h, wanted):
    """A finish of `product`: times the derivative of ReLU at h where `wanted`; h is read at the places of C always.

    h is a preactivation or its ReLU: 1 where h > 0, 0 where h <= 0 (so at 0 and -0.0), NaN where h is. It multiplies,
    so that 0 times infinity is NaN as in NumPy.
    """
    ones = simd.splat(simd.constant(1.0))

    def finish(value, place):
        before = simd.load(h, place)
        relu = simd.select(simd.greater(simd.zeros, before), simd.zeros, before)
        mask = simd.select(simd.greater(before, simd.zeros), ones, relu)
        return simd.builder.fmul(value, simd.select(wanted, mask, ones))

    return finish


def dots(simd, g, g_stride, operands, rows, samples, finish):
    """finish(i, p, sum_s g[i, s] operands[p][s]) for `rows` rows i, tile by tile, and the rows p the operands point to.

    Samples behind the last whole vector are left out. The sums are scalars of the element type. Their lanes are added
    up behind the switch over the heights: written out for each, that was 1,600 of the sweep's 25,000 lines of LLVM IR.
    """
    builder, size, width = simd.builder, simd.target.vector_bytes, len(operands)
    sums = cgutils.alloca_once(builder, simd.vector, HEIGHT * width)
    for first, count in simd.parts(rows, HEIGHT):
        g_tile = simd.behind(g, simd.mul(first, g_stride))
        for height in simd.cases(count, range(1, HEIGHT + 1)):
            slots = [simd.variables(width, simd.zeros) for _ in range(height)]
            with simd.loop(builder.sdiv(samples, simd.int(simd.lanes))) as step:
                offset = simd.mul(step.index, size)
                right = [simd.load(operand, offset) for operand in operands]
                for i in range(height):
                    left = simd.load(g_tile, simd.add(simd.mul(i, g_stride), offset))
                    for slot, factor in zip(slots[i], right, strict=True):
                        builder.store(simd.fma(left, factor, builder.load(slot)), slot)
            for k, slot in enumerate([slot for row_slots in slots for slot in row_slots]):
                builder.store(builder.load(slot), builder.gep(sums, [simd.int(k)]))
        with simd.loop(count) as i:
            for p in range(width):
                lanes = builder.load(builder.gep(sums, [simd.add(simd.mul(i.index, width), p)]))
                finish(simd.add(first, i.index), p, simd.sum(lanes))


def transpose_block(simd, target, target_stride, source, source_stride, rows):
    """target[s, p] = source[p, s] for a square block of as many rows as a vector has lanes.

    Only the first `rows` rows of the source are read; the columns of the target behind them hold copies of the last.
    """
    last = simd.add(rows, -1)
    block = [simd.load(source, simd.mul(simd.least(p, last), source_stride)) for p in range(simd.lanes)]
    for s, vector in enumerate(simd.transpose(block)):
        simd.store(vector, target, simd.mul(s, target_stride))
