"""The engine: how a batch is cut, buffers, and running a plan in slices."""
