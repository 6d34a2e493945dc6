"""Records: a row of a NumPy structured array that Python fills and compiled code reads as `record.field`.

A field has eight bytes: int64, float64, or an address. Compiled code holds the address of the record, so a field is one
load. An address is loaded as a typed pointer: LLVM 22 miscompiles arithmetic on integers that are cast to pointers. The
address of a function can be called: `call.forward_layer(...)`.

numba's own records (numba.from_dtype) compile as fast, but hold no pointers, and passing one costs 0.66 us.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.datamodel import models
from numba.core.typing.templates import AttributeTemplate
from numba.extending import infer_getattr, intrinsic, lower_getattr_generic, lower_setattr_generic, register_model

from fastbackprop.kernels.simd import BYTE, INT


class Record(types.Type):
    """The address of a record, whose fields have these names and numba types."""

    def __init__(self, name: str, fields: dict[str, types.Type]) -> None:
        self.fields = fields
        super().__init__(name)  # short: the name is part of every symbol, and distinguishes two types

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the array that Python fills: float64, or int64 for integers and addresses."""
        return np.dtype([(name, "f8" if kind == types.float64 else "i8") for name, kind in self.fields.items()])


@register_model(Record)
class RecordModel(models.OpaqueModel):
    """A record is passed as its address."""


@infer_getattr
class RecordAttributes(AttributeTemplate):
    """The fields of a record, to read and to write."""

    key = Record

    def generic_resolve(self, record, name):
        return record.fields.get(name)


@lower_getattr_generic(Record)
def read_field(context, builder, record, address, name):
    return builder.load(place_of(builder, record, address, name), typ=context.get_value_type(record.fields[name]))


@lower_setattr_generic(Record)
def write_field(context, builder, signature, arguments, name):
    record, value = signature.args
    address, number = arguments
    number = context.cast(builder, number, value, record.fields[name])
    place = place_of(builder, record, address, name)
    builder.store(number, builder.bitcast(place, number.type.as_pointer()))


def place_of(builder, record, address, name):
    offset = INT(8 * list(record.fields).index(name))
    return builder.gep(address, [offset], source_etype=BYTE)


@intrinsic
def record_at(typing_context, first, number):
    """The record of that number in a table, given its first one."""

    def generate(context, builder, signature, arguments):
        table, number = arguments
        offset = builder.mul(number, ir.Constant(number.type, first.dtype.itemsize))
        return builder.gep(table, [offset], source_etype=BYTE)

    return first(first, types.intp), generate


def record_of(kind):
    """The code generator of an intrinsic that returns the data of an array as the first record of a table."""

    def generate(context, builder, signature, arguments):
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        return builder.bitcast(array.data, context.get_value_type(kind))

    return generate
