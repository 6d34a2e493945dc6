"""The products and row operations, compiled once for a dtype in three groups; passes call them by address.

If passes inlined them, each pass would compile them again, which takes a second. A group shares its register
tiles, and is compiled when a batch first needs it: large batches do not need `samples` (0.8 s). `transpose` and
`weight_gradient` are in the group `tiles`: a group of their own would save narrow networks 0.1 s and cost wide ones
0.4 s.
"""

import ctypes
import functools

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic

from fastbackprop.kernels import layers, rows, samples
from fastbackprop.kernels.jit import compile_callback
from fastbackprop.kernels.simd import INT as INT64
from fastbackprop.kernels.simd import POINTER, Simd

INT = types.intp
GROUPS = "rows", "tiles", "samples"


def signatures(element):
    """group: {name: the intrinsic that emits the product, and the types of its arguments}."""
    row = types.CPointer(element)
    return {
        "rows": {
            "copy_rows": (rows.copy_rows, [row, INT, row, *[INT] * 4]),
            "add_partials": (rows.add_partials, [row, INT, types.CPointer(types.float64), row, *[INT] * 7]),
        },
        "tiles": {
            "forward_layer": (layers.forward_layer, [row, INT, row, row, row, *[INT] * 5]),
            "backward_layer": (layers.backward_layer, [row, INT, row, INT, row, row, *[INT] * 6]),
            "dot_gradient": (layers.dot_gradient, [row, INT, row, row, INT, row, INT, row, *[INT] * 4]),
            "transpose": (layers.transpose, [row, INT, row, *[INT] * 3]),
            "weight_gradient": (layers.weight_gradient, [row, INT, row, INT, row, *[INT] * 5]),
        },
        "samples": {
            "forward_samples": (samples.forward_samples, [row, INT, row, row, row, *[INT] * 4]),
            "multiply_samples": (samples.multiply_samples, [row, INT, row, row, INT, INT, row, *[INT] * 5]),
        },
    }


def pointer_types(element):
    """name: the type of a field that holds the address of the compiled product."""
    return {
        name: types.ExternalFunctionPointer(types.void(*kinds), None)
        for group in signatures(element).values()
        for name, (_, kinds) in group.items()
    }


@functools.cache
def addresses(dtype, group):
    """name: the address of the compiled product, for the products of a group."""
    element = numba.from_dtype(dtype)
    names = list(signatures(element)[group])
    table = np.zeros(len(names), np.int64)
    write = compile_callback(writer(group), types.void(types.CPointer(types.int64), types.CPointer(element)))
    ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)(write.address)(table.ctypes.data, None)
    _owners.append(write)
    return dict(zip(names, table.tolist(), strict=True))


_owners: list[object] = []
"""References that keep the compiled products in memory."""


def writer(group):
    """The function that writes the addresses of a group's products."""

    def write(table, like):
        write_addresses(table, like, group)

    write.__name__ = f"write_{group}"
    return write


@intrinsic(prefer_literal=True)
def write_addresses(typing_context, table, like, group):
    """Write the addresses of a group's products, for elements of the type that `like` points to."""

    def generate(context, builder, signature, arguments):
        simd = Simd(context, builder, like.dtype)
        for k, (product, kinds) in enumerate(signatures(like.dtype)[group.literal_value].values()):
            passed = [POINTER if isinstance(kind, types.CPointer) else INT64 for kind in kinds]
            function = simd.function(product._defn.__wrapped__, passed)
            builder.store(builder.ptrtoint(function, INT64), builder.gep(arguments[0], [INT64(k)]))
        return context.get_dummy_value()

    return types.void(table, like, group), generate
