"""Memory of large results, used again once the caller has dropped every view of a result.

New memory costs a page fault for every 4 KB, or for 2 MB that are cleared at once, which takes longer than computing
the results: the forward pass of 100,000 samples through (1, 6, 6, 6, 6, 6, 1) took 10 to 16 ms in new memory and 1.5 to
1.9 in memory that was used before (float64, two threads, 2026-11).
"""

import contextlib
import functools
import math
import operator
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable

import numpy as np

from fastbackprop.arguments.checks import Array, DType
from fastbackprop.kernels import CACHE_LINE

REUSED_BYTES = 96 * 1024
"""Smallest array, in bytes, whose memory is used again. The C library returns large free memory to the system.

Measured: with 256 KB, the notebooks' passes of (1, 6, 6, 6, 6, 6, 1) took 0.93 ms instead of 0.19 for 10,000 samples in
float32, of 240 KB a layer; with 64 KB, they took 1.2 to 1.5 times as long for 72 KB a layer (2026-11).
"""

FREE_BYTES = 256 * 1024 * 1024
"""Largest number of bytes of free memory that is kept."""

_free: dict[int, deque[Array]] = {}
"""Free memory by its size. Each size has at most FREE_BYTES; `forget` limits their sum to FREE_BYTES."""


class Loan:
    """Memory on loan to an array and its views, which refer to the loan. When the last one is gone, the memory is free.

    NumPy makes an array of a loan, and keeps the loan as the base of that array and of its views.
    """

    give_back: Callable[[], object] = tuple  # nothing, until there is memory: an interrupt may come before

    def __init__(self, memory: Array, free: deque[Array]) -> None:
        self.__array_interface__ = memory.__array_interface__
        self.give_back = functools.partial(free.append, memory)

    # Python calls what this returns, at any time and on any thread. No step of it is Python code: an interrupt that
    # Python raises in a finaliser is ignored, and Ctrl-C would be lost.
    __del__ = property(operator.attrgetter("give_back"))


def empty(shape: tuple[int, ...], dtype: DType) -> Array:
    """An uninitialised array in C order."""
    size = math.prod(shape) * dtype.itemsize
    if not REUSED_BYTES <= size <= FREE_BYTES:
        return np.empty(shape, dtype)
    length = size_class(size)
    free = _free.setdefault(length, deque(maxlen=FREE_BYTES // length))
    try:
        memory = free.pop()  # taking it out is one step, and another thread may be faster
    except IndexError:
        memory = new_memory(length)
    forget()
    array: Array = np.asarray(Loan(memory, free))[:size].view(dtype).reshape(shape)
    return array


def forget() -> None:
    """Give up free memory beyond FREE_BYTES. Sizes that were used first are given up first."""
    kept = sum([size * len(free) for size, free in list(_free.items())])
    for size, free in list(_free.items()) if kept > FREE_BYTES else []:
        while kept > FREE_BYTES and free:
            with contextlib.suppress(IndexError):  # another thread may have been faster
                free.popleft()
            kept -= size


def check_size(nbytes: int, what: str, remedy: str) -> None:
    """Refuse arrays that are larger than the machine's memory, or than sys.maxsize if its size is unknown.

    Without this check, the system may hand out the memory, and end the process later.
    """
    known = "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {})
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if known else sys.maxsize
    if nbytes > memory:
        raise MemoryError(f"{what} take {nbytes / 2**30:.4g} GiB, and there are {memory / 2**30:.4g}: {remedy}")


def new_memory(length: int) -> Array:
    """An array of `length` bytes. If the system has no memory left, all kept memory is given up first."""
    try:
        return np.empty(length, np.uint8)
    except MemoryError:
        for free in list(_free.values()):
            free.clear()
        return np.empty(length, np.uint8)


def empty_columns(layer_sizes: Iterable[int], samples: int, dtype: DType) -> list[Array]:
    """An uninitialised array (units, samples) for each layer."""
    sizes = tuple(layer_sizes)
    large = max(sizes, default=0) * samples * dtype.itemsize >= REUSED_BYTES
    allocate = empty if large else np.empty  # for small arrays, np.empty takes less time
    return [allocate((units, samples), dtype) for units in sizes]


def aligned(size: int, dtype: DType) -> Array:
    """An uninitialised vector that starts at a cache line."""
    buffer = np.empty(size + CACHE_LINE // dtype.itemsize, dtype)
    start = -buffer.ctypes.data % CACHE_LINE // dtype.itemsize
    return buffer[start : start + size]


def size_class(size: int) -> int:
    """The next multiple of an eighth of a power of two, so that batches of similar sizes share memory."""
    unit = 1 << max(size.bit_length() - 4, 0)
    return -(-size // unit) * unit
