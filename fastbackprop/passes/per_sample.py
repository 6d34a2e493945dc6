"""Results of single samples: norms of gradients, sums of clipped gradients, sums of squares, and the gradients.

A sample's weight gradient is the outer product dl/df_k h_k^T. So the squared norm of its weight gradient is
||dl/df_k||^2 ||h_k||^2, and of its bias gradient ||dl/df_k||^2: norms need no gradient. Tiles keep h_k and dl/df_k of
every layer. Sample weights are applied only where clipped gradients are summed.
"""

import math

import numpy as np

from fastbackprop.kernels.columns import add_squared_norms, multiply_rows, outer_products, with_norm
from fastbackprop.kernels.jit import phase
from fastbackprop.kernels.records import record_at
from fastbackprop.kernels.rows import clear, clear_tail, fill_with_ones, whole_vectors
from fastbackprop.kernels.simd import advance, doubles
from fastbackprop.passes.tile import (
    add_layer_gradient,
    add_transposed,
    apply_loss,
    backward,
    forward,
    give_columns,
    take_input,
    take_sample_weights,
    take_target,
    transpose_layer,
)


@phase
def derivatives_of_samples(call, tile, first, count):
    """h_k and dl/df_k of every layer, and the loss of each sample."""
    take_input(call, tile, first, count)
    forward(call, tile, count)
    take_target(call, tile, first, count)
    fill_with_ones(advance(tile, call.sample_weight_at), count)
    losses = doubles(tile, call.losses_at)
    clear(losses, count)
    apply_loss(call, tile, losses, count, 1.0)
    for k in range(call.layers - 1, 0, -1):
        backward(call, tile, k, count)


@phase
def take_norms(call, tile, count):
    """The norm of each sample's gradient, or its norm by the parameters of each layer, in double precision."""
    samples = whole_vectors(count, tile)
    for number in range(call.norms):
        clear(doubles(tile, call.norms_at + number * call.norms_row), samples)
    for k in range(call.layers):
        layer = record_at(call.layer, k)
        # fmt: off
        add_squared_norms(
            doubles(tile, call.norms_at + k * call.norms_row),
            advance(tile, layer.dl_df_at),
            advance(tile, layer.h_at), call.row_bytes,
            layer.units_out, layer.units_in, samples,
        )
        # fmt: on
    for number in range(call.norms):
        norms = doubles(tile, call.norms_at + number * call.norms_row)
        for s in range(count):
            norms[s] = math.sqrt(norms[s])
        for s in range(count):
            if not norms[s] < np.inf:  # a square may overflow or underflow although the norm does not
                norms[s] = 0.0
                # One norm is over all layers, several are of a layer each.
                for k in range(number, call.layers if call.norms == 1 else number + 1):
                    layer, column = record_at(call.layer, k), advance(tile, s * call.itemsize)
                    dl_df, h = advance(column, layer.dl_df_at), advance(column, layer.h_at)
                    norms[s] = with_norm(norms[s], dl_df, h, call.row_bytes, layer.units_out, layer.units_in)


@phase
def narrow(call, tile, number, values, count):
    """A row of results = doubles of the tile, as elements."""
    results = advance(tile, call.results_at + number * call.row_bytes)
    for s in range(count):
        results[s] = values[s]


def norms_tile(call, tile, first, count):
    """The losses and norms of a tile's samples, to the caller."""
    derivatives_of_samples(call, tile, first, count)
    take_norms(call, tile, count)
    narrow(call, tile, 0, doubles(tile, call.losses_at), count)
    for number in range(call.norms):
        narrow(call, tile, 1 + number, doubles(tile, call.norms_at + number * call.norms_row), count)
    give_columns(call, advance(tile, call.results_at), first, 1 + call.norms, count)


def clip_tile(call, tile, partial, losses, first, count, samples_before):
    """The sum of a tile's gradients, each scaled down to a norm of at most max_norm, by a factor of dl/df_k."""
    derivatives_of_samples(call, tile, first, count)
    take_norms(call, tile, count)
    take_factors(call, tile, losses, first, count)
    for k in range(call.layers - 1, -1, -1):
        layer, samples = record_at(call.layer, k), whole_vectors(count, tile)
        dl_df, h = advance(tile, layer.dl_df_at), advance(tile, layer.h_at)
        multiply_rows(dl_df, call.row_bytes, advance(tile, call.sample_weight_at), 0, layer.units_out, samples)
        add_layer_gradient(call, tile, partial, k, h, call.row_bytes, count, samples_before)
    narrow(call, tile, 0, doubles(tile, call.norms_at), count)
    give_columns(call, advance(tile, call.results_at), first, 1, count)


@phase
def take_factors(call, tile, losses, first, count):
    """The factor of each sample's gradient, in place of its weight w: scale w min(1, max_norm / norm).

    Also adds w times the loss of each sample to the losses. If max_norm / norm is NaN, it stays, because it is the
    first argument of min. A subnormal factor is replaced by 0: it has few bits, so a norm could exceed max_norm.
    """
    factors = advance(tile, call.sample_weight_at)
    own, norms = doubles(tile, call.losses_at), doubles(tile, call.norms_at)
    take_sample_weights(call, factors, first, count)
    scale, max_norm, smallest = call.scale, call.max_norm, 2.0**-126 if call.itemsize == 4 else 2.0**-1022
    for s in range(count):
        weight, ratio = np.float64(factors[s]), max_norm / norms[s] if max_norm < np.inf else 1.0
        losses[s] += weight * own[s]
        factor = scale * weight * min(ratio, 1.0)
        factors[s] = 0.0 if abs(factor) < smallest else factor
    clear_tail(factors, call.row_bytes, 1, count, whole_vectors(count, tile))


def square_tile(call, tile, partial, losses, first, count, samples_before):
    """dl/dOmega_k += dl/df_k h_k^T, and then the same of their squares, for the sum of the squared gradients."""
    derivatives_of_samples(call, tile, first, count)
    own = doubles(tile, call.losses_at)
    for s in range(count):
        losses[s] += own[s]
    for k in range(call.layers - 1, -1, -1):
        layer, samples, row = record_at(call.layer, k), whole_vectors(count, tile), call.row_bytes
        dl_df, h = advance(tile, layer.dl_df_at), advance(tile, layer.h_at)
        transpose_layer(call, tile, k, h, row, count)
        for power in range(2):
            if power == 1:
                multiply_rows(dl_df, row, dl_df, row, layer.units_out, samples)
                if layer.along_units:
                    h_of_sample, bytes_of_sample = advance(tile, call.transposed_at), layer.transposed_row
                    units = whole_vectors(layer.units_in, tile)
                    multiply_rows(h_of_sample, bytes_of_sample, h_of_sample, bytes_of_sample, count, units)
                else:
                    multiply_rows(h, row, h, row, layer.units_in, samples)
            summed = advance(partial, power * call.squares_at)
            add_transposed(call, tile, summed, k, h, row, count, samples_before)


def gradients_tile(call, tile, first, count):
    """The gradient of each sample, and its loss, to the caller."""
    derivatives_of_samples(call, tile, first, count)
    narrow(call, tile, 0, doubles(tile, call.losses_at), count)
    give_columns(call, advance(tile, call.results_at), first, 1, count)
    item, row, transposed = call.itemsize, call.row_bytes, advance(tile, call.transposed_at)
    for k in range(call.layers):
        layer = record_at(call.layer, k)
        weights, biases = record_at(call.all_sample_dweights, k), record_at(call.all_sample_dbiases, k)
        dl_df, units, inputs = advance(tile, layer.dl_df_at), layer.units_out, layer.units_in
        call.copy_rows(transposed, layer.transposed_row, advance(tile, layer.h_at), item, row, count, inputs)
        # fmt: off
        outer_products(
            advance(weights.data, first * weights.row), weights.row,
            dl_df, row,
            transposed, layer.transposed_row,
            units, inputs, count,
        )
        # fmt: on
        call.copy_rows(advance(biases.data, first * biases.row), biases.row, dl_df, item, row, count, units)
