"""The checked arguments of a call: what public functions hand to the engines."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastbackprop.arguments.addresses import plain, read
from fastbackprop.arguments.checks import (
    FLOAT32,
    FLOAT64,
    NO_WEIGHT,
    OUTPUT_SHAPE,
    Array,
    DType,
    Gradients,
    Parameters,
    Shapes,
    check_columns,
    check_is_list,
    check_max_norm,
    check_num_threads,
    check_out,
    check_out_vector,
    check_parameters,
    check_reduction,
    check_sample_weight,
    check_vector,
    check_weighting,
    full_name,
    read_shapes,
    scale_of_mean,
    shown,
)
from fastbackprop.losses import LOSSES, find_loss

LOSS_NAMES = ", ".join(map(repr, LOSSES))

MATCHING = "it must match all_weights[{0}] and the samples of all_h[0]"
"""Why arrays of the forward pass have the shapes that an error expects."""


class Batch:
    """Checked arguments of a call, and the dtype that its result has so far.

    The dtype is float32 until an array of another dtype makes it float64: never narrower than NumPy's.
    """

    dtype: DType = FLOAT32
    integers: DType  # the dtype that integers count as
    wider: tuple[str, int | None, DType] = "", None, FLOAT32
    vector: Array | None = None
    shapes: Shapes
    arrays: list[Any]  # weights, biases, and the arrays of further lists
    itemsize = 0  # of the arrays, from addresses.read
    places: Array  # a table, see passes.records
    sample_weight = NO_WEIGHT[FLOAT32]
    scale = 1.0
    max_norm = math.inf
    sample_gradients: Sequence[Array] = ()
    """Where the gradient of each sample is written: weights (N, D_{k+1}, D_k), then biases (N, D_{k+1}, ...)."""
    loss: str | None = None
    """The name of the loss; None if the derivative by the output is given."""
    tile_loss: Any = None
    """The function that computes dl/df_K from the output and the target of a tile, see losses."""

    def __init__(
        self,
        net_input: ArrayLike,
        all_weights: Parameters,
        all_biases: Sequence[ArrayLike] | None,
        layer_sizes: tuple[int, ...] | None = None,
        integers: DType = FLOAT64,
    ) -> None:
        self._take_parameters(all_weights, all_biases, layer_sizes, integers)
        reason = "its rows must match the columns of all_weights[0], one column for each sample"
        self._take_input(net_input, "net_input", None, reason)

    @classmethod
    def of_samples(
        cls,
        net_input: ArrayLike,
        all_weights: Parameters,
        all_biases: Sequence[ArrayLike] | None,
        y: Any,
        loss: str,
        *workspace: Any,
    ) -> "Batch":
        """A batch for results of single samples: the loss must be a name."""
        check_named(loss)
        batch = cls(net_input, all_weights, all_biases, *workspace)
        batch.set_loss(y, loss, "sum", None)
        return batch

    def _take_parameters(
        self, all_weights: Any, all_biases: Any, layer_sizes: tuple[int, ...] | None, integers: DType
    ) -> None:
        self.integers = integers
        if all_biases is None and layer_sizes is not None:
            self.vector = check_vector(all_weights, "all_weights", layer_sizes)
            self.layer_sizes = layer_sizes
            self.widen("all_weights", [self.vector])
            return
        self._take_lists(all_weights, all_biases)
        self.layer_sizes = found = self.shapes.layer_sizes
        if layer_sizes is not None and found != layer_sizes:
            raise ValueError(f"all_weights has layer sizes {found}; expected {layer_sizes}, those of this Workspace")

    def _take_lists(self, all_weights: Any, all_biases: Any) -> None:
        if isinstance(all_weights, (list, tuple)) and isinstance(all_biases, (list, tuple)):
            weights = [*all_weights]  # a copy, which nobody else changes
            self.arrays = [*weights, *all_biases]
            self.itemsize, shapes, self.places = read(self.arrays, len(self.arrays))
            if self.itemsize:
                self.shapes = read_shapes(shapes, len(weights))
                if abs(self.itemsize) == FLOAT64.itemsize:
                    self.dtype, self.wider = FLOAT64, ("all_weights", 0 if len(weights) > 1 else None, FLOAT64)
                return
        self.shapes, weights, biases = check_parameters(all_weights, all_biases)
        self.arrays = weights + biases
        self.widen("all_weights", weights)
        self.widen("all_biases", biases)

    @property
    def weights(self) -> list[Array]:
        """The weights of each layer."""
        return self.arrays[: len(self.shapes.weights)]

    @property
    def biases(self) -> list[Array]:
        """The biases of each layer."""
        layers = len(self.shapes.weights)
        return self.arrays[layers : 2 * layers]

    def widen(self, name: str, arrays: Sequence[Array]) -> None:
        """Let the dtypes of more arrays count towards the dtype of the result."""
        if self.dtype is FLOAT64:
            return
        for k, array in enumerate(arrays):
            dtype = array.dtype
            if dtype is FLOAT32 or (dtype is not FLOAT64 and dtype.newbyteorder("=") == FLOAT32):
                continue
            if self.integers is FLOAT64 or dtype.kind == "f":
                self.dtype = FLOAT64
                self.wider = name, k if len(arrays) > 1 else None, dtype
                return

    @property
    def widest(self) -> str:
        """The array that made the dtype float64, for an error's text."""
        name, index, dtype = self.wider
        return f"{full_name(name, index)} has dtype {dtype}"

    def _take_input(self, net_input: ArrayLike, name: str, index: int | None, reason: str) -> None:
        self.net_input = check_columns(net_input, name, self.layer_sizes[0], None, reason, index)
        self.samples = self.net_input.shape[1]
        self.target = self.net_input  # until there is one
        if self.net_input.dtype is not self.dtype:
            self.widen(full_name(name, index), [self.net_input])

    def take_columns(self, *lists: Sequence[ArrayLike]) -> bytes:
        """Take more lists of arrays that a call reads or writes, in the order of passes.records.

        Returns the shapes of their arrays, as addresses.read has them; empty if kernels cannot take the arrays
        unchanged.
        """
        self.arrays = [*self.arrays, *itertools.chain.from_iterable(lists)]
        parameters = 2 * len(self.shapes.weights)
        self.itemsize, shapes, self.places = read(self.arrays, parameters)
        return shapes[2 * parameters * self.places.itemsize :] if self.itemsize else b""

    @property
    def columns(self) -> list[Array]:
        """The arrays of the lists that take_columns has taken."""
        return [] if self.vector is not None else self.arrays[2 * len(self.shapes.weights) :]

    def convert(self, dtype: DType) -> None:
        """Replace the parameters by contiguous ones of that dtype, if they are not."""
        if self.itemsize != dtype.itemsize:
            parameters = self.weights + self.biases
            self.arrays[: len(parameters)] = [np.ascontiguousarray(array) for array in plain(parameters, dtype)]
            self.itemsize, _, self.places = read(self.arrays, len(parameters))

    def locate(self, dtype: DType, first: int, last: int) -> tuple[Array, list[Array]]:
        """The places of converted parameters, and of the columns [first, last) of the other lists: see passes.records.

        Also returns the arrays. Keep them as long as the places are used: addresses do not keep arrays in memory.
        """
        if last - first == self.samples and self.itemsize == dtype.itemsize:
            return self.places, self.arrays
        parameters = self.weights + self.biases
        arrays = parameters + plain([array[:, first:last] for array in self.columns], dtype)
        itemsize, _, places = read(arrays, len(parameters))
        if itemsize != dtype.itemsize:
            raise RuntimeError("internal error: converted parameters have the wrong layout")
        return places, arrays

    def set_loss(self, y: Any, loss: str, reduction: str, sample_weight: ArrayLike | None) -> None:
        """Take a named loss, and y, broadcast to the shape of the output, or to (1, N) class numbers."""
        check_loss(loss)
        module = find_loss(loss)
        self.loss, self.tile_loss = loss, module.tile_loss
        self.target = module.check_target(y, self.layer_sizes[-1], self.samples)
        self._widen_by_target(y, "y")
        if reduction != "sum" or sample_weight is not None:
            self.scale, self.sample_weight = check_weighting(reduction, sample_weight, self.samples)

    def set_clipping(self, max_norm: Any, reduction: str, sample_weight: ArrayLike | None) -> None:
        """Take the norm to which gradients are clipped, and the factors of clipped gradients; a mean divides by N."""
        self.max_norm = check_max_norm(max_norm)
        self.sample_weight = check_sample_weight(sample_weight, self.samples)
        check_reduction(reduction)
        if reduction == "mean":
            self.scale = scale_of_mean(self.samples, self.samples)

    def places_of_samples(self, first: int) -> Array:
        """The places of the gradients of the samples from `first` on: see passes.records."""
        rows = [(array.ctypes.data + first * array.strides[0], array.strides[0], 0) for array in self.sample_gradients]
        return np.array(rows, np.int64)

    def set_seed(self, dl_doutput: ArrayLike, name: str = "dl_doutput") -> None:
        """Take a derivative by the output, in place of a loss."""
        self.tile_loss = find_loss("_seed").tile_loss
        self.target = check_columns(dl_doutput, name, self.layer_sizes[-1], self.samples, OUTPUT_SHAPE)
        self._widen_by_target(dl_doutput, name)

    def _widen_by_target(self, given: Any, name: str) -> None:
        """Let the target count if it is floating and no Python number; np.float64 counts, as in NumPy."""
        if self.target.dtype is not self.dtype and self.target.dtype.kind == "f" and type(given) is not float:
            self.widen(name, [self.target])

    def set_options(
        self,
        dtype: DType,
        *,
        input_gradient: bool = False,
        out: Gradients | Array | None = None,
        num_threads: int | None = None,
        progress: Callable[[int, int], object] | None = None,
        of_samples: bool = False,
    ) -> None:
        """Take the options of a call whose result has that dtype; of_samples: out has a gradient for each sample."""
        columns = self.samples if of_samples else None
        if out is not None and self.vector is not None:
            check_out_vector(out, self.layer_sizes, dtype, columns)
        elif out is not None:
            check_out(out, self.shapes, dtype, columns)
        if progress is not None and not callable(progress):
            raise TypeError(f"progress is {shown(progress)}; expected a callable (done, total), or None")
        if self.sample_weight.size == 0:
            self.sample_weight = NO_WEIGHT[dtype]
        self.input_gradient, self.out = input_gradient, out
        self.num_threads, self.progress = check_num_threads(num_threads), progress


class ForwardPass(Batch):
    """Checked arguments of a call that takes the lists of the forward pass."""

    def __init__(
        self,
        all_weights: Sequence[ArrayLike],
        all_biases: Sequence[ArrayLike],
        all_f: Sequence[ArrayLike],
        all_h: Sequence[ArrayLike],
    ) -> None:
        self._take_parameters(all_weights, all_biases, None, FLOAT64)
        layers = len(self.shapes.weights)
        own_f = copied_list(all_f, "all_f", [layers])
        own_h = copied_list(all_h, "all_h", [layers, layers + 1])[:layers]
        self._take_input(own_h[0], "all_h", 0, MATCHING)
        shapes = self.take_columns(own_f, own_h[1:], own_f[-1:])  # the last fills up the second list: a row per layer
        if shapes and shapes == shapes_of_columns(self.layer_sizes, self.samples):
            return  # of the parameters' dtype, like them
        own_h = self._check_lists(own_h, "all_h", self.layer_sizes[:-1])
        own_f = self._check_lists(own_f, "all_f", self.layer_sizes[1:])
        self.arrays = self.weights + self.biases
        self.take_columns(own_f, own_h[1:], own_f[-1:])
        self.widen("all_f", own_f)
        self.widen("all_h", own_h)

    def _check_lists(self, arrays: list[Any], name: str, sizes: tuple[int, ...]) -> list[Array]:
        """The arrays (units, N) of a list."""
        return [
            check_columns(array, name, units, self.samples, MATCHING, k)
            for k, (array, units) in enumerate(zip(arrays, sizes, strict=True))
        ]

    @property
    def net_output(self) -> Array:
        """all_f[K]."""
        net_output: Array = self.arrays[-1]
        return net_output


def copied_list(arrays: Any, name: str, lengths: list[int]) -> list[Any]:
    """A copy of a list, which nobody else changes; its length is one of `lengths`."""
    check_is_list(arrays, name)
    copied = [*arrays]
    if len(copied) not in lengths:
        wanted = " or ".join(map(str, lengths))
        raise ValueError(f"{name} has {len(copied)} entries; expected {wanted}: one for each entry of all_weights")
    return copied


@functools.lru_cache(maxsize=64)
def shapes_of_columns(layer_sizes: tuple[int, ...], samples: int) -> bytes:
    """The shapes that addresses.read finds in two lists, each with the rows of every layer and a column per sample."""
    return np.array(2 * [(units, samples) for units in layer_sizes[1:]], np.int64).tobytes()


def check_loss(loss: Any) -> None:
    """Raise an error unless the loss is a name of LOSSES or a pair of callables (value, derivative)."""
    if isinstance(loss, str):
        if loss not in LOSSES:
            raise ValueError(f"loss is {shown(loss)}; expected one of {LOSS_NAMES}, or callables")
    elif not (isinstance(loss, (tuple, list)) and len(loss) == 2 and all(map(callable, loss))):
        raise TypeError(f"loss is {shown(loss)}; expected a name or a pair of callables (value, derivative)")


def check_named(loss: Any) -> None:
    """Raise an error unless the loss is a name: results of single samples need the loss of each."""
    if not isinstance(loss, str):
        reason = "callables see the whole batch, not each sample"
        raise TypeError(f"loss is {shown(loss)}; expected one of {LOSS_NAMES}: {reason}")
    if loss not in LOSSES:
        raise ValueError(f"loss is {shown(loss)}; expected one of {LOSS_NAMES}")


def check_callables(loss: Any, reduction: str, sample_weight: ArrayLike | None) -> None:
    """Raise an error unless the loss is a pair of callables, without options that only named losses have."""
    check_loss(loss)
    if reduction != "sum" or sample_weight is not None:
        raise ValueError(
            "reduction or sample_weight is given with callables for loss; expected a name: "
            "callables see the whole batch and do both themselves"
        )
