"""Parameters as one flat vector: weights 0 (row-major), biases 0, weights 1, ..., and the table that says where."""

import numpy as np


def layout_table(layer_sizes):
    """One row for each layer k, int64: D_k, D_{k+1}, offset of weights k, offset of biases k, first row of h_k.

    Offsets are in elements of the flat vector; rows are those of a tile, in which the activations h_0, h_1, ...
    stand below each other.
    """
    rows, offset, activation_row = [], 0, 0
    for units_in, units_out in zip(layer_sizes, layer_sizes[1:], strict=False):
        biases_offset = offset + units_out * units_in
        rows.append((units_in, units_out, offset, biases_offset, activation_row))
        offset = biases_offset + units_out
        activation_row += units_in
    return np.array(rows, np.int64)


def parameter_count(layer_sizes):
    """The length of the flat vector."""
    return sum((units_in + 1) * units_out for units_in, units_out in zip(layer_sizes, layer_sizes[1:], strict=False))
