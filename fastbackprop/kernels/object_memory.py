"""The arrays of lists: their shapes, and where their data are, read where Python keeps them.

To check the 12 arrays of a small network, and to write their addresses for a kernel, took 9 us in Python, where the
gradient of a sample takes 2. With this file it takes 3, and the compiled code 1.2 of them (Zen 5).

An array is a Python object. Every object begins with a head, whose last 8 bytes are its type. Behind the head of an
array are, by NumPy's C interface:

    data, a pointer | ndim, an int | shape, a pointer | strides, a pointer | base | dtype, an object | flags, an int

and behind the head of a dtype

    its type, a pointer | kind, letter, byte order, flags, a byte each | number, an int
"""

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from fastbackprop.kernels.jit import compile_entry
from fastbackprop.kernels.simd import INT

CELLS = types.CPointer(types.int64)
C_CONTIGUOUS = 1  # a flag of an array
INT_BITS, DTYPE_FLAGS = 2**32 - 1, 0xFF << 24  # within a cell


@intrinsic
def cells_of(typing_context, address):
    """The object at an address."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], INT.as_pointer())

    return CELLS(types.intp), generate


@intrinsic
def item(typing_context, objects, k):
    """The k-th object of a list, which still owns it."""

    def generate(context, builder, signature, arguments):
        python, (objects, k) = context.get_python_api(builder), arguments
        return builder.bitcast(python.list_getitem(builder.bitcast(objects, python.pyobj), k), INT.as_pointer())

    return CELLS(CELLS, types.intp), generate


@intrinsic
def cells_at(typing_context, cells, number):
    """The pointer in a cell."""

    def generate(context, builder, signature, arguments):
        place = builder.gep(arguments[0], [arguments[1]])
        return builder.load(builder.bitcast(place, ir.PointerType(INT.as_pointer())))

    return CELLS(CELLS, types.intp), generate


def read_arrays():
    """The reader of a list, compiled: it keeps the GIL, which protects the objects that it reads."""
    head = object.__basicsize__ // 8  # in the cache's key as well: builds of Python differ

    def read(shapes, places, objects, contiguous, array_type, float32, float64):
        """Read the arrays of a list, and check whether kernels can take them.

        Returns the bytes of an element if all are plain arrays, of one or two dimensions, and all of float32 or all of
        float64 in the machine's byte order; otherwise 0. The number is negative if one of the first `contiguous` arrays
        is not contiguous in C order.

        shapes              written: two numbers for each array, -1 behind a single dimension
        places              written: a row for each array, its address and the strides of its rows and columns
        objects             the address of a list with one array for each row of places: read
        array_type          the address of the type of plain arrays
        float32, float64    the addresses of the two dtypes: read
        """
        of_float32, of_float64 = cells_of(float32)[head + 1] & ~DTYPE_FLAGS, cells_of(float64)[head + 1] & ~DTYPE_FLAGS
        first, flags = 0, C_CONTIGUOUS
        for k in range(places.shape[0]):
            array = item(cells_of(objects), k)
            dimensions = array[head + 1] & INT_BITS
            if array[head - 1] != array_type or dimensions < 1 or dimensions > 2:
                return 0
            element = cells_at(array, head + 5)[head + 1] & ~DTYPE_FLAGS
            if k == 0:
                first = element
            if element != first:
                return 0
            shape, strides = cells_at(array, head + 2), cells_at(array, head + 3)
            shapes[2 * k] = shape[0]
            shapes[2 * k + 1] = shape[1] if dimensions == 2 else -1
            places[k, 0] = array[head]
            places[k, 1] = strides[0]
            places[k, 2] = strides[1] if dimensions == 2 else 0
            if k < contiguous:
                flags &= array[head + 6]
        itemsize = 4 if first == of_float32 else 8 if first == of_float64 else 0
        return itemsize if flags & C_CONTIGUOUS else -itemsize

    written = types.Array(types.int64, 1, "C"), types.Array(types.int64, 2, "C")
    return compile_entry(read, types.int64(*written, *[types.int64] * 5), nogil=False)
