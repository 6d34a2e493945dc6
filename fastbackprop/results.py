"""Memory of large results, used again once the caller has dropped every view of what was in it.

New memory costs a page fault for every 4 KB, or for 2 MB that are cleared at once, which takes longer than computing
what is written there: the forward pass of 100,000 samples through (1, 6, 6, 6, 6, 6, 1) took 8 to 10 ms in new memory
and 2.4 in memory that was used before (float64, two threads).
"""

import itertools
import math
import sys
import weakref
from collections.abc import Iterable

import numpy as np

from fastbackprop.validation import Array, DType

# Of an array. From some size on, the C library asks the system for memory, or gives back what is free. With 256 KB
# here, the notebooks' passes of (1, 6, 6, 6, 6, 6, 1) took 1.2 ms instead of 0.3 for 10,000 samples in float32, of
# 240 KB a layer; with 64 KB, they took 1.2 to 1.5 times as long for 72 KB a layer.
LEAST_BYTES = 96 * 1024
NOBODYS = 3  # references to memory, in _dropped, that only _lent holds
KEPT_BYTES = 256 * 1024 * 1024  # at most, lent or not


def empty(shape: tuple[int, ...], dtype: DType) -> Array:
    """An uninitialised array in C order."""
    size = math.prod(shape) * dtype.itemsize
    if not LEAST_BYTES <= size <= KEPT_BYTES:
        return np.empty(shape, dtype)
    length = size_class(size)
    memory = _dropped(length)
    if memory is None:
        try:
            memory = Memory(length, np.uint8)
        except MemoryError:
            _lent.clear()
            memory = Memory(length, np.uint8)
    array: Array = np.ndarray(shape, dtype, memory)
    _lent[next(_numbers)] = memory, weakref.ref(array)
    for number in list(_lent):  # the oldest are forgotten first
        if sum([lent.nbytes for lent, _ in list(_lent.values())]) <= KEPT_BYTES:
            break
        _lent.pop(number, None)
    return array


def empty_columns(layer_sizes: Iterable[int], samples: int, dtype: DType) -> list[Array]:
    """An uninitialised array (units, samples) for each layer."""
    sizes = tuple(layer_sizes)
    large = max(sizes, default=0) * samples * dtype.itemsize >= LEAST_BYTES
    allocate = empty if large else np.empty  # of small ones, a look at each would take longer than making them
    return [allocate((units, samples), dtype) for units in sizes]


def size_class(size: int) -> int:
    """The next multiple of an eighth of a power of two, so that batches of similar sizes share memory."""
    unit = 1 << max(size.bit_length() - 4, 0)
    return -(-size // unit) * unit


class Memory(np.ndarray):
    """Bytes that arrays are made in.

    NumPy has a view refer to what owns the memory in the end, but no further than to the last array of its own type. So
    views of an array that is made in one of these refer to that array, and it lives as long as any of them.
    """


def _dropped(length: int) -> Memory | None:
    for number, (memory, borrower) in list(_lent.items()):
        # Who takes the loan out has its memory. Another thread may have been faster, and have lent it again by now,
        # under another number.
        if memory.nbytes == length and borrower() is None and _lent.pop(number, None) is not None:
            if sys.getrefcount(memory) > NOBODYS:  # somebody has kept the base of an array: it stays what it is
                continue
            return memory
    return None


_numbers = itertools.count()
_lent: dict[int, tuple[Memory, weakref.ref[Array]]] = {}
