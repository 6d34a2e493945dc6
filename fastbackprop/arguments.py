"""The checked arguments of a call: what public functions hand to the engines."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

from numpy.typing import ArrayLike

from fastbackprop import losses
from fastbackprop.kernels import PREDICT, SEED
from fastbackprop.validation import (
    FLOAT32,
    FLOAT64,
    NO_WEIGHT,
    OUTPUT_SHAPE,
    Array,
    DType,
    Gradients,
    Parameters,
    check_columns,
    check_loss,
    check_loss_target,
    check_num_threads,
    check_out,
    check_out_vector,
    check_parameters,
    check_vector,
    check_weighting,
    full_name,
)


class Network:
    """Checked parameters, and the dtype that the result of a call with them has so far.

    It is float32 until something wider is met, which is then kept: never narrower than what NumPy computes in.
    """

    dtype: DType = FLOAT32
    integers: DType  # the dtype that they count as
    wider: tuple[str, int | None, DType] = "", None, FLOAT32
    vector: Array | None = None

    def __init__(
        self,
        all_weights: Parameters,
        all_biases: Sequence[ArrayLike] | None,
        layer_sizes: tuple[int, ...] | None = None,
        integers: DType = FLOAT64,
    ) -> None:
        self.integers = integers
        if all_biases is None and layer_sizes is not None:
            self.vector = check_vector(all_weights, "all_weights", layer_sizes)
            self.weights: list[Array] = []
            self.biases: list[Array] = []
            self.layer_sizes = layer_sizes
            self.widen("all_weights", [self.vector])
            return
        self.weights, self.biases, self.layer_sizes = check_parameters(all_weights, all_biases, layer_sizes)
        self.widen("all_weights", self.weights)
        self.widen("all_biases", self.biases)

    def widen(self, name: str, arrays: Sequence[Array]) -> None:
        """Let the dtypes of more arrays count."""
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
        """What made the dtype float64, for an error's text."""
        name, index, dtype = self.wider
        return f"{full_name(name, index)} has dtype {dtype}"

    def widen_by_target(self, given: Any, array: Array, name: str = "y") -> None:
        """Let a target count where it is floating and no Python number; np.float64 counts, as in NumPy."""
        if array.dtype.kind == "f" and type(given) is not float:
            self.widen(name, [array])


class Batch(Network):
    """Checked arguments of a call that takes the network's input."""

    sample_weight = NO_WEIGHT[FLOAT32]
    mode, factor, scale = PREDICT, 1.0, 1.0

    def __init__(
        self,
        net_input: ArrayLike,
        all_weights: Parameters,
        all_biases: Sequence[ArrayLike] | None,
        layer_sizes: tuple[int, ...] | None = None,
        integers: DType = FLOAT64,
    ) -> None:
        super().__init__(all_weights, all_biases, layer_sizes, integers)
        reason = "its rows must match the columns of all_weights[0], one column for each sample"
        self.net_input = check_columns(net_input, "net_input", self.layer_sizes[0], None, reason)
        self.samples = self.net_input.shape[1]
        self.target = self.net_input  # until there is one
        if self.net_input.dtype is not FLOAT32:
            self.widen("net_input", [self.net_input])

    def set_loss(self, y: Any, loss: str, reduction: str, sample_weight: ArrayLike | None) -> None:
        """Take a named loss, and y, broadcast to the shape of the output, or to (1, N) class numbers."""
        check_loss(loss)
        self.mode, self.factor = losses.LOSSES[loss]
        self.target = check_loss_target(y, self.mode, self.layer_sizes[-1], self.samples)
        self.widen_by_target(y, self.target)
        if reduction != "sum" or sample_weight is not None:
            self.scale, self.sample_weight = check_weighting(reduction, sample_weight, self.samples)

    def set_seed(self, dl_doutput: ArrayLike) -> None:
        """Take the derivative of something by the output."""
        self.mode = SEED
        self.target = check_columns(dl_doutput, "dl_doutput", self.layer_sizes[-1], self.samples, OUTPUT_SHAPE)
        self.widen_by_target(dl_doutput, self.target, "dl_doutput")

    def part(self, first: int, last: int) -> "Batch":
        """The samples [first, last), of which no progress is told."""
        part = copy.copy(self)
        part.net_input, part.target = self.net_input[:, first:last], self.target[:, first:last]
        part.sample_weight, part.samples, part.progress = self.sample_weight[first:last], last - first, None
        return part

    def set_options(
        self,
        dtype: DType,
        *,
        input_gradient: bool = False,
        out: Gradients | Array | None = None,
        num_threads: int | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> None:
        """Take what says how to compute, and where to write a result of that dtype."""
        if out is not None and self.vector is not None:
            check_out_vector(out, self.layer_sizes, dtype)
        elif out is not None:
            check_out(out, self.weights, self.biases, dtype)
        if progress is not None and not callable(progress):
            raise TypeError(f"progress is {progress!r}; expected a callable (done, total), or None")
        if self.sample_weight.size == 0:
            self.sample_weight = NO_WEIGHT[dtype]
        self.input_gradient, self.out = input_gradient, out
        self.num_threads, self.progress = check_num_threads(num_threads), progress


class ForwardPass(Network):
    """Checked arguments of a call that takes what the forward pass returned."""

    def __init__(
        self,
        all_weights: Sequence[ArrayLike],
        all_biases: Sequence[ArrayLike],
        all_f: Sequence[ArrayLike],
        all_h: Sequence[ArrayLike],
    ) -> None:
        super().__init__(all_weights, all_biases)
        layers = len(self.weights)
        for arrays, name, lengths in (all_f, "all_f", (layers,)), (all_h, "all_h", (layers, layers + 1)):
            if not isinstance(arrays, (list, tuple)):
                raise TypeError(f"{name} is a {type(arrays).__name__}; expected a list of arrays, one for each layer")
            if len(arrays) not in lengths:
                wanted = " or ".join(map(str, lengths))
                raise ValueError(
                    f"{name} has {len(arrays)} entries; expected {wanted}: one for each entry of all_weights"
                )
        reason = "it must match all_weights[{0}] and the samples of all_h[0]"
        first = check_columns(all_h[0], "all_h", self.layer_sizes[0], None, reason, 0)
        self.samples = samples = first.shape[1]
        self.all_h = [
            check_columns(h, "all_h", units, samples, reason, k)
            for k, (h, units) in enumerate(zip(all_h, self.layer_sizes[:-1], strict=False))
        ]
        self.all_f = [
            check_columns(f, "all_f", units, samples, reason, k)
            for k, (f, units) in enumerate(zip(all_f, self.layer_sizes[1:], strict=True))
        ]
        self.widen("all_f", self.all_f)
        self.widen("all_h", self.all_h)
