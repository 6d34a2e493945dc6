"""The pass of few samples: the whole network with vector lanes along the units, in one call.

With fewer samples than a vector has lanes, a tile would be mostly padding. Here activations are stored sample by
sample, units contiguous, and weights are read in place, row by row. The workspace holds

    h_0 | h_1 ... h_K | output, then dl/df_K | dl/dinput, dl/df_0 ... dl/df_{K-1} | the rows of the loss

Each is a matrix (samples, units), except the rows of the loss, (units, samples). Measured: N = 1 of 1-6x5-1 takes 18
instead of 46 us; 8 samples of 784-100-10 took 23 (float32) and 48 us (float64), with tiles of samples 58 and 80
(AVX-512, 2026-11).
"""

from fastbackprop.kernels.jit import phase
from fastbackprop.kernels.records import record_at
from fastbackprop.kernels.rows import clear
from fastbackprop.kernels.samples import relu
from fastbackprop.kernels.simd import advance
from fastbackprop.passes.chunks import add_losses
from fastbackprop.passes.tile import take_sample_weights


def few_gradient_pass(call, thread, threads):
    """The gradient and the loss of a few samples, by one thread."""
    forward_few(call)
    output = advance(call.tiles, call.output_at * call.samples)
    take_loss_of_few(call, output)
    for k in range(call.layers - 1, -1, -1):
        layer = record_at(call.layer, k)
        dl_df = advance(call.tiles, layer.dl_df_at * call.samples)
        weight_gradient_of_few(call, layer, dl_df)
        if k > 0:
            dl_df_before = advance(call.tiles, record_at(call.layer, k - 1).dl_df_at * call.samples)
            backward_few(call, dl_df_before, dl_df, k, 1)
        elif call.wants_columns_out:
            dl_dinput = advance(call.tiles, call.dl_dinput_at * call.samples)
            backward_few(call, dl_dinput, dl_df, k, 0)
            give_few(call, dl_dinput, call.inputs)


def few_predict_pass(call, thread, threads):
    """The output of a few samples, by one thread."""
    forward_few(call)
    give_few(call, advance(call.tiles, call.output_at * call.samples), call.outputs)


@phase
def forward_few(call):
    """h_{k+1} = ReLU(Omega_k h_k + beta_k), sample by sample. The input is copied transposed, a row for each sample."""
    samples, item = call.samples, call.itemsize
    call.copy_rows(
        call.tiles, call.inputs * item, call.net_input, call.input_column, call.input_row, samples, call.inputs
    )
    for k in range(call.layers):
        layer = record_at(call.layer, k)
        f = advance(call.tiles, layer.f_at * samples)
        # fmt: off
        call.forward_samples(
            f, layer.units_out * item,
            record_at(call.all_weights, k).data,
            record_at(call.all_biases, k).data,
            advance(call.tiles, layer.h_at * samples), layer.units_in * item,
            layer.units_out, layer.units_in, samples,
        )
        # fmt: on
        if layer.has_relu:
            relu(f, samples * layer.units_out)


@phase
def take_loss_of_few(call, output):
    """dl/df_K in place of the output. In the rows of the loss, samples are contiguous, as in a tile."""
    samples, item, losses = call.samples, call.itemsize, call.sample_losses
    row = samples * item
    rows = advance(call.tiles, call.target_at * samples)  # a copy of the output, then the target and so on
    target, weights = advance(rows, call.outputs * row), advance(rows, 2 * call.outputs * row)
    call.copy_rows(rows, row, output, item, call.outputs * item, call.outputs, samples)
    call.copy_rows(target, row, call.target, call.target_row, call.target_column, call.target_rows, samples)
    take_sample_weights(call, weights, 0, samples)
    clear(losses, samples)
    call.loss(losses, rows, samples, call.outputs, call.target_rows, samples, call.scale)
    call.copy_rows(output, call.outputs * item, rows, item, row, samples, call.outputs)
    add_losses(call, losses, samples)


@phase
def weight_gradient_of_few(call, layer, dl_df):
    """dl/dOmega_k = sum_s dl/df_k[s] h_k[s]^T and dl/dbeta_k = sum_s dl/df_k[s]."""
    samples, units, item = call.samples, layer.units_out, call.itemsize
    h, row = advance(call.tiles, layer.h_at * samples), layer.units_in * item
    dl_dweights = advance(call.gradient, layer.weights_at)
    dl_dbiases = advance(call.gradient, layer.biases_at)
    # fmt: off
    call.multiply_samples(
        dl_dweights, row,
        dl_dweights,  # not read: there is no mask
        dl_df, item, units * item,
        h, row,
        units, layer.units_in, samples, 0,
    )
    # fmt: on
    for i in range(units):
        total = dl_df[i]
        for s in range(1, samples):
            total += dl_df[s * units + i]
        dl_dbiases[i] = total


@phase
def backward_few(call, result, dl_df, k, with_mask):
    """Omega_k^T dl/df_k, with the mask of h_k: dl/df_{k-1}; or without one: dl/dh_k."""
    layer, samples, item = record_at(call.layer, k), call.samples, call.itemsize
    row = layer.units_in * item
    # fmt: off
    call.multiply_samples(
        result, row,
        advance(call.tiles, layer.h_at * samples),
        dl_df, layer.units_out * item, item,
        record_at(call.all_weights, k).data, row,
        samples, layer.units_in, layer.units_out, with_mask,
    )
    # fmt: on


@phase
def give_few(call, rows, units):
    """The caller's columns = the output, or dl/dinput, of the samples."""
    call.copy_rows(
        call.columns_out, call.columns_out_row, rows, call.itemsize, units * call.itemsize, units, call.samples
    )
