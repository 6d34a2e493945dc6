"""Memory of large results, used again once the caller has dropped every view of what was in it.

New memory costs a page fault for every 4 KB, or for 2 MB that are cleared at once, which takes longer than computing
what is written there: the forward pass of 100,000 samples through (1, 6, 6, 6, 6, 6, 1) took 8 to 10 ms in new memory
and 2.4 in memory that was used before (float64, two threads).
"""

import functools
import itertools
import math
import weakref

import numpy as np

from fastbackprop.validation import Array, DType

# Of an array. From some size on, the C library asks the system for memory, or gives back what is free. With 256 KB
# here, the notebooks' passes of (1, 6, 6, 6, 6, 6, 1) took 1.2 ms instead of 0.3 for 10,000 samples in float32, of
# 240 KB a layer; with 64 KB, they took 1.2 to 1.5 times as long for 72 KB a layer.
LEAST_BYTES = 96 * 1024
KEPT_BYTES = 256 * 1024 * 1024  # that nobody uses


def empty(shape: tuple[int, ...], dtype: DType) -> Array:
    """An uninitialised array in C order."""
    size = math.prod(shape) * dtype.itemsize
    if not LEAST_BYTES <= size <= KEPT_BYTES:
        return np.empty(shape, dtype)
    length = size_class(size)
    try:
        memory = _free[length].pop()
    except LookupError:
        memory = _new(length)
    array: Array = np.ndarray(shape, dtype, memory)
    number = next(_numbers)
    _lent[number] = weakref.ref(array, functools.partial(_take_back, number, memory))
    return array


def size_class(size: int) -> int:
    """The next multiple of an eighth of a power of two, so that batches of similar sizes share memory."""
    unit = 1 << max(size.bit_length() - 4, 0)
    return -(-size // unit) * unit


class Memory(np.ndarray):
    """Bytes that arrays are made in.

    NumPy has a view refer to what owns the memory in the end, but no further than to the last array of its own type. So
    views of an array that is made in one of these refer to that array, and it lives as long as any of them.
    """


def _new(length: int) -> Memory:
    try:
        return Memory(length, np.uint8)
    except MemoryError:
        _free.clear()
        return Memory(length, np.uint8)


def _take_back(number: int, memory: Memory, _: object) -> None:
    """What happens when an array is no more."""
    _lent.pop(number, None)
    if sum([length * len(memories) for length, memories in list(_free.items())]) + memory.nbytes > KEPT_BYTES:
        _free.clear()
    _free.setdefault(memory.nbytes, []).append(memory)


_numbers = itertools.count()
_lent: dict[int, weakref.ref[Array]] = {}
_free: dict[int, list[Memory]] = {}
