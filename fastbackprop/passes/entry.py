"""The entry of a call into compiled code: it writes the addresses of a call's arrays to its record, and runs a pass."""

import functools

import numba
from numba import types
from numba.extending import intrinsic

from fastbackprop.kernels.jit import compile_callback, compile_entry
from fastbackprop.kernels.records import record_at, record_of
from fastbackprop.kernels.simd import advance, pointer
from fastbackprop.parallel import team
from fastbackprop.passes.records import call_record, columns_record


@functools.cache
def entry(dtype):
    """run_call, compiled for float32 or float64."""
    element = numba.from_dtype(dtype)

    def written(dimensions):
        return types.Array(element, dimensions, "A")

    # Layout 'A', read-only and unaligned: arrays of every layout convert to it without a copy.
    def read(dimensions):
        return types.Array(element, dimensions, "A", readonly=True, aligned=False)

    words, table = types.Array(types.int64, 1, "C"), types.Array(types.int64, 2, "C")
    arrays = [words, read(2), read(2), read(1), written(2), written(1), read(1), table]
    return compile_entry(
        run_call, types.int64(*arrays, types.UniTuple(types.int64, 5), types.float64, team.BOXES, types.int64)
    )


def run_call(
    words,
    net_input,
    target,
    sample_weight,
    columns_out,
    gradient,
    parameters,
    places,
    bounds,
    scale,
    boxes,
    patience,
):
    """Run the pass of the record in `words`; returns the number of threads that took part.

    net_input      (D_i, N): read, any strides
    target         (D_o, N), or (1, N) class numbers, or the input again if the pass needs none: read, any strides
    sample_weight  (N,) or (0,): read, any stride
    columns_out    written: (D_o, N) the output, (D_i, N) dl/dinput, rows of results (., N), or (D_i, 0) for none;
                   contiguous along a row
    gradient       written in pack order: (P,), with squares (2 P,), without sums (0,)
    parameters     (P,) in pack order: read; (0,) if `places` has their addresses
    places         a row (address, stride of rows, stride of columns) for each array of the lists all_weights and
                   all_biases, which are written for a vector of parameters; then for each array of the notebooks'
                   lists, or of the samples' gradients (stride of samples, stride of elements)
    bounds         first_sample, first_chunk, end_chunk, is_first, is_last: see records.call_record
    scale          a factor of dl/df_K
    """
    call = call_at(words, net_input)
    call.net_input, (call.input_row, call.input_column) = pointer(net_input), net_input.strides
    call.target, (call.target_row, call.target_column) = pointer(target), target.strides
    call.target_rows, call.samples = target.shape[0], net_input.shape[1]
    call.sample_weight, call.weight_column = pointer(sample_weight), sample_weight.strides[0]
    call.is_weighted = sample_weight.size > 0
    call.columns_out, call.columns_out_row = pointer(columns_out), columns_out.strides[0]
    call.wants_columns_out = columns_out.shape[1] > 0
    call.gradient, call.scale = pointer(gradient), scale
    call.first_sample, call.first_chunk, call.end_chunk, call.is_first, call.is_last = bounds
    layers, columns = call.layers, columns_at(places, net_input)
    call.all_weights, call.all_biases = columns, record_at(columns, layers)
    # In a call with fewer lists, some of the addresses are behind the table. Its pass does not read them.
    call.all_f, call.all_h = record_at(columns, 2 * layers), record_at(columns, 3 * layers)
    call.all_dl_dh, call.all_dl_df = record_at(columns, 4 * layers), record_at(columns, 5 * layers)
    call.all_sample_dweights, call.all_sample_dbiases = call.all_f, call.all_h  # lists that only another pass takes
    call.wants_intermediates = places.shape[0] > 4 * layers
    call.in_place = 1
    for row in range(2 * layers, places.shape[0]):
        if places[row, 2] != call.itemsize:
            call.in_place = 0
    for k in range(layers if parameters.size > 0 else 0):
        layer, weights, biases = record_at(call.layer, k), record_at(columns, k), record_at(columns, layers + k)
        weights.data = advance(pointer(parameters), layer.weights_at)
        biases.data = advance(pointer(parameters), layer.biases_at)
    return team.run(call, boxes, patience)


@functools.cache
def compiled(function, dtype, field):
    """The function for that field of a call's record, compiled for float32 or float64, with an `address`."""
    return compile_callback(function, call_record(numba.from_dtype(dtype)).fields[field].sig)


@intrinsic
def call_at(typing_context, words, like):
    """The record in an array of words: a call on elements of the type that another array has."""
    kind = call_record(like.dtype)
    return kind(words, like), record_of(kind)


@intrinsic
def columns_at(typing_context, places, like):
    """The first record of a table of places."""
    kind = columns_record(like.dtype)
    return kind(places, like), record_of(kind)
