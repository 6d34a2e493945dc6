"""The prediction: each chunk of a batch goes through the network, and only the output is kept."""

from fastbackprop.kernels.simd import advance
from fastbackprop.parallel.team import PIECES, claim, finish
from fastbackprop.passes.tile import cut, forward, give_columns, load


def predict_pass(call, thread, threads):
    """Take chunks until there are none left, and give out their output."""
    tile = advance(call.tiles, thread * call.tile_bytes)
    chunk = call.first_chunk + claim(call, PIECES)
    while chunk < call.end_chunk:
        begin, end = cut(call, chunk) - call.first_sample, cut(call, chunk + 1) - call.first_sample
        for first in range(begin, end, call.tile_samples):
            count = min(call.tile_samples, end - first)
            load(call, tile, first, count)
            forward(call, tile, count)
            give_columns(call, advance(tile, call.output_at), first, call.outputs, count)
        chunk = call.first_chunk + claim(call, PIECES)
    finish(call, thread, threads, 0)
