"""Memory of large results, used again once the caller has dropped every view of what was in it.

New memory costs a page fault for every 4 KB, or for 2 MB that are cleared at once, which takes longer than computing
what is written there.
"""

import math
from typing import Any

import numpy as np

from fastbackprop.validation import Array, DType

LEAST_BYTES = 256 * 1024  # below, the C library keeps memory itself
KEPT_BYTES = 256 * 1024 * 1024  # at most, while no caller uses it


def empty(shape: tuple[int, ...], dtype: DType) -> Array:
    """An uninitialised array in C order."""
    size = math.prod(shape) * dtype.itemsize
    if size < LEAST_BYTES:
        return np.empty(shape, dtype)
    try:
        memory = _unused[size].pop()
    except (KeyError, IndexError):
        memory = np.empty(size, np.uint8)
    return np.asarray(_Loan(memory, shape, dtype))


class _Loan:
    """What all views of an array refer to as their base: its memory goes back with the last of them."""

    __slots__ = ("__array_interface__", "_memory")

    def __init__(self, memory: Array, shape: tuple[int, ...], dtype: DType) -> None:
        self._memory = memory
        self.__array_interface__: dict[str, Any] = {
            **memory.__array_interface__,
            "shape": shape,
            "typestr": dtype.str,
        }

    def __del__(self) -> None:
        size = self._memory.nbytes
        if sum([size, *(length * len(free) for length, free in list(_unused.items()))]) > KEPT_BYTES:
            _unused.clear()
        if size <= KEPT_BYTES:
            _unused.setdefault(size, []).append(self._memory)


_unused: dict[int, list[Array]] = {}
