"""Register tiles: the two products of which backpropagation consists.

A tile of samples is stored feature-major: units in rows, samples contiguous along a row. A row starts at a cache
line, or anywhere in an array of the caller. Whole vectors are read and written, so there is no remainder along the
samples; `rest` is for rows of weights (see samples).

    multiply  C[i, s]  = S[i] + sum_p A[i, p] B[p, s]       A: weights, broadcast;  lanes along s
    dots      C[i, p]  = sum_s G[i, s] H[p, s]              both operands contiguous; lanes along s

The instructions of a register tile are emitted once for every shape that a tile can have, behind a switch (see
Simd.tiles). Edges have a tile of their own shape, and no operand is padded to more than whole vectors. Strides and
offsets are in bytes. Arguments come as outputs, inputs, sizes.
"""

from typing import NamedTuple

from llvmlite import ir
from numba.core import cgutils

from fastbackprop.kernels import CACHE_LINE

FOLLOWING = 8
"""Rows of A that are prefetched in turn: at least the rows of a tile, at most the elements of a cache line."""


class Product(NamedTuple):
    """The arguments of `multiply`: pointers, numbers and flags, all of them values of LLVM.

    A row of C, B or h has `vectors` whole vectors and then `rest` single elements. C aliases neither A nor B.

    The arguments behind `fresh` may be left out: then S is 0, and there is no rest, floor, mask or prefetch.
    """

    c: ir.Value
    c_row: ir.Value
    a: ir.Value
    a_row: ir.Value
    a_column: ir.Value
    b: ir.Value
    b_row: ir.Value
    rows: ir.Value
    vectors: ir.Value
    depth: ir.Value
    fresh: ir.Value  # whether the sum starts from S; else C is added at its end
    rest: ir.Value
    start: ir.Value  # S, a number for each row
    start_row: ir.Value
    floor: ir.Value
    masked: ir.Value
    h: ir.Value  # read where `masked`, in rows like those of C, which it may be
    h_row: ir.Value
    ahead: ir.Value  # elements of A's next rows that are prefetched before a register tile


def multiply(simd, **arguments):
    """C[i, s] = max(floor, S + A B), or m(h) * (S + A B) if `masked`; unless `fresh`, S is C: see Product.

    m is the derivative of ReLU at h, a preactivation or its ReLU: 1 where h > 0, 0 where h <= 0 (so at 0 and -0.0), NaN
    where h is NaN. It multiplies, so that 0 times infinity is NaN as in NumPy. max(floor, NaN) is NaN.

    All register tiles are in one function, once in a module, and how they begin and end is chosen at run time. With one
    function for each product of a layer, register tiles were half of the instructions to compile.
    """
    if "start" not in arguments:
        arguments |= {"start": cgutils.alloca_once_value(simd.builder, simd.constant(0.0)), "start_row": 0}
    left_out = {"rest": 0, "floor": simd.lowest, "masked": simd.false, "ahead": 0}
    left_out |= {"h": arguments["c"], "h_row": arguments["c_row"]}
    simd.call(product, *Product(**left_out | arguments))


def product(simd, *arguments):
    """The function of all register tiles: its arguments are those of Product."""
    t = Product(*arguments)
    for first, height in simd.tiles(t.rows, simd.tile_rows):
        a = simd.behind(t.a, simd.mul(first, t.a_row))
        simd.prefetch_rows(simd.behind(a, simd.mul(height, t.a_row)), t.a_row, height, t.ahead)
        for vectors, offset in simd.panels(t.vectors):
            register_tile(simd, t, a, first, height, vectors, offset)
        with simd.loop(t.rest) as p:
            place = simd.add(simd.mul(t.vectors, simd.target.vector_bytes), simd.mul(p.index, simd.itemsize))
            register_tile(simd.scalar(), t, a, first, height, 1, place)


def prefetch_following(simd, t, a, column, height, p):
    """Prefetch, in step p of a tile, a part of A that comes next: of the rows in turn, or a cache line of its columns.

    Weights of wide networks come from L3. Measured: 512 to 2048 units took 2 to 6 % less time (1 MB of L2, Zen 5,
    2026-11); backward products of 1024 units reached 114 instead of 108 (float32) and 54 instead of 51 GFLOP/s
    (float64, Zen 4). A burst of prefetches before each tile gained nothing.
    """
    builder = simd.builder
    row = builder.urem(p, simd.int(FOLLOWING))
    in_row = simd.mul(builder.sub(p, row), t.a_column)
    following = simd.behind(a, simd.mul(simd.add(row, height), t.a_row), in_row)
    contiguous = builder.icmp_signed("==", t.a_column, simd.int(simd.itemsize))
    simd.prefetch(builder.select(contiguous, following, simd.behind(a, column, CACHE_LINE)))


def register_tile(simd, t, a, first, height, vectors, offset):
    """Rows [first, first + height) of a product, `vectors` vectors of each at that byte offset.

    a: these rows of A.
    """
    builder, size = simd.builder, simd.target.vector_bytes
    slots = [simd.variables(vectors) for _ in range(height)]

    def places(start, row):
        corner = simd.behind(start, simd.mul(first, row), offset)
        for row_slots in slots:
            for v, slot in enumerate(row_slots):
                yield slot, corner, v * size
            corner = simd.behind(corner, row)

    for i, row_slots in enumerate(slots):
        start = simd.splat(simd.load_scalar(t.start, simd.mul(simd.add(first, i), t.start_row)))
        for slot in row_slots:
            builder.store(builder.select(t.fresh, start, simd.zeros), slot)
    rows = [simd.behind(a, simd.mul(i, t.a_row)) for i in range(height)]

    with simd.loop(t.depth) as p:
        b = simd.behind(t.b, simd.mul(p.index, t.b_row), offset)
        operands = [simd.load(b, v * size) for v in range(vectors)]
        column = simd.mul(p.index, t.a_column)
        if height == simd.tile_rows and vectors == simd.tile_vectors:
            prefetch_following(simd, t, a, column, height, p.index)
        for row, row_slots in zip(rows, slots, strict=True):
            factor = simd.splat(simd.load_scalar(row, column))
            for slot, operand in zip(row_slots, operands, strict=True):
                builder.store(simd.fma(factor, operand, builder.load(slot)), slot)
    with builder.if_then(builder.not_(t.fresh)):
        for slot, c, place in places(t.c, t.c_row):
            builder.store(builder.fadd(simd.load(c, place), builder.load(slot)), slot)
    with builder.if_else(t.masked) as (then, otherwise):
        with then:
            ones = simd.splat(simd.constant(1.0))
            for (slot, c, place), (_, h, _) in zip(places(t.c, t.c_row), places(t.h, t.h_row), strict=True):
                h = simd.load(h, place)
                mask = builder.select(simd.greater(h, simd.zeros), ones, simd.greatest(simd.zeros, h))
                simd.store(builder.fmul(builder.load(slot), mask), c, place)
        with otherwise:
            floor = simd.splat(t.floor)
            for slot, c, place in places(t.c, t.c_row):
                simd.store(simd.greatest(floor, builder.load(slot)), c, place)


def dots(simd, g, g_stride, operands, rows, samples, store_sum):
    """store_sum(i, p, sum_s g[i, s] operands[p][s]) for `rows` rows i, tile by tile, and each of the operands p.

    Samples behind the last whole vector are left out. The sums are scalars of the element type. Their lanes are added
    once behind the switch over the heights: added within each case, they took 1,600 lines of LLVM IR.
    """
    builder, size, width = simd.builder, simd.target.vector_bytes, len(operands)
    sums = cgutils.alloca_once(builder, simd.vector, simd.tile_rows * width)
    for first, count in simd.parts(rows, simd.tile_rows):
        g_tile = simd.behind(g, simd.mul(first, g_stride))
        for height in simd.cases(count, range(1, simd.tile_rows + 1)):
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
                store_sum(simd.add(first, i.index), p, simd.sum(lanes))


def transpose_vectors(simd, target, target_stride, source, source_stride, rows):
    """target[s, p] = source[p, s] for one vector of samples s, and one row p for each lane of a vector.

    Only the first `rows` rows of the source are read; the columns of the target behind them hold copies of the last.
    """
    last = simd.add(rows, -1)
    vectors = [simd.load(source, simd.mul(simd.least(p, last), source_stride)) for p in range(simd.lanes)]
    for s, vector in enumerate(simd.transpose(vectors)):
        simd.store(vector, target, simd.mul(s, target_stride))
