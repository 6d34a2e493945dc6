"""A call: the records that a pass reads, filled once for a plan, with the addresses of compiled code."""

import functools
import importlib
from typing import Any

import numpy as np

from fastbackprop.arguments.checks import Array, DType
from fastbackprop.engine.layout import Layout
from fastbackprop.engine.plan import COMPUTATIONS


def compile_pass(scheme: str, name: str, dtype: DType) -> dict[str, int]:
    """The fields of a record with the addresses of a pass and of its tile function: see Computation.passes."""
    from fastbackprop.passes.chunks import LOOPS
    from fastbackprop.passes.entry import compiled

    module, function = name.split(".")
    found = getattr(importlib.import_module(f"fastbackprop.passes.{module}"), function)
    functions = {"run": found}
    if scheme in LOOPS:
        loop, field = LOOPS[scheme]
        functions = {"run": loop, field: found}
    return {field: compiled(function, dtype, field).address for field, function in functions.items()}


class Call:
    """The records of one plan, which Python keeps alive, and the pass that reads them."""

    placed: tuple[int, int, int] | None = None
    """The threads, the chunks of a slice and the bytes of the engine's buffers whose addresses are in the record."""

    tile_loss: Any = None
    max_norm = 0.0  # no batch has this norm, so the first one is written

    def __init__(self, what: str, layer_sizes: tuple[int, ...], dtype: DType, samples: int) -> None:
        import numba  # the first import takes 0.3 s

        from fastbackprop.kernels.products import addresses
        from fastbackprop.passes import entry, records

        computation = COMPUTATIONS[what]
        self.dtype, self.plan = dtype, computation.plan(layer_sizes, dtype.itemsize, samples)
        element, plan, layout = numba.from_dtype(dtype), self.plan, self.plan.layout
        self.run_call = entry.entry(dtype)
        kind = records.call_record(element)
        self.words = np.zeros(len(kind.fields), np.int64)
        self.doubles = self.words.view(np.float64)
        self.index = {field: number for number, field in enumerate(kind.fields)}
        self.tables = tables(layout, dtype)
        self.set(**{name: table.ctypes.data for name, table in self.tables.items()})
        self.set(chunks=plan.chunks, batch_samples=samples, tile_samples=plan.tile_samples, **layout.call)
        self.set(**compile_pass(plan.scheme, computation.passes[plan.scheme], dtype))
        for group in "rows", ("samples" if plan.scheme == "few" else "tiles"):
            self.set(**addresses(dtype, group))

    def set(self, **fields: int) -> None:
        """Write fields of the record."""
        for field, value in fields.items():
            self.words[self.index[field]] = value

    def set_loss(self, tile_loss: Any, max_norm: float) -> None:
        """Write the address of a loss, compiled, and the norm to which gradients are clipped."""
        if tile_loss is not None:
            from fastbackprop.passes.entry import compiled

            self.set(loss=compiled(tile_loss, self.dtype, "loss").address)
        self.doubles[self.index["max_norm"]] = max_norm
        self.tile_loss, self.max_norm = tile_loss, max_norm

    @property
    def loss_sum(self) -> float:
        """The loss of all samples."""
        return self.doubles.item(self.index["loss_sum"])


@functools.lru_cache(maxsize=64)
def tables(layout: Layout, dtype: DType) -> dict[str, Array]:
    """The records of the layers and blocks of a layout. A field that the layout does not name is 0."""
    import numba

    from fastbackprop.passes import records

    element = numba.from_dtype(dtype)
    kinds = {"layer": records.layer_record(element).dtype, "block": records.block_record(element).dtype}
    rows = {"layer": layout.layers, "block": layout.blocks}
    return {
        name: np.array([tuple(row.get(field, 0) for field in kind.names) for row in rows[name]], kind)
        for name, kind in kinds.items()
    }
