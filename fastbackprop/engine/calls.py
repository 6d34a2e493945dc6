"""A call: the records that a pass reads, filled once for a plan, with the addresses of all that is compiled."""

import importlib
from typing import Any

import numpy as np

from fastbackprop.arguments.checks import Array, DType
from fastbackprop.engine.plan import Plan
from fastbackprop.parallel.workers import yield_address

PASSES = {
    "few": ("few", "few_gradient_pass", ("rows", "samples")),
    "few_predict": ("few", "few_predict_pass", ("rows", "samples")),
    "private": ("private", "private_pass", ("rows", "tiles", "transposed")),
    "shared": ("shared", "shared_pass", ("rows", "tiles", "transposed")),
    "predict": ("predict", "predict_pass", ("rows", "tiles")),
    "forward_pass": ("notebook", "forward_pass", ("rows", "tiles")),
    "backward_pass": ("notebook", "backward_pass", ("rows", "tiles", "transposed")),
}
"""name: the module of passes and the function in it, and the products that it needs, see kernels.products."""


def find_pass(name: str) -> Any:
    """The function of a pass."""
    module, function, _ = PASSES[name]
    return getattr(importlib.import_module(f"fastbackprop.passes.{module}"), function)


class Call:
    """The records of one plan and pass, which Python keeps alive."""

    version = 0
    """Of the engine's buffers whose addresses are written in the record."""

    def __init__(self, plan: Plan, name: str, dtype: DType) -> None:
        import numba  # the first import takes 0.3 s

        from fastbackprop.kernels.products import addresses
        from fastbackprop.passes import entry, records

        element, layout = numba.from_dtype(dtype), plan.layout
        self.run = entry.entry(dtype)
        self.address = int(entry.compiled_pass(find_pass(name), dtype).address)
        kind = records.call_record(element)
        self.record = np.zeros(1, kind.dtype)
        self.words = self.record.view(np.int64)
        self.index = {field: number for number, field in enumerate(kind.fields)}
        self.layers = table(records.layer_record(element).dtype, layout.layers)
        self.blocks = table(records.block_record(element).dtype, layout.blocks)
        fields = layout.call | {"tile_samples": plan.tile_samples, "chunks": plan.chunks, "batch_samples": plan.samples}
        fields |= {"layer": self.layers.ctypes.data, "block": self.blocks.ctypes.data}
        narrow = not any(layer["along_units"] for layer in layout.layers)
        for group in PASSES[name][2]:
            if not (narrow and group == "transposed"):  # which takes 0.4 s to compile
                fields |= addresses(dtype, group)
        self.set(yield_thread=yield_address(), **fields)
        self.tile_loss: Any = None

    def set_loss(self, tile_loss: Any, dtype: DType) -> None:
        """Write the address of a loss, compiled."""
        if tile_loss is not self.tile_loss:
            from fastbackprop.passes.entry import compiled_loss

            self.set(loss=compiled_loss(tile_loss, dtype).address)
            self.tile_loss = tile_loss

    def set(self, **fields: int) -> None:
        """Write fields of the record."""
        for field, value in fields.items():
            self.words[self.index[field]] = value

    @property
    def loss_sum(self) -> float:
        """The loss of all samples."""
        return float(self.record["loss_sum"][0])


def table(dtype: Any, rows: tuple[dict[str, int], ...]) -> Array:
    """Records, one for each row; fields that a row does not name are 0."""
    return np.array([tuple(row.get(name, 0) for name in dtype.names) for row in rows], dtype)
