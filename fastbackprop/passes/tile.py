"""The phases: each step of backpropagation on one tile, in the order of the book.

A tile holds `count` samples, in columns. Its rows are, one below the other:

    h_0 | h_1 ... h_K | output, then dl/df_K | target | sample weights and sums of the loss | ones

h_{k+1} = ReLU(f_k) overwrites f_k. dl/df_{k-1} overwrites h_k after the weight gradient of layer k, or has rows behind
the ones: if a pass needs h_k later, or if sums are cut into parts. The layout decides which (`dl_df_at`). Products
write whole vectors of samples, so the columns behind the last sample, the tail, are cleared: 0 in every operand of a
weight gradient. Calls of products have one operand a line: outputs, inputs, sizes.

numba replaces the call of a phase by its code before it types anything: a pass is typed, lowered and optimised once,
and no phase is compiled on its own, see jit.phase.
"""

from fastbackprop.kernels.jit import phase
from fastbackprop.kernels.records import record_at
from fastbackprop.kernels.rows import clear_tail, fill_with_ones, whole_vectors
from fastbackprop.kernels.simd import advance


@phase
def take_input(call, tile, first, count):
    """h_0 = columns [first, first + count) of the input; and a row of ones, for the bias gradients."""
    columns, samples = advance(call.net_input, first * call.input_column), whole_vectors(count, tile)
    call.copy_rows(tile, call.row_bytes, columns, call.input_row, call.input_column, call.inputs, count)
    clear_tail(tile, call.row_bytes, call.inputs, count, samples)
    fill_with_ones(advance(tile, call.ones_at), samples)


@phase
def forward(call, tile, count):
    """h_{k+1} = ReLU(Omega_k h_k + beta_k) for k = 0 ... K, in place of f_k; the output is f_K itself."""
    row, samples = call.row_bytes, whole_vectors(count, tile)
    for k in range(call.layers):
        layer = record_at(call.layer, k)
        f = advance(tile, layer.f_at)
        # fmt: off
        call.forward_layer(
            f, row,
            record_at(call.all_weights, k).data,
            record_at(call.all_biases, k).data,
            advance(tile, layer.h_at), row,
            layer.units_out, layer.units_in, samples, layer.has_relu,
        )
        # fmt: on
        clear_tail(f, row, layer.units_out, count, samples)


@phase
def take_loss(call, tile, losses, first, count):
    """dl/df_K in place of the output, and the loss of each sample is added to a row of losses.

    The tiles of a chunk add to the same row: entry s is the sum over the s-th samples of all tiles. In a shared pass,
    each sample has an entry of its own.
    """
    take_target(call, tile, first, count)
    take_sample_weights(call, advance(tile, call.sample_weight_at), first, count)
    apply_loss(call, tile, losses, count, call.scale)


@phase
def apply_loss(call, tile, losses, count, scale):
    """scale times dl/df_K in place of the output, from the target and the weights in the tile."""
    row = call.row_bytes // call.itemsize
    call.loss(losses, advance(tile, call.output_at), row, call.outputs, call.target_rows, count, scale)


@phase
def take_target(call, tile, first, count):
    """The target, to its rows."""
    target = advance(call.target, first * call.target_column)
    rows = advance(tile, call.target_at)
    call.copy_rows(rows, call.row_bytes, target, call.target_row, call.target_column, call.target_rows, count)


@phase
def take_sample_weights(call, row, first, count):
    """The weight of each sample, to a row: 1 if there are no weights."""
    if call.is_weighted:
        weight = advance(call.sample_weight, first * call.weight_column)
        call.copy_rows(row, call.row_bytes, weight, 0, call.weight_column, 1, count)
    else:
        fill_with_ones(row, count)


@phase
def backward(call, tile, k, count):
    """dl/df_{k-1} = (Omega_k^T dl/df_k) * [h_k > 0]."""
    layer, row, samples = record_at(call.layer, k), call.row_bytes, whole_vectors(count, tile)
    dl_df = advance(tile, record_at(call.layer, k - 1).dl_df_at)
    # fmt: off
    call.backward_layer(
        dl_df, row,
        advance(tile, layer.h_at), row,
        record_at(call.all_weights, k).data,
        advance(tile, layer.dl_df_at), row,
        layer.units_out, layer.units_in, samples, 1, layer.most_terms,
    )
    # fmt: on
    clear_tail(dl_df, row, layer.units_in, count, samples)


@phase
def give_input_gradient(call, tile, first, count):
    """dl/dinput = Omega_0^T dl/df_0, to the caller's columns [first, first + count), if it is wanted."""
    if call.wants_columns_out:
        layer, row, dl_dinput = record_at(call.layer, 0), call.row_bytes, advance(tile, call.dl_dinput_at)
        # fmt: off
        call.backward_layer(
            dl_dinput, row,
            dl_dinput, row,
            record_at(call.all_weights, 0).data,
            advance(tile, layer.dl_df_at), row,
            layer.units_out, layer.units_in, whole_vectors(count, tile), 0, layer.most_terms,
        )
        # fmt: on
        give_columns(call, dl_dinput, first, call.inputs, count)


@phase
def give_columns(call, rows, first, units, count):
    """The caller's columns [first, first + count) = rows of a tile: of the output, or of dl/dinput."""
    target = advance(call.columns_out, first * call.itemsize)
    call.copy_rows(target, call.columns_out_row, rows, call.row_bytes, call.itemsize, units, count)


@phase
def add_weight_gradient(
    call, layer, partial, row, biases, dl_df, h, h_row, ones, transposed, units, inputs, count, samples_before
):
    """dl/dOmega_k += dl/df_k h_k^T and dl/dbeta_k += dl/df_k 1^T over one tile, for a block of layer k or all of it.

    partial (units, inputs) and biases (units,) are parts of the gradient that is summed; dl_df has `units` rows, h has
    `inputs` rows. Narrow layers sum along the samples. Wide layers sum along the units, from transposed activations,
    and only the bias gradient along the samples. partial is added to; it is written if the layer is wide and
    samples_before is 0.
    """
    samples = whole_vectors(count, dl_df)
    first_column = 0
    # fmt: off
    if layer.along_units:
        first_column = inputs
        call.weight_gradient(
            partial, row,
            dl_df, call.row_bytes,
            transposed, layer.transposed_row,
            units, inputs, count, samples_before,
        )
    call.dot_gradient(
        partial, row,
        biases,
        dl_df, call.row_bytes,
        h, h_row,
        ones,
        units, inputs, first_column, samples,
    )
    # fmt: on


@phase
def add_layer_gradient(call, tile, partial, k, h, h_row, count, samples_before):
    """The whole weight gradient of layer k over one tile, added to a partial gradient."""
    transpose_layer(call, tile, k, h, h_row, count)
    add_transposed(call, tile, partial, k, h, h_row, count, samples_before)


@phase
def transpose_layer(call, tile, k, h, h_row, count):
    """h_k sample by sample, if the weight gradient of layer k is taken along the units."""
    layer = record_at(call.layer, k)
    if layer.along_units:
        transposed = advance(tile, call.transposed_at)
        call.transpose(transposed, layer.transposed_row, h, h_row, layer.units_in, whole_vectors(count, h))


@phase
def add_transposed(call, tile, partial, k, h, h_row, count, samples_before):
    """The whole weight gradient of layer k, whose activations have been transposed."""
    layer = record_at(call.layer, k)
    weights, biases = advance(partial, layer.partial_at), advance(partial, layer.partial_biases_at)
    dl_df, ones = advance(tile, layer.dl_df_at), advance(tile, call.ones_at)
    transposed = advance(tile, call.transposed_at)
    units, inputs, row = layer.units_out, layer.units_in, layer.partial_row
    add_weight_gradient(
        call, layer, weights, row, biases, dl_df, h, h_row, ones, transposed, units, inputs, count, samples_before
    )
