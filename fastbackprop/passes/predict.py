"""The prediction: each chunk of a batch goes through the network, and only the output is kept."""

from fastbackprop.kernels.simd import advance
from fastbackprop.passes.tile import forward, give_columns, take_input


def predict_tile(call, tile, first, count):
    """A tile goes forward, and its output is copied to the caller."""
    take_input(call, tile, first, count)
    forward(call, tile, count)
    give_columns(call, advance(tile, call.output_at), first, call.outputs, count)
