"""A call: the records that a pass reads, filled once for a plan, with the addresses of all that is compiled."""

import importlib
from typing import Any

import numpy as np

from fastbackprop.arguments.checks import Array, DType
from fastbackprop.engine.plan import PLANS

PASSES = {
    ("gradient", "few"): ("few", "few_gradient_pass", ("rows", "samples")),
    ("gradient", "private"): ("private", "private_pass", ("rows", "tiles", "transposed")),
    ("gradient", "shared"): ("shared", "shared_pass", ("rows", "tiles", "transposed")),
    ("prediction", "few"): ("few", "few_predict_pass", ("rows", "samples")),
    ("prediction", "private"): ("predict", "predict_pass", ("rows", "tiles")),
    ("forward pass", "private"): ("notebook", "forward_pass", ("rows", "tiles")),
    ("backward pass", "private"): ("notebook", "backward_pass", ("rows", "tiles", "transposed")),
}
"""What is computed, and the plan's scheme: the pass, and the products that it needs (see kernels.products)."""


def find_pass(key: tuple[str, str]) -> Any:
    """The function of a pass."""
    module, function, _ = PASSES[key]
    return getattr(importlib.import_module(f"fastbackprop.passes.{module}"), function)


class Call:
    """The records of one plan, which Python keeps alive, and the pass that reads them."""

    placed: tuple[int, int, int] | None = None
    """The threads, the chunks of a slice and the bytes of the engine's buffers whose addresses are in the record."""

    tile_loss: Any = None

    def __init__(self, what: str, layer_sizes: tuple[int, ...], dtype: DType, samples: int) -> None:
        import numba  # the first import takes 0.3 s

        from fastbackprop.kernels.products import addresses
        from fastbackprop.passes import entry, records

        self.dtype, self.plan = dtype, PLANS[what](layer_sizes, dtype.itemsize, samples)
        element, plan, layout = numba.from_dtype(dtype), self.plan, self.plan.layout
        self.run = entry.entry(dtype)
        self.address = int(entry.compiled_pass(find_pass((what, plan.scheme)), dtype).address)
        kind = records.call_record(element)
        self.words = np.zeros(len(kind.fields), np.int64)
        self.doubles = self.words.view(np.float64)
        self.index = {field: number for number, field in enumerate(kind.fields)}
        self.layers = table(records.layer_record(element).dtype, layout.layers)
        self.blocks = table(records.block_record(element).dtype, layout.blocks)
        self.set(layer=self.layers.ctypes.data, block=self.blocks.ctypes.data)
        self.set(chunks=plan.chunks, batch_samples=samples, tile_samples=plan.tile_samples, **layout.call)
        narrow = not any(layer["along_units"] for layer in layout.layers)
        for group in PASSES[what, plan.scheme][2]:
            if not (narrow and group == "transposed"):  # which takes 0.4 s to compile
                self.set(**addresses(dtype, group))

    def set(self, **fields: int) -> None:
        """Write fields of the record."""
        for field, value in fields.items():
            self.words[self.index[field]] = value

    def set_loss(self, tile_loss: Any) -> None:
        """Write the address of a loss, compiled."""
        if tile_loss is not self.tile_loss:
            from fastbackprop.passes.entry import compiled_loss

            self.set(loss=compiled_loss(tile_loss, self.dtype).address)
            self.tile_loss = tile_loss

    @property
    def loss_sum(self) -> float:
        """The loss of all samples."""
        return self.doubles.item(self.index["loss_sum"])


def table(dtype: Any, rows: tuple[dict[str, int], ...]) -> Array:
    """Records, one for each row; fields that a row does not name are 0."""
    return np.array([tuple(row.get(name, 0) for name in dtype.names) for row in rows], dtype)
