"""Compiled code: sweep, wide and few (the fused path), passes (the notebooks' two). Importing this compiles nothing."""

CACHE_LINE = 64

PANEL = 64
"""Samples: rows of a tile have room for a multiple of it, a multiple of the panels of every target."""

FEW = 8
"""The most samples that go through the network with vector lanes along the units: see few.

A call with 8 samples of 784-100-10 took 23 (float32) and 48 microseconds (float64) where tiles of samples took 58 and
80; with 16 of 40-200-70-2, the kernel alone took 36 in float32 where a call with tiles took 21 (AVX-512).
"""

FLUSH_TILES = 8
"""Tiles whose weight gradients are summed in the element type before they are added to sums in float64."""

LOSS_ROWS = 4
"""Rows of a tile behind the target's, in which losses keep the weight of each sample and sums over the outputs."""

PREDICT, SEED, SQUARED_ERROR, SOFTMAX, BINARY = range(5)
"""What a sweep does at the output: copy it out; take the target for dl/df_K; take dl/df_K from the loss."""
