"""Parameters as one flat vector: weights 0 (row-major), biases 0, weights 1, ..."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from fastbackprop.arguments.checks import (
    FLOAT32,
    FLOAT64,
    FLOATS,
    Array,
    check_layer_sizes,
    check_parameters,
    check_vector,
    parameter_bounds,
)


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
        float32 if all parameters are float32, else float64.

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
    """The weights and biases in a vector, as views: a change of the views changes the vector.

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
        ``vector has shape (4,); expected (3,): the parameters of layer sizes (2, 1)``, or a vector that is not
        contiguous.

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
    parts = [vector[first:last] for first, last in itertools.pairwise(parameter_bounds(sizes))]
    weights = [part.reshape(-1, units) for part, units in zip(parts[::2], sizes[:-1], strict=True)]
    return weights, [part.reshape(-1, 1) for part in parts[1::2]]
