"""What passes read: the records of a call, its layers, its blocks, and the lists of arrays it was given.

Python fills them once for a plan; `entry` writes the addresses of a call's arrays. A field that ends in `_at` is a
number of bytes from the start of a tile, a partial gradient or the gradient. A field that ends in `_row` or `_column`
is the number of bytes from row to row, or from column to column.
"""

import functools

from numba import types

from fastbackprop.kernels.products import pointer_types
from fastbackprop.kernels.records import Record
from fastbackprop.parallel.team import COUNTER_WORDS

INT, REAL = types.int64, types.float64


@functools.cache
def columns_record(element):
    """An array (units, N) of the caller, or one of its weights or biases, which are contiguous."""
    return Record(f"Columns[{element}]", {"data": types.CPointer(element), "row": INT, "column": INT})


@functools.cache
def layer_record(element):
    """Layer k, from D_k = units_in to D_{k+1} = units_out."""
    return Record(
        f"Layer[{element}]",
        {
            "units_in": INT,
            "units_out": INT,
            "weights_at": INT,  # in a vector of all parameters
            "biases_at": INT,
            "has_relu": INT,
            "h_at": INT,  # h_k
            "f_at": INT,  # f_k, then h_{k+1}
            "dl_df_at": INT,  # dl/df_k: in place of f_k, or in rows of its own
            "most_terms": INT,  # of the sums in a part of the backward product
            "along_units": INT,  # whether the weight gradient is taken from transposed activations
            "transposed_row": INT,  # of the transposed activations
            "partial_at": INT,  # the weight gradient in a partial gradient
            "partial_row": INT,
            "partial_biases_at": INT,
            "stays_in_rows": INT,  # whether products write nothing behind the ends of rows of the gradient
        },
    )


@functools.cache
def block_record(element):
    """A block of the gradient, which one thread sums: [row, row + rows) x [column, column + columns) of layer k.

    A block of partial gradients may also be a run of elements that are contiguous in both gradients.
    """
    names = "k", "row", "rows", "column", "columns", "gradient_at", "gradient_row", "partial_at", "partial_row"
    return Record(f"Block[{element}]", dict.fromkeys(names, INT))


@functools.cache
def call_record(element):
    """One call: the arrays, how the batch is cut, the workspace, and the addresses of the products."""
    rows, doubles, columns = types.CPointer(element), types.CPointer(types.float64), columns_record(element)
    record = Record(
        f"Call[{element}]",
        {
            **{f"counter_{k}": INT for k in range(COUNTER_WORDS)},  # what threads count together, see team
            # The arrays, written by entry. The caller's arrays have any strides.
            "all_weights": columns,  # all_weights[k] is the k-th of a table
            "all_biases": columns,
            "all_f": columns,  # the notebooks' lists: all_f[k], all_h[k + 1], all_dl_dh[k + 1], all_dl_df[k]
            "all_h": columns,
            "all_dl_dh": columns,
            "all_dl_df": columns,
            "wants_intermediates": INT,  # whether the last two are there
            "all_sample_dweights": columns,  # (N, D_{k+1}, D_k) and (N, D_{k+1}): the gradients of each sample
            "all_sample_dbiases": columns,
            "in_place": INT,  # whether all_f, all_h, all_dl_dh and all_dl_df are contiguous along their rows
            "net_input": rows,  # (D_i, samples)
            "input_row": INT,
            "input_column": INT,
            "target": rows,  # (target_rows, samples)
            "target_row": INT,
            "target_column": INT,
            "target_rows": INT,  # D_o, or 1 for class numbers
            "sample_weight": rows,  # (samples,)
            "weight_column": INT,
            "is_weighted": INT,
            "columns_out": rows,  # (., samples): see entry.run_call; contiguous along a row
            "columns_out_row": INT,
            "wants_columns_out": INT,
            "gradient": rows,  # one gradient or two, see below
            "samples": INT,  # of this call, a slice of the batch
            "first_sample": INT,
            "first_chunk": INT,  # this call takes the chunks [first_chunk, end_chunk)
            "end_chunk": INT,
            "is_first": INT,  # whether it begins the sums of the batch, and whether it ends them
            "is_last": INT,
            "scale": REAL,  # of dl/df_K
            "max_norm": REAL,  # of the gradient of a sample
            "loss_sum": REAL,  # written: the loss of all samples so far
            # How the batch is cut: see Plan.
            "batch_samples": INT,
            "chunks": INT,
            "tile_samples": INT,
            # The network, and where rows lie in a tile: see Layout.
            "itemsize": INT,
            "layers": INT,
            "layer": layer_record(element),  # the first of a table
            "inputs": INT,
            "outputs": INT,
            "output_at": INT,
            "target_at": INT,
            "sample_weight_at": INT,
            "ones_at": INT,
            "dl_dinput_at": INT,
            "transposed_at": INT,  # in a tile, or in the scratch memory of a shared pass
            "results_at": INT,  # rows with the loss and the norms of each sample
            "losses_at": INT,  # the losses as doubles
            "norms_at": INT,
            "norms": INT,  # the number of their rows: 1, or one for each layer
            "norms_row": INT,  # bytes from row to row of doubles; 0 where all layers have the same row
            "row_bytes": INT,
            "tile_bytes": INT,
            "cleared_at": INT,  # the part of a partial gradient that products add to from the start
            "cleared_bytes": INT,
            "gradients": INT,  # of a partial gradient: 1, or 2 with the gradient of the squares behind it
            "squares_at": INT,
            "blocks": INT,
            "block": block_record(element),  # the first of a table
            # The workspace.
            "tiles": rows,
            "partials": rows,  # a partial gradient for each chunk, or the scratch memory of each thread
            "partial_bytes": INT,
            "totals": doubles,  # (parameters,), two for each in float64, see kernels.rows.add_partials
            "chunk_losses": doubles,
            "sample_losses": doubles,  # one for each sample of the tile of each thread, or of a group
            "loss": pointer_to(types.void(doubles, rows, *[INT] * 4, element)),  # see losses
            **pointer_types(element),
        },
    )
    # The pass, and what it calls for a tile: see chunks.
    record.fields["run"] = pointer_to(types.void(record, INT, INT))
    record.fields["take_tile"] = pointer_to(types.void(record, rows, INT, INT))
    record.fields["add_tile"] = pointer_to(types.void(record, rows, rows, doubles, INT, INT, INT))
    return record


def pointer_to(signature):
    """The type of a field that holds the address of a compiled function."""
    return types.ExternalFunctionPointer(signature, None)
