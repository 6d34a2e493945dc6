"""Compiled code: see sweep (the fused path) and passes (the notebooks' two passes). Importing this compiles nothing."""

PREDICT, SEED, SQUARED_ERROR = range(3)
"""What a sweep does at the output: copy it out; take the target for dl/df_K; take dl/df_K from the loss."""
