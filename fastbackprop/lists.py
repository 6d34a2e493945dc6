"""Lists of arrays: their shapes, and where their data are, for kernels that take all of a list at once."""

import ctypes
import functools
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np

from fastbackprop.validation import FLOAT32, FLOAT64, FLOATS, Array, DType

Read = Callable[[list[Any], int, int, Array, int, DType, DType], int]

_TYPES = id(np.ndarray), FLOAT32, FLOAT64


def read(arrays: list[Any], contiguous: int) -> tuple[int, bytes, Array]:
    """What kernels need to know of arrays, which must be kept as long as their places are used.

    Returns
    -------
    itemsize : int
        4 or 8 where all are plain arrays, of one or two dimensions, of float32 or all of float64 in the machine's byte
        order: negative where one is not contiguous in C order. Otherwise 0, and the rest means nothing.
    shapes : bytes
        Two int64 for each array, -1 behind a single dimension.
    places : array (len(arrays), 3)
        The address of each, and the strides of its rows and columns.
    """
    count = len(arrays)
    table = np.empty(5 * count, np.int64)
    itemsize = _reader()(arrays, count, contiguous, table, *_TYPES)
    return itemsize, table[: 2 * count].tobytes(), table[2 * count :].reshape(count, 3)


@functools.cache
def _reader() -> Read:
    """The compiled reader, if it finds in a few arrays what NumPy says of them: builds of Python and NumPy differ."""
    from fastbackprop.kernels.lists import read_arrays  # imports numba

    number, thing = ctypes.c_int64, ctypes.py_object
    # PYFUNCTYPE keeps the GIL, under which alone objects may be looked at.
    compiled = ctypes.PYFUNCTYPE(number, thing, number, number, thing, number, thing, thing)(read_arrays().address)
    known = np.arange(60.0).reshape(6, 10)
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
        found = []
        for reader in compiled, read_slowly:
            table = np.zeros(5 * len(trial), np.int64)
            itemsize = reader(trial, len(trial), 2, table, *_TYPES)
            found.append((itemsize, table.tolist() if itemsize else None))
        if found[0] != found[1]:
            return read_slowly
    return compiled


def read_slowly(arrays: list[Any], count: int, contiguous: int, table: Array, *_types: Any) -> int:
    """The same as the compiled reader, see there, by asking NumPy."""
    if not all(type(array) is np.ndarray and array.ndim in (1, 2) for array in arrays):
        return 0
    dtypes = {array.dtype for array in arrays}
    if len(dtypes) != 1 or not dtypes <= set(FLOATS):
        return 0
    for k, array in enumerate(arrays):
        second = array.ndim == 2
        table[2 * k : 2 * k + 2] = array.shape if second else (*array.shape, -1)
        place = 2 * count + 3 * k
        table[place : place + 3] = array.ctypes.data, array.strides[0], array.strides[1] if second else 0
    itemsize = int(arrays[0].itemsize)
    return itemsize if all(array.flags.c_contiguous for array in arrays[:contiguous]) else -itemsize


def plain(array: Array, dtype: DType) -> Array:
    """The array itself, or converted: of NumPy's own type and of that dtype, as kernels read it."""
    converted = array if array.dtype is dtype else array.astype(dtype, copy=False)
    return converted if type(converted) is np.ndarray else converted.view(np.ndarray)
