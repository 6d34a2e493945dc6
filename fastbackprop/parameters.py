"""Parameters as one flat vector: weights 0 (row-major), biases 0, weights 1, ..., and the table that says where."""

import functools
import itertools
import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from fastbackprop.kernels import LOSS_ROWS
from fastbackprop.validation import (
    FLOAT32,
    FLOAT64,
    FLOATS,
    Array,
    DType,
    Shapes,
    check_layer_sizes,
    check_parameters,
    check_vector,
)

LARGEST_RECORD = 2**31 - 1
"""The most bytes of a structured dtype."""


def layout_table(layer_sizes: tuple[int, ...]) -> Array:
    """One row of int64 for each layer k, which says where kernels find what belongs to it.

    UNITS_IN, UNITS_OUT     D_k and D_{k+1}
    WEIGHTS_AT, BIASES_AT   offsets of weights k and biases k in the flat vector, in elements
    ROW                     the first row of h_k in a tile, where h_0, h_1, ... stand below each other
    PARTIAL_AT              the offset of the padded gradient of weights k, in elements of a tile or of an array for all
    BACK_ROW                the row of a tile that dl/dh_k, masked to dl/df_{k-1}, is written to where h_k is to stay
    TRANSPOSED_WEIGHTS_AT   where kernels are given transposed weights, the offset of weights k, padded too; else 0
    TRANSPOSED_AT           the offset of transposed h_k in a tile, in elements; 0 until it is known
    """
    rows = []
    offset = activation_row = padded_offset = 0
    separate_row = sum(layer_sizes) + layer_sizes[-1] + LOSS_ROWS + 1
    for units_in, units_out in itertools.pairwise(layer_sizes):
        biases_offset = offset + units_out * units_in
        places = offset, biases_offset, activation_row, padded_offset, separate_row
        rows.append((units_in, units_out, *places, 0, 0))
        offset = biases_offset + units_out
        activation_row += units_in
        padded_offset += units_out * padded(units_in)
        separate_row += units_in
    return np.array(rows, np.int64)


def round_up(number: int, multiple: int) -> int:
    """The least multiple that is not below a number."""
    return -(-number // multiple) * multiple


def padded(units_in: int) -> int:
    """The elements of one row of a padded array: an odd number of cache lines (of pairs of them in float64).

    Rows of a power of two would share a few sets of the caches: 1024 units took the gradient at 39 % of the peak.
    """
    return (-(-units_in // 16) | 1) * 16


def pack(all_weights: Sequence[ArrayLike], all_biases: Sequence[ArrayLike]) -> Array:
    """Parameters, or gradients, as one new vector: weights 0 (row-major), biases 0, weights 1, ...

    Parameters
    ----------
    all_weights : list of K + 1 arrays
        ``all_weights[k]`` is (D_{k+1}, D_k).
    all_biases : list of K + 1 arrays
        ``all_biases[k]`` is (D_{k+1}, 1) or (D_{k+1},).

    Returns
    -------
    vector : array (P,)
        float32 where all parameters are, else float64.

    Raises
    ------
    ValueError, TypeError
        As :func:`loss_and_gradients`.

    Examples
    --------
    >>> import numpy as np
    >>> from fastbackprop import pack
    >>> pack([np.array([[1.0, 2.0]])], [np.array([[3.0]])])
    array([1., 2., 3.])
    """
    _, weights, biases = check_parameters(all_weights, all_biases)
    arrays = [array for pair in zip(weights, biases, strict=True) for array in pair]
    narrow = all(array.dtype.newbyteorder("=") == FLOAT32 for array in arrays)
    dtype = FLOAT32 if narrow else FLOAT64
    return np.concatenate([array.ravel() for array in arrays], dtype=dtype, casting="unsafe")


def unpack(vector: ArrayLike, layer_sizes: Iterable[int]) -> tuple[list[Array], list[Array]]:
    """The weights and biases in a vector, as views: what is written to one is seen in the other.

    Parameters
    ----------
    vector : array (P,)
        Contiguous, in the order of :func:`pack`.
    layer_sizes : sequence of int
        D_i, D_1, ..., D_K, D_o.

    Returns
    -------
    all_weights : list of K + 1 arrays
        (D_{k+1}, D_k) each.
    all_biases : list of K + 1 arrays
        (D_{k+1}, 1) each.

    Raises
    ------
    ValueError
        ``vector has shape (4,); expected (3,): the parameters of layer sizes (2, 1)``; a vector that is not
        contiguous, which could not be viewed.

    Examples
    --------
    >>> import numpy as np
    >>> from fastbackprop import unpack
    >>> unpack(np.array([1.0, 2.0, 3.0]), (2, 1))
    ([array([[1., 2.]])], [array([[3.]])])
    """
    sizes = check_layer_sizes(layer_sizes)
    vector = check_vector(vector, "vector", sizes)
    if vector.dtype not in FLOATS:
        raise TypeError(f"vector has dtype {vector.dtype}; expected float32 or float64, whose views can be trained")
    if not vector.flags.c_contiguous:
        raise ValueError("vector is not contiguous; expected one that can be viewed: pass np.ascontiguousarray(vector)")
    parts: tuple[list[Array], list[Array]] = [], []
    for units_in, units_out, weights_offset, biases_offset, *_ in layout_table(sizes).tolist():
        parts[0].append(vector[weights_offset:biases_offset].reshape(units_out, units_in))
        parts[1].append(vector[biases_offset : biases_offset + units_out].reshape(units_out, 1))
    return parts


def split(vector: Array, shapes: Shapes) -> tuple[list[Array], list[Array]]:
    """Views of a vector in pack order, with the shapes of the parameters: two lists."""
    if vector.nbytes > LARGEST_RECORD:
        parts = []
        for shape in interleaved(shapes):
            size = math.prod(shape)
            parts.append(vector[:size].reshape(shape))
            vector = vector[size:]
    else:
        dtype, names = record(shapes, vector.dtype)
        fields = np.ndarray((), dtype, vector)
        parts = [fields[name] for name in names]
    return parts[::2], parts[1::2]


@functools.lru_cache(maxsize=64)
def record(shapes: Shapes, dtype: DType) -> tuple[DType, tuple[str, ...]]:
    """A structured dtype with one field for each parameter.

    A field is a view in 0.13 microseconds, where slicing and reshaping takes 0.25 and np.ndarray 0.5: the call of a
    small network consists of such things.
    """
    fields = np.dtype([(str(k), dtype, shape) for k, shape in enumerate(interleaved(shapes))])
    assert fields.names is not None
    return fields, fields.names


def interleaved(shapes: Shapes) -> list[tuple[int, ...]]:
    """Weights 0, biases 0, weights 1, ..."""
    return [shape for pair in zip(shapes.weights, shapes.biases, strict=True) for shape in pair]
