"""One dense layer over one tile of samples: forward, backward, weight gradient.

A tile is some rows of a workspace: row r starts at `tile + r * stride`, a cache line, and holds `samples` samples,
whole vectors of the target. The columns behind the last sample of a batch are its tail. Tails are zero in every operand
of a weight gradient along the samples, so they add nothing, not even NaN. Rows of h and f may also be rows of a
caller's array, at any address and stride, if it holds whole vectors of samples.

Strides and columns are in bytes. Arguments come as outputs, inputs, sizes.
"""

from fastbackprop.engine.limits import DEPTH
from fastbackprop.kernels.register_tiles import dots, multiply, transpose_vectors
from fastbackprop.kernels.simd import kernel

SAMPLES = 128
"""Largest number of samples of a transposed tile whose terms are summed at once: 4 vectors of each are 32 KB."""

COLUMN_BYTES = 4096
"""Largest part of a sample of a transposed tile, in bytes, that a product takes at once for all rows: it stays in L2.

Measured: with whole samples, 10000-50-10 took 1.2 to 1.6 times as long in float64, and 1024 units reached 81 % of the
peak instead of 88. With 1024 bytes, 3072-100-10 and 784-512-10 took 1 to 10 % longer (one thread, Zen 5).
"""


@kernel
def forward_layer(simd, f, f_stride, weights, biases, h, h_stride, units_out, units_in, samples, has_relu):
    """f = weights h + biases over one tile, or ReLU(weights h + biases) if has_relu is not 0.

    weights (units_out, units_in) and biases (units_out,) are contiguous. f is written, the others are read; f must not
    alias h. ReLU(NaN) is NaN.
    """
    builder = simd.builder
    for p, depth in simd.parts(units_in, DEPTH):
        last = builder.icmp_signed("==", simd.add(p, depth), units_in)
        clipped = builder.and_(last, builder.icmp_signed("!=", has_relu, simd.int(0)))
        multiply(
            simd,
            c=f,
            c_row=f_stride,
            a=simd.item(weights, p),
            a_row=simd.mul(units_in, simd.itemsize),
            a_column=simd.itemsize,
            b=simd.behind(h, simd.mul(p, h_stride)),
            b_row=h_stride,
            rows=units_out,
            vectors=builder.sdiv(samples, simd.int(simd.lanes)),
            depth=depth,
            fresh=builder.icmp_signed("==", p, simd.int(0)),
            start=biases,
            start_row=simd.itemsize,
            floor=builder.select(clipped, simd.constant(0.0), simd.lowest),
        )


@kernel
def backward_layer(
    simd, result, stride, h, h_stride, weights, dl_df, df_stride, units_out, units_in, samples, with_mask, terms
):
    """result = m(h) * (weights^T dl_df) over one tile: dl/df_{k-1}, or dl/dh_k without a mask.

    The mask is taken from h, a preactivation or its ReLU. If with_mask is 0, m = 1, whatever h holds. Sums are cut into
    parts of at most `terms` terms; if there is one part, h may be the result itself. result is written, h and dl_df are
    read; dl_df must not alias result. weights (units_out, units_in) are contiguous.
    """
    builder = simd.builder
    row = simd.mul(units_in, simd.itemsize)
    asked = builder.icmp_signed("!=", with_mask, simd.int(0))
    for p, depth in simd.parts(units_out, terms):
        last = builder.icmp_signed("==", simd.add(p, depth), units_out)
        multiply(
            simd,
            c=result,
            c_row=stride,
            a=simd.behind(weights, simd.mul(p, row)),
            a_row=simd.itemsize,
            a_column=row,
            b=simd.behind(dl_df, simd.mul(p, df_stride)),
            b_row=df_stride,
            rows=units_in,
            vectors=builder.sdiv(samples, simd.int(simd.lanes)),
            depth=depth,
            fresh=builder.icmp_signed("==", p, simd.int(0)),
            h=h,
            h_row=h_stride,
            masked=builder.and_(last, asked),
        )


@kernel
def dot_gradient(
    simd, dl_dweights, row, dl_dbiases, dl_df, df_stride, h, h_stride, ones, units_out, units_in, first_column, samples
):
    """dl_dweights += dl_df h^T and dl_dbiases += dl_df ones^T over one tile, along the samples.

    dl_dweights (units_out, units_in) and dl_dbiases (units_out,) are added to. dl_df, h and `ones`, a row of ones, are
    read; the tails of dl_df and h are zero. The bias gradient is one more column of the product. Columns before
    first_column are left out: if it is units_in, only the bias gradient is computed.
    """
    builder = simd.builder
    total = builder.sub(simd.add(units_in, 1), first_column)
    for panel, width in simd.tiles(total, simd.tile_vectors):
        p = simd.add(first_column, panel)
        behind = simd.add(p, width - 1)
        ends = builder.icmp_signed("==", behind, units_in)
        last = builder.select(ends, ones, simd.behind(h, simd.mul(behind, h_stride)))
        operands = [simd.behind(h, simd.mul(simd.add(p, q), h_stride)) for q in range(width - 1)] + [last]
        last_start = builder.select(ends, dl_dbiases, simd.item(dl_dweights, behind))
        last_row = builder.select(ends, simd.int(simd.itemsize), row)

        def store_sum(i, q, total, p=p, width=width, last_start=last_start, last_row=last_row):
            if q < width - 1:
                target = simd.behind(simd.item(dl_dweights, simd.add(p, q)), simd.mul(i, row))
            else:
                target = simd.behind(last_start, simd.mul(i, last_row))
            simd.store(builder.fadd(simd.load_scalar(target, 0), total), target, 0)

        dots(simd, dl_df, df_stride, operands, units_out, samples, store_sum)


@kernel
def weight_gradient(
    simd, dl_dweights, row, dl_df, df_stride, transposed, stride, units_out, units_in, samples, samples_before
):
    """dl_dweights = dl_df h^T over one tile, along the units, from h already transposed; += if samples_before is not 0.

    Rows of dl_dweights and of `transposed` are whole vectors: elements behind units_in are read, and overwritten in
    dl_dweights. Any number of samples is allowed: tails are not read. The terms of SAMPLES samples are summed before
    they are added, so a sum of thousands of samples rounds as rarely as NumPy's.
    """
    builder = simd.builder
    row_vectors = simd.ceil_div(units_in, simd.lanes)
    for s, depth in simd.parts(samples, SAMPLES):
        for first, count in simd.range(row_vectors, COLUMN_BYTES // simd.target.vector_bytes):
            column = simd.mul(first, simd.target.vector_bytes)
            multiply(
                simd,
                c=simd.behind(dl_dweights, column),
                c_row=row,
                a=simd.behind(dl_df, simd.mul(s, simd.itemsize)),
                a_row=df_stride,
                a_column=simd.itemsize,
                b=simd.behind(transposed, simd.mul(s, stride), column),
                b_row=stride,
                rows=units_out,
                vectors=count,
                depth=depth,
                fresh=builder.icmp_signed("==", simd.add(s, samples_before), simd.int(0)),
                # Rows of wide networks come from L3: prefetching them saves 1 to 7 %. Prefetching a transposed
                # tile, weights, or what products write saved nothing, nor did a panel that stays in L1 for all
                # rows.
                ahead=depth,
            )


@kernel
def transpose(simd, target, target_stride, source, source_stride, rows, samples):
    """target[s, p] = source[p, s]; whole vectors are written, samples are a multiple of their lanes."""
    for p, height in simd.range(rows, simd.lanes):
        for s, _ in simd.range(samples, simd.lanes):
            corner = simd.behind(target, simd.mul(s, target_stride), simd.mul(p, simd.itemsize))
            start = simd.behind(source, simd.mul(p, source_stride), simd.mul(s, simd.itemsize))
            transpose_vectors(simd, corner, target_stride, start, source_stride, height)
