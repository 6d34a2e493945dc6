"""Memory of large results, used again once the caller has dropped every view of what was in it.

New memory costs a page fault for every 4 KB, or for 2 MB that are cleared at once, which takes longer than computing
what is written there: the forward pass of 100,000 samples through (1, 6, 6, 6, 6, 6, 1) took 10 to 16 ms in new memory
and 1.5 to 1.9 in memory that was used before (float64, two threads).
"""

import math
import sys
import weakref
from collections.abc import Iterable

import numpy as np

from fastbackprop.validation import Array, DType

# Of an array. From some size on, the C library asks the system for memory, or gives back what is free. With 256 KB
# here, the notebooks' passes of (1, 6, 6, 6, 6, 6, 1) took 0.93 ms instead of 0.19 for 10,000 samples in float32, of
# 240 KB a layer; with 64 KB, they took 1.2 to 1.5 times as long for 72 KB a layer.
LEAST_BYTES = 96 * 1024
KEPT_BYTES = 256 * 1024 * 1024  # at most, that nobody has
NOBODYS = 2  # references to memory, in _dropped, that nobody else holds


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
            _free.clear()
            memory = Memory(length, np.uint8)
    array: Array = np.ndarray(shape, dtype, memory)
    loan = Loan(array, _take_back)
    loan.memory = memory
    _lent[id(loan)] = loan
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


class Loan(weakref.ref[Array]):
    """A weak reference to an array that is made in some memory, which it keeps: when the array dies, it is called."""

    __slots__ = ("memory",)
    memory: Memory


def _dropped(length: int) -> Memory | None:
    blocks = _free.get(length, [])
    while blocks:
        try:
            memory = blocks.pop()  # whoever takes it out has it: another thread may have been faster
        except IndexError:
            break
        if sys.getrefcount(memory) <= NOBODYS:  # else somebody has kept the base of an array: it stays what it is
            return memory
    return None


_free: dict[int, list[Memory]] = {}
_lent: dict[int, Loan] = {}


# Called at any time, by any thread, and when the interpreter ends and has taken away what a module has: hence defaults.
def _take_back(loan: weakref.ref[Array], free: dict[int, list[Memory]] = _free, lent: dict[int, Loan] = _lent) -> None:
    memory = lent.pop(id(loan)).memory
    length = memory.nbytes
    free.setdefault(length, []).append(memory)
    kept = sum([size * len(blocks) for size, blocks in list(free.items())])
    for size in list(free) if kept > KEPT_BYTES else []:  # sizes that were used first are forgotten first
        while kept > KEPT_BYTES and free[size]:
            free[size].pop(0)
            kept -= size
