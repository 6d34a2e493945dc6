"""Engines for the functions that are given no workspace: kept between calls, one caller each."""

from numpy.typing import DTypeLike

from fastbackprop.engine import Engine
from fastbackprop.lists import reader
from fastbackprop.validation import FLOATS, DType, check_dtype, parameter_count
from fastbackprop.wide import WideEngine

KEPT = 8
KEPT_BYTES = 256 * 1024 * 1024
CHUNK_BYTES = 2**23
"""At most, of the sums of a chunk, a double and an element for each parameter: else lanes take blocks of one gradient.

So eight chunks have room at least, and as many threads work. Below, chunks take less time, though not all such sums fit
a cache: 784-256x3-10 7 % less, networks of 200 units in 5 layers 10, of 64 in 40 17, of 32 in 128 36 (two threads,
medians of 256 to 20,000 samples and both dtypes, Zen 5). Above, 784-512x3-10 took 8 to 11 % more in float64, networks
of 1.5 to 3 million parameters from 26 % less, the deepest with many samples, to 42 more.
"""
LANE_BYTES = 2**25
"""At most, of a tile, of which each lane has one: else, and that is where layers are many, lanes share tiles."""


def borrow(layer_sizes: tuple[int, ...], dtype: DType) -> Engine:
    """An engine that no other call is using; give it back after a call that went well."""
    return _free.pop((layer_sizes, dtype), None) or make_engine(layer_sizes, dtype)


def give_back(engine: Engine) -> None:
    """Keep an engine for later calls, unless too much is kept already.

    Not after an error: a second interrupt may leave a thread behind that still writes to its buffers.
    """
    size = engine.nbytes
    if len(_free) >= KEPT or sum([kept.nbytes for kept in list(_free.values())], size) > KEPT_BYTES:
        _free.clear()
    if size <= KEPT_BYTES:
        _free[engine.layer_sizes, engine.dtype] = engine


_free: dict[tuple[tuple[int, ...], DType], Engine] = {}


def make_engine(layer_sizes: tuple[int, ...], dtype: DType) -> Engine:
    """The engine for networks of that shape: by the size of their gradient, and of a tile."""
    if parameter_count(layer_sizes) * (8 + dtype.itemsize) <= CHUNK_BYTES:
        engine = Engine(layer_sizes, dtype)
        if engine.tile_bytes <= LANE_BYTES:
            return engine
    return WideEngine(layer_sizes, dtype)


def warmup(dtype: DTypeLike | None = None) -> None:
    """Compile all kernels now, or load them from numba's cache, instead of at their first use.

    Parameters
    ----------
    dtype : {numpy.float32, numpy.float64}, optional
        The default is both.

    Raises
    ------
    TypeError
        ``dtype is float16; expected float32 or float64``

    Examples
    --------
    >>> import fastbackprop
    >>> fastbackprop.warmup()
    """
    wanted = FLOATS if dtype is None else (check_dtype(dtype),)
    from fastbackprop.kernels import few, losses, sweep, team, wide  # imports numba

    reader()
    team.serve()
    for known in wanted:
        for kernel in few.few, sweep.sweep, losses.cross_entropy, wide.wide_gradient, wide.transpose_weights:
            kernel(known)
