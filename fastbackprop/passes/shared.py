"""The shared pass: threads take all samples of a group forward and back, and then sum blocks of the one gradient.

For networks whose gradient is so large that chunks cannot have their own, and for batches too small to be cut into
chunks. The tiles of a group are contiguous, and keep h_k and dl/df_k of every layer until all strips are done. A call
into compiled code is one group; the totals carry the sums from group to group.

A strip is a part of a tile, whose samples go through the network alone. Exactly one thread computes each sum of a
block, in the order of the samples. So the result has the same bits for any number of threads, although the strips
depend on it.
"""

from fastbackprop.engine.limits import GRAIN
from fastbackprop.kernels.jit import phase
from fastbackprop.kernels.records import record_at
from fastbackprop.kernels.rows import clear, clear_tail, whole_vectors
from fastbackprop.kernels.simd import advance
from fastbackprop.parallel.team import BLOCKS, PIECES, claim, finish, meet
from fastbackprop.passes.chunks import add_block, add_losses
from fastbackprop.passes.tile import add_weight_gradient, backward, forward, give_input_gradient, take_input, take_loss


def shared_pass(call, thread, threads):
    """Take strips forward and back until none is left; meet; sum blocks until none is left."""
    tiles = (call.samples + call.tile_samples - 1) // call.tile_samples
    strips = strips_of_tile(call, threads)
    number = claim(call, PIECES)
    while number < tiles * strips:
        strip_forward_and_back(call, number // strips, number % strips, strips)
        number = claim(call, PIECES)
    meet(call, threads)
    scratch = advance(call.partials, thread * call.partial_bytes)
    number = claim(call, BLOCKS)
    while number < call.blocks:
        sum_block(call, scratch, record_at(call.block, number))
        number = claim(call, BLOCKS)
    if thread == 0:
        add_losses(call, call.sample_losses, call.samples)
    finish(call, thread, threads, 1)


@phase
def strips_of_tile(call, threads):
    """The number of strips of a tile, so that all threads have one: its share of the samples times the threads, rounded
    up."""
    return (min(call.tile_samples, call.samples) * threads - 1) // call.samples + 1


@phase
def strip_forward_and_back(call, tile, strip, strips):
    """One of the strips of a tile: all steps but the weight gradients.

    Its length is that of the tile divided by the strips, rounded up to whole grains, which are whole vectors.
    """
    length = (min(call.tile_samples, call.samples) - 1) // (strips * GRAIN) * GRAIN + GRAIN
    begin = strip * length
    first = tile * call.tile_samples + begin
    count = min(length, call.tile_samples - begin, call.samples - first)
    if count > 0:
        rows = advance(call.tiles, tile * call.tile_bytes + begin * call.itemsize)
        losses = advance(call.sample_losses, first * 8)
        clear(losses, count)
        take_input(call, rows, first, count)
        forward(call, rows, count)
        take_loss(call, rows, losses, first, count)
        for k in range(call.layers - 1, 0, -1):
            backward(call, rows, k, count)
        give_input_gradient(call, rows, first, count)


@phase
def sum_block(call, scratch, block):
    """A block of a layer's weight gradient, and the bias gradient of its rows, over all tiles of the group.

    scratch holds the sums of the block, in the element type, and a tile of transposed activations. If the batch is one
    tile, products write the block to the gradient itself, unless they would write behind the ends of its rows.

    Measured: 64 samples of 784-100x3-10 take 4 % less time (float32 and float64, one thread, Zen 4, 2026-11).
    """
    layer = record_at(call.layer, block.k)
    partial, row, biases = scratch, block.partial_row, advance(scratch, layer.partial_biases_at)
    is_final = layer.stays_in_rows != 0 and call.batch_samples <= call.tile_samples
    if is_final:
        partial, row = advance(call.gradient, block.gradient_at), block.gradient_row
    clear(biases, block.rows)
    if not layer.along_units:
        clear_tail(partial, row, block.rows, 0, block.columns)  # from column 0 on: the whole block
    tile = call.tiles
    for first in range(0, call.samples, call.tile_samples):
        dl_df = advance(tile, layer.dl_df_at + block.row * call.row_bytes)
        h = advance(tile, layer.h_at + block.column * call.row_bytes)
        ones, transposed = advance(tile, call.ones_at), advance(scratch, call.transposed_at)
        count = min(call.tile_samples, call.samples - first)
        if layer.along_units:
            samples = whole_vectors(count, tile)
            call.transpose(transposed, layer.transposed_row, h, call.row_bytes, block.columns, samples)
        # fmt: off
        add_weight_gradient(
            call, layer,
            partial, row,
            biases,
            dl_df,
            h, call.row_bytes,
            ones,
            transposed,
            block.rows, block.columns, count, first,
        )
        # fmt: on
        tile = advance(tile, call.tile_bytes)
    if not is_final:
        add_block(call, block.gradient_at, block.gradient_row, partial, row, 1, block.rows, block.columns)
    if block.column == 0:
        biases_at = layer.biases_at + block.row * call.itemsize
        add_block(call, biases_at, 0, biases, 0, 1, 1, block.rows)
