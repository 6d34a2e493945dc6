"""The private pass: each chunk of a batch sums its own gradient, tile by tile, while the tile is in cache.

For networks whose gradient is small, so that there is room for one of each chunk.
"""

from fastbackprop.kernels.records import record_at
from fastbackprop.kernels.simd import advance
from fastbackprop.parallel.team import PIECES, claim
from fastbackprop.passes.tile import (
    add_chunks,
    add_layer_gradient,
    backward,
    begin_chunk,
    cut,
    end_chunk,
    forward,
    give_input_gradient,
    load,
    take_loss,
)


def private_pass(call, thread, threads):
    """Take chunks until there are none left, each tile forward and back; then add up the chunks with all threads."""
    tile = advance(call.tiles, thread * call.tile_bytes)
    losses = advance(call.sample_losses, thread * call.tile_samples * 8)
    chunk = call.first_chunk + claim(call, PIECES)
    while chunk < call.end_chunk:
        partial = begin_chunk(call, losses, chunk)
        begin, end = cut(call, chunk) - call.first_sample, cut(call, chunk + 1) - call.first_sample
        for first in range(begin, end, call.tile_samples):
            count = min(call.tile_samples, end - first)
            load(call, tile, first, count)
            forward(call, tile, count)
            take_loss(call, tile, losses, first, count)
            for k in range(call.layers - 1, -1, -1):
                h = advance(tile, record_at(call.layer, k).h_at)
                add_layer_gradient(call, tile, partial, k, h, call.row_bytes, count, first - begin)
                if k > 0:
                    backward(call, tile, k, count)
            give_input_gradient(call, tile, first, count)
        end_chunk(call, losses, chunk)
        chunk = call.first_chunk + claim(call, PIECES)
    add_chunks(call, thread, threads)
