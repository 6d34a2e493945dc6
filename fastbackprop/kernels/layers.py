"""One dense layer over one tile of samples: forward, backward, weight gradient.

A tile is a block of rows in a workspace: row r starts at `tile + r * stride`, a cache line, and holds `samples`
samples, a multiple of PANEL. What lies behind the last true sample of a batch is called its tail. Tails are zero
in every operand of a weight gradient, so they add nothing, not even NaN.
"""

from fastbackprop.kernels.jit import inner
from fastbackprop.kernels.microkernels import (
    HEIGHT,
    backward_rows,
    clear_row,
    copy_row,
    dot_block,
    dot_width,
    forward_rows,
)
from fastbackprop.kernels.simd import advance


@inner
def blocks(total, largest):
    """Into how many blocks of at most `largest` rows `total` rows are cut; their heights differ by at most one."""
    return (total + largest - 1) // largest


@inner
def block_start(block, count, total):
    """The first row of a block: 8 rows in 2 blocks are 4 + 4, not 6 + 2, as short tiles waste registers."""
    return block * total // count


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
def backward_layer(dl_dh, stride, weights, row, column, dl_df, df_stride, units_out, units_in, samples, masked):
    """dl_dh = m(dl_dh) * (weights^T dl_df) over one tile, with the mask m of backward_rows.

    dl_dh is read where masked, and written; it must not alias dl_df.
    """
    count = blocks(units_in, HEIGHT)
    for block in range(count):
        first = block_start(block, count, units_in)
        height = block_start(block + 1, count, units_in) - first
        backward_rows(
            advance(dl_dh, first * stride),
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
def weight_gradient(
    dl_dweights, row, column, dl_dbiases, bias_stride, dl_df, df_stride, h, h_stride, ones, units_out, units_in, samples
):
    """dl_dweights += dl_df h^T and dl_dbiases += dl_df ones^T over one tile.

    dl_dweights and dl_dbiases are float64 and added to. dl_df and h are read, their tails are zero; so is `ones`, a
    row of ones: the bias gradient is one more column of the product, in a panel of its own.
    """
    count = blocks(units_out, HEIGHT)
    panels = blocks(units_in, dot_width(h))
    for panel in range(panels + 1):
        if panel < panels:
            p = block_start(panel, panels, units_in)
            columns = block_start(panel + 1, panels, units_in) - p
            target, target_row, operand = advance(dl_dweights, p * column), row, advance(h, p * h_stride)
        else:
            columns = 1
            target, target_row, operand = dl_dbiases, bias_stride, ones
        for block in range(count):
            i = block_start(block, count, units_out)
            height = block_start(block + 1, count, units_out) - i
            dot_block(
                advance(target, i * target_row),
                target_row,
                column,
                advance(dl_df, i * df_stride),
                df_stride,
                operand,
                h_stride,
                height,
                columns,
                samples,
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
