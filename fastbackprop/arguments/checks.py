"""Checks of arguments. Errors say the list, the index, what was found and what was expected.

Errors that the command line can raise too use no syntax of Python: "transpose y", not "pass y.T".
Functions return arguments as arrays, and never change them. They copy only sample weights that are far from 1.
"""

import functools
import itertools
import math
import numbers
import operator
import reprlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

Array = NDArray[Any]
DType = np.dtype[Any]
Loss = str | tuple[Callable[[Array, Any], Any], Callable[[Array, Any], Any]]
Gradients = tuple[Sequence[Array], Sequence[Array]]
Parameters = Sequence[ArrayLike] | Array

FLOATS = FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)
"""The dtypes of a result. Most arrays have these very objects, so `is` comes before `==`."""

INT64, UINT64 = np.dtype(np.int64), np.dtype(np.uint64)

WEIGHTS_AT_ONCE = 8192
"""Number of sample weights that are converted to float64 at once: 64 KB."""

TARGETS_AT_ONCE = 65536
"""Number of entries of a target that are checked at once, so that they stay in a cache between two checks."""

SUM_TOLERANCE = 1e-4
"""Largest distance from 1 of the sum of a column of probabilities. Rounding of float32 with thousands of classes stays
below a tenth of it."""

FAR_FROM_ONE = 2.0**-64, 2.0**64
"""Bounds of the largest sample weight of a mean. Beyond them, all weights are scaled, as float32 may not hold them."""

MOST_PARAMETERS = 2**44
"""Largest number of parameters of a network, 128 TiB of float64: offsets within its plan are integers of 64 bits."""

NO_WEIGHT: dict[DType, Array] = {FLOAT32: np.empty(0, FLOAT32), FLOAT64: np.empty(0, FLOAT64)}
"""For each dtype, the array that means no sample weights."""

IN_OUT = " (weights are (out, in): transpose every array of all_weights that is (in, out), square ones too)"
"""What an error says if the transposed weights would match."""

OUTPUT_SHAPE = "the shape of the network's output"
"""Why an array has the shape that an error expects."""


def as_array(value: ArrayLike, name: str, index: int | None = None) -> Array:
    """`value` as an array of real numbers; integers count as float64, other types raise an error."""
    array = value if type(value) is np.ndarray else _converted(value, full_name(name, index))
    dtype = array.dtype
    if dtype is FLOAT64 or dtype is FLOAT32:
        return array
    if dtype.kind not in "biu" and dtype.newbyteorder("=") not in FLOATS:
        raise TypeError(_wrong_dtype(array, full_name(name, index), "float32 or float64 (integers count as float64)"))
    return array


def as_numbers(value: ArrayLike, name: str) -> Any:
    """`value` as an array of real numbers of any dtype; a Python number stays one, as it has no dtype for NumPy."""
    if isinstance(value, (int, float)):
        return value
    array = _converted(value, name)
    if array.dtype.kind not in "biuf":
        raise TypeError(_wrong_dtype(array, name, "real numbers"))
    return array


def full_name(name: str, index: int | None) -> str:
    """The name of an argument, or of an entry of it, in an error."""
    return name if index is None else f"{name}[{index}]"


def shown(value: object) -> str:
    """A value in an error: one short line."""
    return " ".join(_shortened.repr(value).split())


_shortened = reprlib.Repr()
_shortened.maxstring = _shortened.maxother = 100
_shortened.maxtuple = _shortened.maxlist = 20


def _converted(value: ArrayLike, label: str) -> Array:
    if value is None:
        remedy = ": pass zeros for a layer without biases" if label.startswith("all_biases[") else ""
        raise TypeError(f"{label} is None; expected an array{remedy}")
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{label} is a masked array; expected a plain one: pass {label}.filled(...)")
    if hasattr(value, "toarray"):
        raise TypeError(f"{label} is a sparse array; expected a dense one: pass {label}.toarray()")
    try:
        array: Array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # tensors raise all three
        kind = ValueError if isinstance(error, ValueError) else TypeError
        raise kind(f"{label} cannot be made an array: {' '.join(str(error).split())}") from None
    return array


def _wrong_dtype(array: Array, label: str, expected: str) -> str:
    """The text of an error about a dtype, and how to convert the array if that keeps its values."""
    is_expression = label.partition("[")[0].isidentifier()  # and not a file, or what a callable returned
    is_real = np.can_cast(array.dtype, FLOAT64, "same_kind")  # float16, longdouble, bfloat16
    remedy = ""
    if is_expression and (is_real or all(isinstance(value, numbers.Real) for value in array.flat)):
        remedy = f": pass {label}.astype(np.float64)"
    elif label == "y" and array.dtype.kind == "U":
        remedy = ": np.unique(y, return_inverse=True) finds the class numbers of names"
    return f"{label} has dtype {array.dtype}; expected {expected}{remedy}"


@dataclass(frozen=True, eq=False)
class Shapes:
    """The shapes of a network's parameters, checked. Equal shapes are one object, which is the key of caches."""

    weights: tuple[tuple[int, ...], ...]
    biases: tuple[tuple[int, ...], ...]
    layer_sizes: tuple[int, ...]


def check_parameters(all_weights: Any, all_biases: Any) -> tuple[Shapes, list[Array], list[Array]]:
    """The shapes of a network's parameters, and the two lists as lists of arrays."""
    weights, biases = check_list(all_weights, "all_weights"), check_list(all_biases, "all_biases")
    shapes = check_shapes(tuple([array.shape for array in weights]), tuple([array.shape for array in biases]))
    return shapes, weights, biases


@functools.lru_cache(maxsize=64)
def read_shapes(shapes: bytes, layers: int) -> Shapes:
    """The shapes of the parameters of `layers` layers, from the shapes of weights, then biases, of addresses.read."""
    pairs = np.frombuffer(shapes, np.int64).reshape(-1, 2).tolist()
    found = [(rows,) if columns < 0 else (rows, columns) for rows, columns in pairs]
    return check_shapes(tuple(found[:layers]), tuple(found[layers:]))


@functools.lru_cache(maxsize=64)
def check_shapes(weights: tuple[tuple[int, ...], ...], biases: tuple[tuple[int, ...], ...]) -> Shapes:
    """The shapes of a network's parameters. Later calls look them up, which saves a third of a small network's
    check."""
    if not weights:
        raise ValueError("all_weights is empty; expected one array (D_{k+1}, D_k) for each layer")
    if len(biases) != len(weights):
        raise ValueError(
            f"all_biases has {len(biases)} entries; expected {len(weights)}: one for each entry of all_weights"
        )
    sizes: list[int] = []
    for k, (shape, bias) in enumerate(zip(weights, biases, strict=True)):
        if len(shape) != 2 or 0 in shape:
            raise ValueError(f"all_weights[{k}] has shape {shape}; expected (D_{k + 1}, D_{k}), both at least 1")
        if not sizes:
            sizes.append(shape[1])
        elif shape[1] != sizes[-1]:
            raise ValueError(
                f"all_weights[{k}] has shape {shape}; expected ({shape[0]}, {sizes[-1]}): "
                f"its columns must match the rows of all_weights[{k - 1}]{IN_OUT if shape[0] == sizes[-1] else ''}"
            )
        units = shape[0]
        if bias not in ((units, 1), (units,)):
            raise ValueError(
                f"all_biases[{k}] has shape {bias}; expected ({units}, 1) or ({units},): "
                f"one for each row of all_weights[{k}]{_transposed(k, shape, bias)}"
            )
        sizes.append(units)
    check_parameter_count("all_weights has", tuple(sizes))
    return Shapes(weights, biases, tuple(sizes))


def _transposed(k: int, shape: tuple[int, ...], bias: tuple[int, ...]) -> str:
    """The hint of an error if transposed views of a layer's arrays would match."""
    is_row = len(bias) == 2 and bias[0] == 1
    if is_row and bias[1] == shape[0]:
        return f" (biases are columns: transpose all_biases[{k}])"
    if k > 0 or bias[int(is_row) :][:1] != shape[1:]:
        return ""
    if is_row:
        return f" (biases are columns: transpose each of them){IN_OUT}"
    return IN_OUT


def check_vector(vector: Any, name: str, layer_sizes: tuple[int, ...]) -> Array:
    """Parameters, or their gradient, as one array (P,)."""
    array = as_array(vector, name)
    count = parameter_count(layer_sizes)
    if array.shape != (count,):
        raise ValueError(
            f"{name} has shape {array.shape}; expected ({count},): the parameters of layer sizes {layer_sizes}"
        )
    return array


def parameter_count(layer_sizes: tuple[int, ...]) -> int:
    """The length of a vector of all parameters."""
    return parameter_bounds(layer_sizes)[-1]


@functools.lru_cache(maxsize=64)
def parameter_bounds(layer_sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Where parameters begin in a vector: weights 0, biases 0, weights 1, ..., and the length of the vector."""
    pairs = itertools.pairwise(layer_sizes)
    sizes = [size for units_in, units_out in pairs for size in (units_out * units_in, units_out)]
    return tuple(itertools.accumulate(sizes, initial=0))


def check_list(arrays: Any, name: str) -> list[Array]:
    """The arrays of a list or tuple."""
    check_is_list(arrays, name)
    plain = np.ndarray
    return [
        array
        if type(array) is plain and ((dtype := array.dtype) is FLOAT64 or dtype is FLOAT32)
        else as_array(array, name, k)
        for k, array in enumerate(arrays)
    ]


def check_is_list(arrays: Any, name: str) -> None:
    """Raise an error unless this is a list or tuple."""
    if not isinstance(arrays, (list, tuple)):
        raise TypeError(f"{name} has type {type(arrays).__name__}; expected a list of arrays, one for each layer")


def check_columns(
    value: ArrayLike, name: str, rows: int, columns: int | None, reason: str, index: int | None = None
) -> Array:
    """An array (rows, columns), or with any number of columns if that is None."""
    array = as_array(value, name, index)
    shape = array.shape
    if len(shape) == 2 and shape[0] == rows and (columns is None or shape[1] == columns):
        return array
    wanted = "N" if columns is None else columns
    transposed = len(shape) == 2 and shape[1] == rows and columns in (None, shape[0])
    hint = f" (samples are columns: transpose {full_name(name, index)})" if transposed else ""
    if shape == (rows,) and columns is None:
        hint = f" (a sample is a column: reshape {full_name(name, index)} to ({rows}, 1))"
    raise ValueError(
        f"{full_name(name, index)} has shape {shape}; expected ({rows}, {wanted}): {reason.format(index)}{hint}"
    )


def check_target(y: ArrayLike, units: int, columns: int) -> Array:
    """y as an array (D_o, N), broadcast without a copy."""
    array = as_array(y, "y")
    shape = (units, columns)
    if array.shape == shape:
        return array
    accepted = [(units, 1), (1, 1), ()]
    if units == 1:
        accepted[0] = (columns,)
    if array.shape not in accepted:
        hint = " (samples are columns: transpose y)" if array.shape == shape[::-1] else ""
        if array.dtype.kind in "iu" and array.shape == (columns,):
            hint = " (class numbers need the loss 'softmax_cross_entropy')"
        raise ValueError(
            f"y has shape {array.shape}; expected {shape}, the shape of the network's output, "
            f"or {accepted[0]}, (1, 1) or a scalar{hint}"
        )
    return np.broadcast_to(array, shape)


def check_classes(y: ArrayLike, units: int, columns: int) -> Array | None:
    """y as class numbers (1, N), broadcast without a copy; None if it has a shape of probabilities.

    Integers are class numbers in every shape except (D_o, N) and (D_o, 1), the shapes of probabilities. With two
    outputs or more, no shape is both.
    """
    array = as_array(y, "y")
    if array.dtype.kind in "iu" and array.shape in ((columns,), (1, columns), (1, 1), ()):
        shape = (1, columns)
        classes = array.reshape(shape) if array.size == columns else np.broadcast_to(array, shape)
        if array.dtype is INT64 and 0 < columns <= TARGETS_AT_ONCE:
            # One comparison saves 1 us of 2 for 64 samples: as unsigned numbers, negative numbers are large.
            unsigned = classes.view(UINT64)
            if unsigned.item(unsigned.argmax()) < units:
                return classes
        check_values(classes, array.shape, units - 1, f"class numbers in 0 .. {units - 1}")
        return classes
    in_columns = array.dtype.kind in "iu" and array.shape == (columns, 1) and columns != units
    if array.ndim == 1 or (array.shape == (1, columns) and columns > 1) or in_columns:
        wanted = f": reshape y to ({columns},)" if in_columns else ": convert y to integers"
        hint = wanted if in_columns or array.shape == (columns,) else ""
        raise ValueError(
            f"y has shape {array.shape} and dtype {array.dtype}; expected class numbers of an integer dtype, "
            f"({columns},), or probabilities, ({units}, {columns}) or ({units}, 1){hint}"
        )
    return None


def check_probabilities(y: ArrayLike, units: int, columns: int, *, sums: bool) -> Array:
    """y as probabilities (D_o, N), broadcast without a copy; with `sums`, each column sums to 1."""
    array = as_array(y, "y")
    target = check_target(array, units, columns)
    check_values(target, array.shape, 1, "probabilities in [0, 1]", sums=sums)
    return target


def check_values(target: Array, shape: tuple[int, ...], most: int, expected: str, *, sums: bool = False) -> None:
    """Raise an error for the first entry that is not from 0 to `most`, or the first column that does not sum to 1.

    The target has been broadcast from `shape`, whose indices the error names.
    """
    if target.strides[1] == 0:
        target = target[:, :1]
    if target.shape[1] == 1:  # a third of NumPy's time, which matters in a loop over single samples
        values = target[:, 0].tolist()
        total = sum(values)  # NaN if one of them is
        if min(values) >= 0 and max(values) <= most and (abs(total - 1.0) <= SUM_TOLERANCE if sums else total >= 0):
            return
    step = max(1, TARGETS_AT_ONCE // target.shape[0])
    for first in range(0, target.shape[1], step):
        part = target[:, first : first + step]
        # argmin stops at NaN, and takes a third of the time of a reduction of 64 numbers. It would copy columns.
        ordered = part.T if part.flags.f_contiguous else part
        if not (ordered.item(ordered.argmin()) >= 0 and ordered.item(ordered.argmax()) <= most):
            refused = ~((part >= 0) & (part <= most))  # NaN too
            s = int(np.argmax(refused.any(axis=0)))
            i = int(np.argmax(refused[:, s]))
            where = (i, first + s)[2 - len(shape) :]
            index = [min(at, size - 1) for at, size in zip(where, shape, strict=True)]
            raise ValueError(f"{f'y{index}' if index else 'y'} is {part[i, s]!s}; expected {expected}")
        if sums:
            totals = np.add.reduce(part, axis=0)
            extremes = float(np.minimum.reduce(totals)), float(np.maximum.reduce(totals))
            if max(1.0 - extremes[0], extremes[1] - 1.0) > SUM_TOLERANCE:
                s = int(np.argmax(abs(totals - 1.0) > SUM_TOLERANCE))
                hint = " (for one output, use the loss 'binary_cross_entropy')" if target.shape[0] == 1 else ""
                raise ValueError(f"column {first + s} of y sums to {totals[s]:.6g}; expected 1{hint}")


def check_layer_sizes(layer_sizes: Any) -> tuple[int, ...]:
    """(D_0, ..., D_{K+1}) as a tuple of whole numbers."""
    try:
        sizes = tuple(map(operator.index, layer_sizes))
    except TypeError:
        raise TypeError(f"layer_sizes is {shown(layer_sizes)}; expected at least two whole numbers from 1 up") from None
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(f"layer_sizes is {shown(sizes)}; expected at least two whole numbers from 1 up")
    check_parameter_count(f"layer_sizes is {shown(sizes)}, which has", sizes)
    return sizes


def check_parameter_count(found: str, layer_sizes: tuple[int, ...]) -> None:
    """Raise an error for a network that no memory holds, before its sizes overflow the integers of a plan."""
    count = parameter_count(layer_sizes)
    if count > MOST_PARAMETERS:
        raise ValueError(f"{found} {count:,} parameters; expected at most {MOST_PARAMETERS:,}")


def check_num_threads(num_threads: Any) -> int | None:
    """num_threads as a whole number from 1 up, or None for all available threads."""
    if num_threads is None:
        return None
    try:
        count = operator.index(num_threads)
    except TypeError:
        count = None
    if count is None or isinstance(num_threads, bool):
        raise TypeError(f"num_threads is {shown(num_threads)}; expected a whole number from 1 up, or None")
    if count < 1:
        raise ValueError(f"num_threads is {shown(num_threads)}; expected a whole number from 1 up, or None")
    return count


def check_tolerance(tolerance: Any) -> float:
    """tolerance as a number from 0 up."""
    expected = "expected a number from 0 up, or None"
    if not isinstance(tolerance, (int, float, np.integer, np.floating)):
        raise TypeError(f"tolerance is {shown(tolerance)}; {expected}")
    if not tolerance >= 0:
        raise ValueError(f"tolerance is {shown(tolerance)}; {expected}")
    return float(tolerance)


def check_max_norm(max_norm: Any) -> float:
    """max_norm as a float: a positive number, which may be infinite."""
    if isinstance(max_norm, (bool, np.bool_)) or not isinstance(max_norm, numbers.Real):
        raise TypeError(f"max_norm is {shown(max_norm)}; expected a positive number")
    try:
        norm = float(max_norm)
    except OverflowError:  # an integer or a fraction beyond all doubles
        norm = math.inf if operator.gt(max_norm, 0) else -math.inf
    if not norm > 0:  # NaN neither
        raise ValueError(f"max_norm is {shown(max_norm)}; expected a positive number")
    return norm


def check_dtype(dtype: DTypeLike) -> DType:
    """float32 or float64 as a dtype."""
    try:
        found = np.dtype(dtype)
    except (TypeError, ValueError):
        raise TypeError(f"dtype is {shown(dtype)}; expected float32 or float64") from None
    for known in FLOATS:
        if found == known:
            return known
    raise TypeError(f"dtype is {found}; expected float32 or float64")


def check_weighting(reduction: Any, sample_weight: ArrayLike | None, columns: int) -> tuple[float, Array]:
    """The factor of the sum over samples that makes the reduction, and sample_weight as an array (N,) or (0,)."""
    check_reduction(reduction)
    weight, total = check_sample_weight(sample_weight, columns), float(columns)
    if reduction == "sum":
        return 1.0, weight
    if sample_weight is not None:
        weight = near_one(weight)
        # Copies have one layout: NumPy adds unaligned and byte-swapped arrays in another order.
        parts = (weight[first : first + WEIGHTS_AT_ONCE] for first in range(0, columns, WEIGHTS_AT_ONCE))
        total = sum((float(np.sum(part.astype(np.float64))) for part in parts), 0.0)
    return scale_of_mean(total, columns), weight


def check_reduction(reduction: Any) -> None:
    """Raise an error unless this is the name of a reduction."""
    if not isinstance(reduction, str) or reduction not in ("sum", "mean"):
        raise ValueError(f"reduction is {shown(reduction)}; expected 'sum' or 'mean'")


def check_sample_weight(sample_weight: ArrayLike | None, columns: int) -> Array:
    """sample_weight as an array (N,), or (0,) if it is None."""
    if sample_weight is None:
        return NO_WEIGHT[FLOAT32]
    weight = as_array(sample_weight, "sample_weight")
    if weight.shape != (columns,):
        raise ValueError(f"sample_weight has shape {weight.shape}; expected ({columns},): one for each sample")
    return weight


def scale_of_mean(total: float, columns: int) -> float:
    """1 / the total of the weights."""
    if total == 0:
        found = "there are no samples" if columns == 0 else "the sum of sample_weight is 0"
        raise ValueError(f"reduction is 'mean' and {found}; expected something to divide by")
    return 1.0 / total


def near_one(weight: Array) -> Array:
    """Weights in the same ratios, whose largest is neither 0 nor infinite in float32: a copy if they are far from 1.

    They are divided by a power of two, which rounds nothing.
    """
    # argmax and argmin stop at NaN, and take a quarter of the time of max and min for 64 weights.
    largest = float(max(weight.item(weight.argmax()), -weight.item(weight.argmin()))) if weight.size else 0.0
    if not 0.0 < largest < np.inf or FAR_FROM_ONE[0] <= largest <= FAR_FROM_ONE[1]:
        return weight
    with np.errstate(all="ignore"):  # a weight that is very small beside the largest becomes 0
        return np.ldexp(weight.astype(np.float64), -math.frexp(largest)[1])


def check_gradient_lists(
    pair: Any, shapes: Iterable[Sequence[tuple[int, ...]]], name: str, reason: str = "its parameter's"
) -> None:
    """(all_dl_dweights, all_dl_dbiases): a pair of lists of arrays with these shapes."""
    if not (isinstance(pair, (tuple, list)) and len(pair) == 2):
        length = f" and length {len(pair)}" if isinstance(pair, (tuple, list)) else ""
        raise TypeError(
            f"{name} has type {type(pair).__name__}{length}; expected a pair of lists (all_dl_dweights, all_dl_dbiases)"
        )
    for part, (arrays, expected) in enumerate(zip(pair, shapes, strict=True)):
        check_is_list(arrays, f"{name}[{part}]")
        if len(arrays) != len(expected):
            raise ValueError(f"{name}[{part}] has {len(arrays)} entries; expected {len(expected)}: one for each layer")
        for k, (array, shape) in enumerate(zip(arrays, expected, strict=True)):
            if not isinstance(array, np.ndarray):
                raise TypeError(f"{name}[{part}][{k}] has type {type(array).__name__}; expected an array")
            as_numbers(array, f"{name}[{part}][{k}]")
            if array.shape != shape:
                raise ValueError(f"{name}[{part}][{k}] has shape {array.shape}; expected {shape}, {reason}")


def check_out(out: Any, shapes: Shapes, dtype: DType, samples: int | None = None) -> None:
    """out=(all_dl_dweights, all_dl_dbiases): arrays for the gradient, or for the gradient of each sample."""
    parts: Sequence[Sequence[tuple[int, ...]]] = shapes.weights, shapes.biases
    if samples is None:
        check_gradient_lists(out, parts, "out")
    else:
        parts = [[(samples, *shape) for shape in part] for part in parts]
        check_gradient_lists(out, parts, "out", "a gradient for each sample")
    for part, arrays in enumerate(out):
        for k, array in enumerate(arrays):
            check_target_of(array, f"out[{part}][{k}]", dtype)


def check_out_vector(out: Any, layer_sizes: tuple[int, ...], dtype: DType, samples: int | None = None) -> None:
    """out=vector: an array (P,) for the gradient, or (N, P) for the gradient of each sample."""
    if not isinstance(out, np.ndarray):
        shape = "(P,)" if samples is None else "(N, P)"
        raise TypeError(
            f"out has type {type(out).__name__}; expected an array {shape}, as the parameters are one vector"
        )
    wanted = (samples, parameter_count(layer_sizes))
    if samples is None:
        check_vector(out, "out", layer_sizes)
    elif out.shape != wanted:
        raise ValueError(f"out has shape {out.shape}; expected {wanted}, a gradient for each sample")
    check_target_of(out, "out", dtype)


def check_target_of(array: Array, label: str, dtype: DType) -> None:
    """Raise an error for an array that a gradient of that dtype cannot be written to."""
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{label} is a masked array; expected a plain one")
    if array.dtype.kind != "f" or not np.can_cast(dtype, array.dtype, "safe"):
        raise TypeError(f"{label} has dtype {array.dtype}; expected {dtype}, that of the gradient")
    if not array.flags.writeable:
        raise ValueError(f"{label} is read-only; expected an array to write to")
    if any(stride == 0 and size > 1 for stride, size in zip(array.strides, array.shape, strict=True)):
        raise ValueError(
            f"{label} has entries that share memory (strides {array.strides}); expected one for each number"
        )
