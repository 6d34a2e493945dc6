"""One dense layer over one tile of samples: forward, backward, weight gradient.

A tile is a block of rows in a workspace: row r starts at `tile + r * stride`, a cache line, and holds `samples`
samples, whole vectors of the target. What lies behind the last true sample of a batch is called its tail. Tails are
zero in every operand of a weight gradient along the samples, so they add nothing, not even NaN.
"""

from fastbackprop.kernels import CACHE_LINE
from fastbackprop.kernels.jit import inner
from fastbackprop.kernels.microkernels import (
    HEIGHT,
    backward_rows,
    clear_row,
    copy_row,
    dot_block,
    dot_width,
    forward_rows,
    gradient_rows,
    transpose_block,
)
from fastbackprop.kernels.simd import advance, vector_lanes

DEPTH = 128
"""The samples of a transposed tile that one pass over the weight gradient takes: 4 vectors of each are 32 KB."""


@inner
def blocks(total, largest):
    """Into how many blocks of at most `largest` rows `total` rows are cut; their heights differ by at most one."""
    return (total + largest - 1) // largest


@inner
def block_start(block, count, total):
    """The first row of a block: 8 rows in 2 blocks are 4 + 4, not 6 + 2, as short tiles waste registers."""
    return block * total // count


@inner
def whole_vectors(count, tile):
    """`count` samples rounded up to whole vectors of the target."""
    lanes = vector_lanes(tile)
    return (count + lanes - 1) // lanes * lanes


@inner
def row_stride(tile, tile_samples):
    """The bytes from one row of a tile to the next: an odd number of cache lines, so that no two rows of a register
    tile fall into the same set of a cache."""
    return tile_samples * tile.itemsize + CACHE_LINE


@inner
def fill_row(tile, start, count):
    """Set tile[start], ..., tile[start + count - 1] to 1."""
    row = tile[start : start + count]
    for s in range(count):
        row[s] = row.dtype.type(1.0)


@inner
def forward_layer(
    f, f_stride, weights, row, column, biases, bias_stride, h, h_stride, units_out, units_in, samples, floor
):
    """f = max(floor, weights h + biases) over one tile. f is written and must not alias h."""
    count = blocks(units_out, HEIGHT)
    for block in range(count):
        first = block_start(block, count, units_out)
        height = block_start(block + 1, count, units_out) - first
        forward_rows(
            advance(f, first * f_stride),
            f_stride,
            advance(weights, first * row),
            row,
            column,
            advance(biases, first * bias_stride),
            bias_stride,
            h,
            h_stride,
            height,
            units_in,
            samples,
            floor,
        )


@inner
def backward_layer(dl_dh, h, stride, weights, row, column, dl_df, df_stride, units_out, units_in, samples, masked):
    """dl_dh = m(h) * (weights^T dl_df) over one tile, with the mask m of backward_rows.

    dl_dh is written; it may be h, which is read where masked, and must not alias dl_df.
    """
    count = blocks(units_in, HEIGHT)
    for block in range(count):
        first = block_start(block, count, units_in)
        height = block_start(block + 1, count, units_in) - first
        backward_rows(
            advance(dl_dh, first * stride),
            advance(h, first * stride),
            stride,
            advance(weights, first * column),
            column,
            row,
            dl_df,
            df_stride,
            height,
            units_out,
            samples,
            masked,
        )


@inner
def dot_gradient(
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
    first,
    samples,
):
    """dl_dweights += dl_df h^T and dl_dbiases += dl_df ones^T over one tile, along the samples.

    dl_dweights and dl_dbiases are float64 and added to. dl_df and h are read, their tails are zero; so is `ones`, a
    row of ones: the bias gradient is one more column of the product. Columns in front of `first` are left out.
    """
    count = blocks(units_out, HEIGHT)
    total = units_in + 1 - first
    panels = blocks(total, dot_width(h))
    for panel in range(panels):
        p = first + block_start(panel, panels, total)
        columns = first + block_start(panel + 1, panels, total) - p
        for block in range(count):
            i = block_start(block, count, units_out)
            height = block_start(block + 1, count, units_out) - i
            last, last_row, operand = advance(dl_dweights, i * row + (p + columns - 1) * column), row, h
            if panel == panels - 1:
                last, last_row, operand = advance(dl_dbiases, i * bias_stride), bias_stride, ones
            else:
                operand = advance(h, (p + columns - 1) * h_stride)
            dot_block(
                advance(dl_dweights, i * row + p * column),
                row,
                column,
                last,
                last_row,
                advance(dl_df, i * df_stride),
                df_stride,
                advance(h, p * h_stride),
                h_stride,
                operand,
                height,
                columns,
                samples,
            )


@inner
def transpose(target, target_stride, source, source_stride, itemsize, rows, samples):
    """target[s, p] = source[p, s]; whole vectors are written, samples are a multiple of their lanes."""
    lanes = vector_lanes(source)
    for p in range(0, rows, lanes):
        for s in range(0, samples, lanes):
            transpose_block(
                advance(target, s * target_stride + p * itemsize),
                target_stride,
                advance(source, p * source_stride + s * itemsize),
                source_stride,
                rows - p,
            )


@inner
def weight_gradient(dl_dweights, row, dl_df, df_stride, transposed, stride, itemsize, units_out, units_in, samples):
    """dl_dweights += dl_df h^T over one tile, along the units, from h already transposed.

    dl_dweights is of the element type and added to, in rows of whole vectors. Samples need not be a multiple of
    anything: tails are not read.
    """
    count = blocks(units_out, HEIGHT)
    for first in range(0, samples, DEPTH):
        for block in range(count):
            i = block_start(block, count, units_out)
            gradient_rows(
                advance(dl_dweights, i * row),
                row,
                advance(dl_df, i * df_stride + first * itemsize),
                df_stride,
                advance(transposed, first * stride),
                stride,
                block_start(block + 1, count, units_out) - i,
                units_in,
                min(DEPTH, samples - first),
            )


@inner
def copy_rows(target, target_stride, source, source_row, source_column, rows, count):
    """target[r, s] = source[r, s] for s < count. The source has any strides, the target's rows are contiguous."""
    for r in range(rows):
        copy_row(advance(target, r * target_stride), advance(source, r * source_row), source_column, count)


@inner
def clear_tail(tile, stride, itemsize, rows, count, samples):
    """tile[r, s] = 0 for count <= s < samples."""
    if count < samples:
        for r in range(rows):
            clear_row(advance(tile, r * stride + count * itemsize), samples - count)
