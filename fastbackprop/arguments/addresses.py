"""Lists of arrays: their shapes and addresses, for kernels that take a whole list at once."""

import ctypes
import functools
import pickle
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from fastbackprop.arguments.checks import FLOAT32, FLOAT64, FLOATS, Array, DType
from fastbackprop.kernels import may_compile

Read = Callable[[Array, Array, int, int, int, int, int], int]

INTEGER = np.dtype(np.int64)
_TYPES = id(np.ndarray), id(FLOAT32), id(FLOAT64)


def read(arrays: list[Any], contiguous: int) -> tuple[int, bytes, Array]:
    """The shapes and addresses of arrays. Keep the arrays as long as their places are used.

    Returns
    -------
    itemsize : int
        4 or 8 if all are plain arrays, of one or two dimensions, and all of float32 or all of float64 in the machine's
        byte order; otherwise 0, and the other results mean nothing. Negative if one of the first `contiguous` arrays is
        not contiguous in C order.
    shapes : bytes
        Two int64 for each array, -1 behind a single dimension.
    places : array (len(arrays), 3)
        The address of each, and the strides of its rows and columns.
    """
    count = len(arrays)
    shapes, places = np.empty(2 * count, INTEGER), np.zeros((count, 3), INTEGER)
    return reader()(shapes, places, id(arrays), contiguous, *_TYPES), shapes.tobytes(), places


@functools.cache
def reader() -> Read:
    """The reader: compiled, if it agrees with NumPy on a few arrays. Builds of Python and NumPy differ."""
    if not may_compile():
        return read_slowly
    known = np.arange(60.0).reshape(6, 10)
    head = id(known) + object.__basicsize__
    found = [ctypes.c_int64.from_address(head + offset).value for offset in (0, 40)]
    # These cells are checked first, because the compiled reader follows the addresses in them.
    if np.ndarray.__basicsize__ < object.__basicsize__ + 56 or found != [known.ctypes.data, id(known.dtype)]:
        return read_slowly
    from fastbackprop.kernels.object_memory import read_arrays  # imports numba

    compiled: Read = read_arrays()  # type: ignore[no-untyped-call]
    trials: list[list[Any]] = [
        [known, known[1], known[:1, :1].copy()],
        [known[::2, ::-3], known.T],
        [known.astype(np.float32)],
        [pickle.loads(pickle.dumps(known))],  # with a dtype object of its own
        [known, known.astype(np.float32)],
        [known.astype(known.dtype.newbyteorder())],
        [known.view(np.recarray)],
        [known, 1.0],
    ]
    for trial in trials:
        results: list[Any] = []
        for reader in compiled, read_slowly:
            shapes, places = np.zeros(2 * len(trial), INTEGER), np.zeros((len(trial), 3), INTEGER)
            itemsize = reader(shapes, places, id(trial), 2, *_TYPES)
            results.append((itemsize, shapes.tolist(), places.tolist()) if itemsize else 0)
        if results[0] != results[1]:
            return read_slowly
    return compiled


def read_slowly(shapes: Array, places: Array, objects: int, contiguous: int, *_types: int) -> int:
    """The compiled reader in Python: see kernels.object_memory."""
    arrays = ctypes.cast(objects, ctypes.py_object).value
    if not all(type(array) is np.ndarray and array.ndim in (1, 2) for array in arrays):
        return 0
    dtypes = {array.dtype for array in arrays}
    if len(dtypes) != 1 or not dtypes <= set(FLOATS):
        return 0
    for k, array in enumerate(arrays):
        second = array.ndim == 2
        shapes[2 * k : 2 * k + 2] = array.shape if second else (*array.shape, -1)
        places[k] = array.ctypes.data, array.strides[0], array.strides[1] if second else 0
    itemsize = int(arrays[0].itemsize)
    return itemsize if all(array.flags.c_contiguous for array in arrays[:contiguous]) else -itemsize


def native(arrays: Iterable[Array], dtype: DType) -> list[Array]:
    """The arrays, converted if they have another dtype."""
    return [array if array.dtype is dtype else converted(array, dtype) for array in arrays]


def converted(array: Array, dtype: DType) -> Array:
    """An array in another dtype; numbers that are too large for it become infinite, without a warning."""
    with np.errstate(all="ignore"):
        return array.astype(dtype, copy=False)


def plain(arrays: Iterable[Array], dtype: DType) -> list[Array]:
    """The same as plain arrays of NumPy, which `read` takes."""
    return [array if type(array) is np.ndarray else array.view(np.ndarray) for array in native(arrays, dtype)]
