"""The notebooks' passes: forward, which returns every f_k and h_{k+1}, and backward, which takes them.

If the caller's rows hold whole vectors of samples, products read and write them in place. The last samples of a batch,
and lists whose rows are not contiguous, are copied through the rows of a tile.

Measured: in place, both passes of 1,000 to 100,000 samples of 1-6x5-1 and 8-16x3-1 took 3 to 16 % less time (Zen 5,
2026-11).
"""

from fastbackprop.kernels.jit import phase
from fastbackprop.kernels.records import record_at
from fastbackprop.kernels.rows import clear_tail, relu_rows, whole_vectors
from fastbackprop.kernels.simd import advance
from fastbackprop.passes.tile import add_layer_gradient, give_input_gradient, take_input, take_loss


@phase
def is_in_place(call, count, tile):
    """Whether products may use the caller's columns where they are."""
    return call.in_place != 0 and whole_vectors(count, tile) == count


@phase
def rows_at(call, columns, rows, first, in_place):
    """The address of the columns from `first` on, and the stride of their rows: in place, or in rows of a tile."""
    start, row = rows, call.row_bytes
    if in_place:
        start, row = advance(columns.data, first * columns.column), columns.row
    return start, row


@phase
def take_columns(call, columns, rows, first, units, count, in_place):
    """The same, after the columns have been copied to the rows of the tile, with zeros behind them, if not in place."""
    if not in_place:
        source = advance(columns.data, first * columns.column)
        call.copy_rows(rows, call.row_bytes, source, columns.row, columns.column, units, count)
        clear_tail(rows, call.row_bytes, units, count, whole_vectors(count, rows))
    return rows_at(call, columns, rows, first, in_place)


@phase
def give_rows(call, columns, rows, first, units, count):
    """The caller's columns = rows of a tile; they are contiguous along a row."""
    target = advance(columns.data, first * call.itemsize)
    call.copy_rows(target, columns.row, rows, call.row_bytes, call.itemsize, units, count)


@phase
def forward_columns(call, tile, k, h, h_row, first, count):
    """f_k and h_{k+1} = ReLU(f_k), to the caller's columns. Returns where h_{k+1} is, and the stride of its rows."""
    layer, samples, in_place = record_at(call.layer, k), whole_vectors(count, tile), is_in_place(call, count, tile)
    all_f, all_h, rows = record_at(call.all_f, k), record_at(call.all_h, k), advance(tile, layer.f_at)
    f, f_row = rows_at(call, all_f, rows, first, in_place)
    activations, row = rows_at(call, all_h, rows, first, in_place)
    # fmt: off
    call.forward_layer(
        f, f_row,
        record_at(call.all_weights, k).data,
        record_at(call.all_biases, k).data,
        h, h_row,
        layer.units_out, layer.units_in, samples, 0,
    )
    # fmt: on
    if not in_place:
        give_rows(call, all_f, f, first, layer.units_out, count)
    if layer.has_relu:
        relu_rows(activations, row, f, f_row, layer.units_out, samples)
        if not in_place:
            give_rows(call, all_h, activations, first, layer.units_out, count)
    return activations, row


def forward_tile(call, tile, first, count):
    """f_k = Omega_k h_k + beta_k and h_{k+1} = ReLU(f_k), to the caller's lists."""
    take_input(call, tile, first, count)
    h, h_row = tile, call.row_bytes
    for k in range(call.layers):
        h, h_row = forward_columns(call, tile, k, h, h_row, first, count)


@phase
def begin_backward(call, tile, losses, first, count):
    """h_0, and dl/df_K from the caller's f_K."""
    take_input(call, tile, first, count)
    output, f = advance(tile, call.output_at), record_at(call.all_f, call.layers - 1)
    take_columns(call, f, output, first, call.outputs, count, False)
    take_loss(call, tile, losses, first, count)
    if call.wants_intermediates:
        give_rows(call, record_at(call.all_dl_df, call.layers - 1), output, first, call.outputs, count)


@phase
def backward_columns(call, tile, k, first, count, in_place):
    """dl/df_{k-1}, masked by the caller's f_{k-1}; also dl/dh_k, which has no mask, if wanted.

    If both are wanted, the product is computed twice.
    """
    layer, samples = record_at(call.layer, k), whole_vectors(count, tile)
    rows, columns = advance(tile, layer.h_at), record_at(call.all_f, k - 1)
    result = advance(tile, record_at(call.layer, k - 1).dl_df_at)
    for with_mask in range(0 if call.wants_intermediates else 1, 2):
        f, f_row = take_columns(call, columns, rows, first, layer.units_in, count, in_place)
        # fmt: off
        call.backward_layer(
            result, call.row_bytes,
            f, f_row,
            record_at(call.all_weights, k).data,
            advance(tile, layer.dl_df_at), call.row_bytes,
            layer.units_out, layer.units_in, samples, with_mask, layer.most_terms,
        )
        # fmt: on
        clear_tail(result, call.row_bytes, layer.units_in, count, samples)
        if call.wants_intermediates:
            wanted = record_at(call.all_dl_df if with_mask else call.all_dl_dh, k - 1)
            give_rows(call, wanted, result, first, layer.units_in, count)


def backward_tile(call, tile, partial, losses, first, count, samples_before):
    """dl/df_{k-1} = (Omega_k^T dl/df_k) * [f_{k-1} > 0], and the weight gradients with the caller's h_k."""
    begin_backward(call, tile, losses, first, count)
    in_place = is_in_place(call, count, tile)
    for k in range(call.layers - 1, -1, -1):
        layer = record_at(call.layer, k)
        h, h_row = tile, call.row_bytes
        if k > 0:
            rows, columns = advance(tile, layer.h_at), record_at(call.all_h, k - 1)
            h, h_row = take_columns(call, columns, rows, first, layer.units_in, count, in_place)
        add_layer_gradient(call, tile, partial, k, h, h_row, count, samples_before)
        if k > 0:
            backward_columns(call, tile, k, first, count, in_place)
    give_input_gradient(call, tile, first, count)
