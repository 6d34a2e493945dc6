"""Compiled code: see sweep (the fused path) and passes (the notebooks' two passes). Importing this compiles nothing."""

CACHE_LINE = 64

PANEL = 64
"""Samples: rows of a tile have room for a multiple of it, a multiple of the panels of every target."""

FLUSH_TILES = 8
"""Tiles whose weight gradients are summed in the element type before they are added to sums in float64."""

LOSS_ROWS = 4
"""Rows of a tile behind the target's, in which losses keep the weight of each sample and sums over the outputs."""

PREDICT, SEED, SQUARED_ERROR, SOFTMAX, BINARY = range(5)
"""What a sweep does at the output: copy it out; take the target for dl/df_K; take dl/df_K from the loss."""
