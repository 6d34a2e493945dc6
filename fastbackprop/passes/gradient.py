"""The gradient by chunks: each chunk of a batch sums its own, tile by tile, while the tile is in cache.

For networks whose gradient is so small that each chunk can have one.
"""

from fastbackprop.kernels.records import record_at
from fastbackprop.kernels.simd import advance
from fastbackprop.passes.tile import add_layer_gradient, backward, forward, give_input_gradient, take_input, take_loss


def differentiate_tile(call, tile, partial, losses, first, count, samples_before):
    """A tile goes forward and back; each layer's weight gradient is taken first, as dl/df_{k-1} may overwrite h_k."""
    take_input(call, tile, first, count)
    forward(call, tile, count)
    take_loss(call, tile, losses, first, count)
    for k in range(call.layers - 1, -1, -1):
        h = advance(tile, record_at(call.layer, k).h_at)
        add_layer_gradient(call, tile, partial, k, h, call.row_bytes, count, samples_before)
        if k > 0:
            backward(call, tile, k, count)
    give_input_gradient(call, tile, first, count)
