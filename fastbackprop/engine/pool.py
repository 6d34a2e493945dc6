"""Engines: which kind a process has, and the engines that functions without a workspace keep between calls."""

from collections.abc import Callable
from typing import TypeVar

from fastbackprop.arguments.batch import Batch
from fastbackprop.arguments.checks import DType
from fastbackprop.engine.debug import IS_ON, DebugEngine
from fastbackprop.engine.engine import Engine
from fastbackprop.engine.oracle import OracleEngine
from fastbackprop.kernels import may_compile

T = TypeVar("T")

KEPT_ENGINES = 8
"""Largest number of engines that are kept."""

KEPT_ENGINES_BYTES = 256 * 1024 * 1024
"""Largest number of bytes of the buffers of all kept engines."""


def new_engine(layer_sizes: tuple[int, ...], dtype: DType) -> Engine:
    """An engine: on kernels, with or without checks, or on the oracle."""
    kind = OracleEngine if not may_compile() else DebugEngine if IS_ON else Engine
    return kind(layer_sizes, dtype)


def run(compute: Callable[[Engine, Batch], T], batch: Batch) -> T:
    """The result of an engine's method for a batch. After an error, the engine is not used again."""
    engine = borrow(batch.layer_sizes, batch.dtype)
    result = compute(engine, batch)
    give_back(engine)
    return result


def borrow(layer_sizes: tuple[int, ...], dtype: DType) -> Engine:
    """An engine that no other call is using; give it back after a call without an error."""
    return _free.pop((layer_sizes, dtype), None) or new_engine(layer_sizes, dtype)


def give_back(engine: Engine) -> None:
    """Keep an engine for later calls, unless too much is kept already."""
    size = engine.nbytes
    if len(_free) >= KEPT_ENGINES or sum([kept.nbytes for kept in list(_free.values())], size) > KEPT_ENGINES_BYTES:
        _free.clear()
    if size <= KEPT_ENGINES_BYTES:
        _free[engine.layer_sizes, engine.dtype] = engine


_free: dict[tuple[tuple[int, ...], DType], Engine] = {}
