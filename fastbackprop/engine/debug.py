"""FASTBACKPROP_DEBUG=1: an engine that checks the arguments of compiled code, and that it stays within its buffers.

Buffers, results and the notebooks' lists lie between red zones, which are checked after every call.
"""

import functools
import math
import os
from collections.abc import Iterable
from typing import Any

import numpy as np

from fastbackprop.arguments.batch import Batch
from fastbackprop.arguments.checks import FLOAT64, INT64, Array, DType
from fastbackprop.engine.calls import Call
from fastbackprop.engine.engine import Engine
from fastbackprop.engine.memory import aligned
from fastbackprop.parallel.boxes import BOX

IS_ON = os.environ.get("FASTBACKPROP_DEBUG", "").strip() not in ("", "0")

ZONE_BYTES = 4096
"""Bytes of a red zone."""

PATTERN = 0xFF
"""The value of every byte of a red zone: NaN in both dtypes, so that a read of a red zone shows in the result."""


class Zoned:
    """An array of memory of its own, between two red zones."""

    def __init__(self, shape: tuple[int, ...], dtype: DType) -> None:
        size = math.prod(shape) * dtype.itemsize
        memory = aligned(size + 2 * ZONE_BYTES, np.dtype(np.uint8))
        memory[:] = PATTERN
        self.before, within, self.behind = np.split(memory, [ZONE_BYTES, ZONE_BYTES + size])
        self.array: Array = within.view(dtype).reshape(shape)

    def check(self, name: str) -> None:
        """Raise an error if something was written to a red zone."""
        for zone, where in (self.before[::-1], "before"), (self.behind, "behind"):
            written = np.flatnonzero(zone != PATTERN)
            if written.size:
                raise RuntimeError(
                    f"internal error: compiled code wrote outside of the buffer {name!r}, "
                    f"to {written.size} bytes up to {written[-1] + 1} bytes {where} it"
                )


class DebugEngine(Engine):
    """An engine on kernels, with these checks."""

    def __init__(self, layer_sizes: tuple[int, ...], dtype: DType) -> None:
        super().__init__(layer_sizes, dtype)
        self.zoned: dict[str, Zoned] = {}

    def _allocate(self, name: str, words: int) -> Array:
        self.zoned[name] = Zoned((words,), FLOAT64)
        return self.zoned[name].array

    def _run(self, batch: Batch, call: Call, columns_out: Array, gradient: Array) -> float:
        call.run_call = functools.partial(check_and_run, call)
        outputs = {"columns_out": columns_out, "gradient": gradient}
        outputs |= {f"sample_gradients[{k}]": array for k, array in enumerate(batch.sample_gradients)}
        lists = {f"columns[{k}]": array for k, array in enumerate(batch.columns)}
        zoned = {id(array): Zoned(array.shape, array.dtype) for array in (*outputs.values(), *lists.values())}
        for array in lists.values():
            np.copyto(zoned[id(array)].array, array)
        batch.sample_gradients = [zoned[id(array)].array for array in batch.sample_gradients]
        if lists:
            batch.arrays[-len(lists) :] = [zoned[id(array)].array for array in lists.values()]
            batch.take_columns()  # the same number of arrays, at new addresses
        loss = super()._run(batch, call, zoned[id(columns_out)].array, zoned[id(gradient)].array)
        for name, buffer in self.zoned.items():
            buffer.check(name)
        for name, array in (outputs | lists).items():
            zoned[id(array)].check(name)
            if array.flags.writeable:  # arrays that are only read may be read-only
                np.copyto(array, zoned[id(array)].array)
        return loss


def check_and_run(call: Call, *passed: Any) -> Any:
    """Check the arguments of compiled code, then run it: see passes.entry."""
    from fastbackprop.passes.entry import entry

    words, net_input, target, sample_weight, columns_out, gradient, parameters, places, bounds, _, boxes, *_ = passed
    layout, element, samples = call.plan.layout, call.dtype, net_input.shape[1]
    inputs, outputs, rows = layout.call["inputs"], layout.call["outputs"], len(columns_out)
    # fmt: off
    check_array("words", words, INT64, [(len(call.index),)])
    check_array("net_input", net_input, element, [(inputs, samples)])
    check_array("target", target, element, [(outputs, samples), (1, samples), net_input.shape])
    check_array("sample_weight", sample_weight, element, [(samples,), (0,)])
    check_array("columns_out", columns_out, element, [(rows, samples), (rows, 0)])
    check_array("gradient", gradient, element, [(layout.sums,), (0,)])
    check_array("parameters", parameters, element, [(layout.parameters,), (0,)])
    check_array("places", places, INT64, [(len(places), 3)])
    check_array("boxes", boxes, INT64, [(len(boxes), BOX)])
    # fmt: on
    for name, array in {
        "words": words,
        "gradient": gradient,
        "parameters": parameters,
        "places": places,
        "boxes": boxes,
        "rows of columns_out": columns_out[0],
    }.items():
        if not array.flags.c_contiguous:
            raise RuntimeError(f"internal error: {name} given to compiled code is not contiguous")
    if parameters.size == 0 and not np.all(places[:, 0]):
        raise RuntimeError("internal error: places given to compiled code has an address that is 0")
    if not 0 <= bounds[1] < bounds[2] <= call.plan.chunks:
        raise RuntimeError(f"internal error: bounds given to compiled code are {bounds}")
    return entry(call.dtype)(*passed)


def check_array(name: str, array: Any, dtype: DType, shapes: Iterable[tuple[int, ...]]) -> None:
    """Raise an error for an array of another dtype or shape than compiled code reads."""
    if type(array) is not np.ndarray or array.dtype != dtype or array.shape not in shapes:
        found = f"a {type(array).__name__} of {getattr(array, 'dtype', None)} and shape {np.shape(array)}"
        expected = f"{dtype} and one of the shapes {shapes}"
        raise RuntimeError(f"internal error: {name} given to compiled code is {found}; expected {expected}")
