"""Compiled code: sweep, wide and few (the fused path), passes (the notebooks' two). Importing this compiles nothing."""

CACHE_LINE = 64

PANEL = 64
"""Samples: rows of a tile have room for a multiple of it, a multiple of the panels of every target."""

FEW = 8
"""The most samples that go through the network with vector lanes along the units: see few.

784-100-10 took 23 (float32) and 46 microseconds (float64) at 8 samples where tiles of samples took 58 and 80; at 16,
40-200-70-2 took 36 and 25 where they took 21 and 35 (AVX-512).
"""

FLUSH_TILES = 8
"""Tiles whose weight gradients are summed in the element type before they are added to sums in float64."""

LOSS_ROWS = 4
"""Rows of a tile behind the target's, in which losses keep the weight of each sample and sums over the outputs."""

PREDICT, SEED, SQUARED_ERROR, SOFTMAX, BINARY = range(5)
"""What a sweep does at the output: copy it out; take the target for dl/df_K; take dl/df_K from the loss."""
