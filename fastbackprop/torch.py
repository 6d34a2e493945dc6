"""PyTorch modules on this package's kernels: outputs, gradients and fused losses of ReLU networks on the CPU.

Samples are rows, as in PyTorch. The kernels read transposed views of them.
"""

import itertools
import operator
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastbackprop import loss_and_gradients, predict, vjp

try:
    import torch
except ImportError as error:
    raise ImportError("fastbackprop.torch needs PyTorch: pip install 'fastbackprop[torch]'") from error
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional

__all__ = ["Accelerated", "accelerate"]

Array = NDArray[Any]
Lists = tuple[list[Array], list[Array]]

DTYPES = frozenset((torch.float32, torch.float64))
PLAIN = frozenset((Tensor, nn.Parameter))
"""The types of tensors that have data in memory; subclasses may have none, or split it."""
IS_CPU = operator.attrgetter("is_cpu")
OTHERWISE = ", or call the plain module, whose parameters are the same"

WIDE = 2**15
"""Smallest number of weights of a layer with which PyTorch computes output and gradients, unless the loss is fused.

The kernels keep no activations and compute the output twice. Measured: 1.4 times PyTorch's time for 64 samples of
784-100-10, 1.02 for 4096 of 256-256x3-1, 1.15 of 512-512x3-1, 0.81 of 128-128x3-1 (float32, one thread, Zen 4,
2026-11-28).
"""

LOSSES = {
    "least_squares": lambda output, y: (output - y).square().sum(),
    "half_least_squares": lambda output, y: 0.5 * (output - y).square().sum(),
    "softmax_cross_entropy": lambda output, y: functional.cross_entropy(output, y, reduction="sum"),
    "binary_cross_entropy": lambda output, y: functional.binary_cross_entropy_with_logits(output, y, reduction="sum"),
}
"""The losses known by name in PyTorch's operations, for what does not run on the kernels."""


def accelerate(module: nn.Sequential) -> "Accelerated":
    """A module with the same layers, whose outputs and gradients are computed by this package's kernels.

    Parameters
    ----------
    module : torch.nn.Sequential
        Linear layers, with or without bias, with a ReLU between them. It may hold nested Sequential, Identity, Flatten,
        and Dropout in eval mode.

    Returns
    -------
    accelerated : Accelerated
        Its layers and parameters are those of `module`, under the same names.

    Raises
    ------
    TypeError
        ``module is a Linear; expected a torch.nn.Sequential``, ``layer 1 is a Tanh; expected Linear, ReLU, Identity,
        Flatten, Dropout or Sequential``
    ValueError
        For layers that do not form a ReLU network: ``layer 1 is a Linear after a Linear; expected a ReLU in between``.
    RuntimeError
        ``layer 2 is a Dropout in training mode; expected eval mode: call .eval(), or ...``, ``layer 0 has hooks, which
        the kernels would not call; expected none: register them on the accelerated module, or ...``

    Examples
    --------
    >>> import torch
    >>> from fastbackprop.torch import accelerate
    >>> module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
    >>> accelerated = accelerate(module)
    >>> x, y = torch.ones(5, 2), torch.zeros(5, 1)
    >>> accelerated.loss(x, y, "least_squares").backward()
    >>> torch.allclose(accelerated(x), module(x)), module[0].weight.grad.shape
    (True, torch.Size([3, 2]))
    """
    if type(module) not in (nn.Sequential, Accelerated):
        raise TypeError(f"module is a {type(module).__name__}; expected a torch.nn.Sequential")
    _hooks(module, "module")
    accelerated = Accelerated(OrderedDict(module._modules))
    accelerated.training = module.training
    accelerated._current_network()
    return accelerated


class Accelerated(nn.Sequential):
    """A Sequential that runs on this package's kernels; made by :func:`fastbackprop.torch.accelerate`.

    Tensors on the CPU run on the kernels if all of them are float32, or all float64. Other devices and dtypes, and
    autocast, run the layers one by one, as the plain module does. So do calls of wide networks that may need gradients.
    """

    _network: "_Network | None" = None

    def forward(
        self, x: Tensor, y: Tensor | None = None, loss: str = "least_squares", reduction: str = "mean"
    ) -> Tensor:
        """The output (..., D_o) of samples x (..., D_i). If y is given, the same as :meth:`loss`.

        DistributedDataParallel and other wrappers have no method `loss`: pass y to their call for a fused loss.
        """
        run = _run_outside_of_graph if torch.compiler.is_compiling() else _run
        return run(self, x, y, loss, reduction)

    def loss(self, x: Tensor, y: Tensor, loss: str, reduction: str = "mean") -> Tensor:
        """The loss of a batch. One sweep computes it and all gradients. `backward` returns these gradients.

        Parameters
        ----------
        x : Tensor (..., D_i)
        y : Tensor (..., D_o)
            The target, of the dtype of x or integers. It may be (...) if D_o is 1. The softmax also takes integer class
            numbers (...). The target gets no gradient.
        loss : {"least_squares", "half_least_squares", "softmax_cross_entropy", "binary_cross_entropy"}
            As in :func:`fastbackprop.loss_and_gradients`: summed over the outputs, from the raw output.
        reduction : {"mean", "sum"}
            Over the samples. PyTorch's own `mse_loss` also divides by D_o.

        Returns
        -------
        loss : Tensor ()

        Raises
        ------
        ValueError
            ``y has shape (5, 2); expected (5, 1)``, ``y requires grad; expected a constant: pass y.detach()``, ``loss
            is 'mse'; expected one of least_squares, ...``, ``y[3] is 10; expected class numbers in 0 .. 9``
        TypeError
            ``y has dtype torch.float64; expected torch.float32, that of x, or integers``
        RuntimeError
            As :func:`fastbackprop.torch.accelerate` if layers have changed, and for ``torch.func``, forward-mode and
            second derivatives.

        Examples
        --------
        >>> import torch
        >>> from fastbackprop.torch import accelerate
        >>> accelerated = accelerate(torch.nn.Sequential(torch.nn.Linear(2, 2)))
        >>> x, y = torch.zeros(3, 2), torch.tensor([0, 1, 1])
        >>> accelerated.loss(x, y, "softmax_cross_entropy").shape
        torch.Size([])
        """
        return Accelerated.forward(self, x, y, loss, reduction)

    def _current_network(self) -> "_Network":
        network = self._network
        if network is None or not network.is_current():
            network = self._network = _Network(self)
        return network

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_network": None}  # the parameters of a copy are elsewhere


class _Network:
    """The layers of a module as the kernels take them. Every call asks whether they are still the same."""

    def __init__(self, module: nn.Module) -> None:
        self.children: list[dict[str, Any]] = []  # of the module, and of each Sequential inside
        self.hooks = _hooks(nn.modules.module, "every module", "_global")
        self.dropouts: list[Any] = []
        self.flattens: list[Any] = []  # those before the first Linear
        self.flattens_later = False
        self.linears: list[Any] = []
        self.expects_relu = False
        self._take_children(module, "")
        if not self.expects_relu:
            raise ValueError("the last layer is not a Linear; expected one: apply a last ReLU to the output")
        for before, after in itertools.pairwise(self.linears):
            if before.out_features != after.in_features:
                raise ValueError(f"{after} comes after {before}; expected in_features={before.out_features}")
        self.layers = self._find_layers()
        self.types = [*map(type, self.layers)]
        self.parameters = self._find_parameters()
        self.dtype = self.parameters[0].dtype
        self.on_kernels = self.dtype in DTYPES and all(
            _readable(parameter, self.dtype) for parameter in self.parameters if parameter is not None
        )
        if self.on_kernels:
            self.lists = _lists(self.parameters)
            self.outputs, self.inputs = len(self.lists[0][-1]), self.lists[0][0].shape[1]
            self.narrow = max(weights.size for weights in self.lists[0]) < WIDE
            self.given = [parameter for parameter in self.parameters if parameter is not None]
            self.views = [*map(Tensor.detach, self.given)]

    def is_current(self) -> bool:
        """Whether nothing has changed that the attributes follow from."""
        layers = self._find_layers()
        return (
            layers == self.layers
            and [*map(type, layers)] == self.types
            and not any(self.hooks)
            and not any(map(_is_active, self.dropouts))
            and all(map(operator.is_, self._find_parameters(), self.parameters))
            and self.on_kernels  # or setting `data` may have brought them there
            and all(map(IS_CPU, self.given))
            and all(map(Tensor.is_set_to, self.given, self.views))  # setting `data` moves them
        )

    def takes(self, x: Tensor, *, fused: bool) -> bool:
        """Whether the kernels can compute what is asked for, and are fast at it."""
        return (
            self.on_kernels
            and (fused or self.narrow or not torch.is_grad_enabled())
            and _readable(x, self.dtype)
            and x.ndim > 0
            and x.shape[-1] == self.inputs
            and not (self.flattens_later and x.ndim != 2)
            and not torch.is_autocast_enabled("cpu")
        )

    def run(self, x: Tensor, y: Tensor | None, loss: str, reduction: str) -> Tensor:
        """The output or the loss from the kernels."""
        if not torch.is_grad_enabled():
            output = _net_output(self.lists, x)
        elif y is None or x.numel() == 0:
            output = _Output.apply(self.lists, x, *self.parameters)
        else:
            target = _checked_target(y, (*x.shape[:-1], self.outputs), self.dtype, loss, reduction)
            return _Loss.apply(self.lists, loss, reduction, target, x, *self.parameters)
        return output if y is None else _plain_loss(output, y, loss, reduction)

    def _find_layers(self) -> list[nn.Module]:
        return [layer for children in self.children for layer in children.values()]

    def _find_parameters(self) -> list[Any]:
        """The weights and biases in turn, with None for a bias that a layer does not have."""
        return [layer._parameters[name] for layer in self.linears for name in ("weight", "bias")]

    def _take_children(self, module: nn.Module, prefix: str) -> None:
        self.children.append(module._modules)
        for key, layer in module._modules.items():
            name = f"layer {prefix}{key}"
            self.hooks += _hooks(layer, name)
            if type(layer) in (nn.Sequential, Accelerated):
                self._take_children(layer, f"{prefix}{key}.")
            else:
                self._take(layer, name)

    def _take(self, layer: Any, name: str) -> None:
        kind = type(layer)
        if kind is nn.Linear:
            if self.expects_relu:
                raise ValueError(f"{name} is a Linear after a Linear; expected a ReLU in between")
            self.linears.append(layer)
            self.expects_relu = True
        elif kind is nn.ReLU:
            if not self.linears:
                raise ValueError(f"{name} is a ReLU before the first Linear; expected it after one")
            self.expects_relu = False
        elif kind is nn.Flatten:
            if not self.linears:
                self.flattens.append(layer)
            elif (layer.start_dim, layer.end_dim) != (1, -1):
                raise ValueError(f"{name} is a {layer} after a Linear; expected start_dim=1, end_dim=-1")
            else:
                self.flattens_later = True
        elif kind is nn.Dropout:
            if _is_active(layer):
                raise RuntimeError(f"{name} is a Dropout in training mode; expected eval mode: call .eval(){OTHERWISE}")
            self.dropouts.append(layer)
        elif kind is not nn.Identity:
            raise TypeError(
                f"{name} is a {kind.__name__}; expected Linear, ReLU, Identity, Flatten, Dropout or Sequential"
            )


def _hooks(owner: Any, name: str, prefix: str = "") -> list[dict[int, Any]]:
    """Where the hooks of a module are, or those of every module, and an error where there is one."""
    kinds = "_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks"
    hooks: list[dict[int, Any]] = [getattr(owner, prefix + kind) for kind in kinds]
    if any(hooks):
        found = f"{name} has hooks, which the kernels would not call"
        raise RuntimeError(f"{found}; expected none: register them on the accelerated module{OTHERWISE}")
    return hooks


def _is_active(dropout: Any) -> bool:
    return bool(dropout.training and dropout.p > 0)


def _readable(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Whether a tensor has that dtype, and is an array in memory."""
    return type(tensor) in PLAIN and tensor.dtype is dtype and tensor.is_cpu and tensor.layout is torch.strided


def _run(module: Accelerated, x: Tensor, y: Tensor | None, loss: str, reduction: str) -> Tensor:
    """The output or the loss, from the kernels where they can compute it, else from the layers one by one."""
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        found = "the kernels have neither torch.func transforms nor forward-mode derivatives"
        raise RuntimeError(f"{found}; expected torch.autograd.grad{OTHERWISE}")
    if not torch.jit.is_tracing():  # which would take what the kernels return for a constant
        network, samples = module._current_network(), x
        for flatten in network.flattens:
            samples = flatten(samples)
        if network.takes(samples, fused=y is not None):
            return network.run(samples, y, loss, reduction)
    output = nn.Sequential.forward(module, x)
    return output if y is None else _plain_loss(output, y, loss, reduction)


def _checked_target(y: Tensor, shape: tuple[int, ...], dtype: torch.dtype, loss: str, reduction: str) -> Tensor:
    """The target of outputs of that shape: (N, D_o), or class numbers (N,)."""
    if loss not in LOSSES:
        raise ValueError(f"loss is {loss!r}; expected one of {', '.join(LOSSES)}: call the module for another")
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction is {reduction!r}; expected 'mean' or 'sum'")
    if y.requires_grad:
        raise ValueError("y requires grad; expected a constant: pass y.detach()")
    if y.dtype is not dtype and y.is_floating_point():
        raise TypeError(f"y has dtype {y.dtype}; expected {dtype}, that of the output, or integers")
    if y.shape == shape or (y.shape == shape[:-1] and shape[-1] == 1):
        return y if y.ndim == 2 else y.reshape(-1, shape[-1])
    classes = loss == "softmax_cross_entropy" and not y.is_floating_point()
    if y.shape == shape[:-1] and classes:
        return y.reshape(-1)
    also = f", or class numbers {shape[:-1]} of an integer dtype" if loss == "softmax_cross_entropy" else ""
    raise ValueError(f"y has shape {tuple(y.shape)} and dtype {y.dtype}; expected {shape}, that of the output{also}")


def _plain_loss(output: Tensor, y: Tensor, loss: str, reduction: str) -> Tensor:
    """A loss of the output in PyTorch's own operations."""
    target = _checked_target(y, tuple(output.shape), output.dtype, loss, reduction)
    rows = output.reshape(-1, output.shape[-1])
    total = LOSSES[loss](rows, target.to(rows.dtype) if target.ndim == 2 else target.long())
    return total / len(rows) if reduction == "mean" else total


class _Function(torch.autograd.Function):
    # As Function.apply, without its preparations for torch.func, which took 5 % of a fused loss of 64 samples.
    apply = vars(torch._C._FunctionBase)["apply"]


class _Output(_Function):
    """The output of a network, and its vector-Jacobian product, which computes the forward pass again."""

    @staticmethod
    def forward(ctx: Any, lists: Lists, x: Tensor, *parameters: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, *parameters)  # parameters, too: PyTorch then notices where one is edited in place
        ctx.lists = lists
        return _net_output(lists, x)

    @staticmethod
    def backward(ctx: Any, dl_doutput: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_transforms(dl_doutput)
        x, needed = ctx.saved_tensors[0], ctx.needs_input_grad[1:]
        weights, biases = ctx.lists
        options: dict[str, Any] = {"input_gradient": needed[0], "num_threads": torch.get_num_threads()}
        return None, *_tensors(vjp(_columns(x), weights, biases, _columns(dl_doutput), **options), needed, x.shape)


class _Loss(_Function):
    """A loss by name, whose gradients are computed with it."""

    @staticmethod
    def forward(
        ctx: Any, lists: Lists, loss: str, reduction: str, y: Tensor, x: Tensor, *parameters: Tensor | None
    ) -> Tensor:
        needed = ctx.needs_input_grad[4:]
        if not any(needed):
            return _plain_loss(_net_output(lists, x), y, loss, reduction)
        ctx.save_for_backward(y, x, *parameters)
        ctx.lists, ctx.options = lists, {"loss": loss, "reduction": reduction, "input_gradient": needed[0]}
        value, *ctx.gradients = _sweep(ctx, x, y)
        return torch.scalar_tensor(value, dtype=x.dtype)

    @staticmethod
    def backward(ctx: Any, dl_dloss: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_transforms(dl_dloss)
        y, x, *_ = ctx.saved_tensors
        # Parameters may keep as their grad what they are handed out, and add to it: it is not handed out twice.
        gradients = ctx.gradients or _sweep(ctx, x, y)[1:]
        ctx.gradients = None
        return None, None, None, None, *_tensors(gradients, ctx.needs_input_grad[4:], x.shape, dl_dloss.item())


def _net_output(lists: Lists, x: Tensor) -> Tensor:
    net_output = predict(_columns(x), *lists, num_threads=torch.get_num_threads())
    return torch.from_numpy(np.ascontiguousarray(net_output.T).reshape(*x.shape[:-1], len(net_output)))


def _sweep(ctx: Any, x: Tensor, y: Tensor) -> tuple[Any, ...]:
    weights, biases = ctx.lists
    target = y.numpy().T  # class numbers (N,) stay what they are
    return loss_and_gradients(_columns(x), weights, biases, target, num_threads=torch.get_num_threads(), **ctx.options)


def _columns(rows: Tensor) -> Array:
    """Samples (..., D) as an array (D, N): a view, where leading dimensions can be viewed as one."""
    array: Array = rows.detach().numpy()
    return array.T if array.ndim == 2 else array.reshape(-1, array.shape[-1]).T


def _lists(parameters: Sequence[Any]) -> Lists:
    """Weights and biases as views, and zeros for a bias that a layer does not have."""
    weights: list[Array] = [weight.detach().numpy() for weight in parameters[::2]]
    biases: list[Array] = [
        np.zeros(len(weight), weight.dtype) if bias is None else bias.detach().numpy()
        for weight, bias in zip(weights, parameters[1::2], strict=True)
    ]
    return weights, biases


def _tensors(
    gradients: Sequence[Any], needed: Sequence[bool], shape: Sequence[int], scale: float = 1.0
) -> list[Tensor | None]:
    """The gradients by x and by each parameter, and None for what needs none."""
    dl_dweights, dl_dbiases, *dl_dx = gradients
    arrays = [dl_dx[0].T.reshape(shape) if dl_dx else None]
    for pair in zip(dl_dweights, dl_dbiases, strict=True):
        arrays += pair
    if scale != 1.0:  # by NumPy: PyTorch's threads spin after such work, on processors that the next call needs
        arrays = [None if array is None else np.multiply(array, scale, out=array) for array in arrays]
    return [torch.from_numpy(array) if wanted else None for array, wanted in zip(arrays, needed, strict=True)]


def _refuse_transforms(seed: Tensor) -> None:
    """In a backward pass: refuse to be differentiated again, and to be run for a batch of seeds."""
    try:
        seed.data_ptr()
        data = True
    except RuntimeError:  # a wrapper of many seeds, or of none
        data = False
    if torch.is_grad_enabled() or not data:
        found = "the kernels have first derivatives alone, of one seed at a time"
        raise RuntimeError(f"{found}; expected no create_graph, is_grads_batched or torch.func transform{OTHERWISE}")


_run_outside_of_graph = torch._disable_dynamo(_run)
