"""Gradients of batches in dask arrays, for more data than the memory of one machine.

Chunks are along the samples. One task reads a chunk and computes its gradient as a vector. Other tasks add these
vectors in a tree. The number of chunks alone decides its shape, so the result has the same bits for any scheduler and
any number of workers.
This module needs the extra ``fastbackprop[dask]``.
"""

import functools
import math
import operator
import reprlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

import fastbackprop

try:
    import dask
    import dask.array as da
except ImportError:
    raise ImportError("fastbackprop.dask needs the library Dask: pip install 'fastbackprop[dask]'") from None

__all__ = [
    "clipped_gradients",
    "loss_and_gradients",
    "per_sample_gradient_norms",
    "predict",
    "squared_gradient_sums",
    "vjp",
]

Array = NDArray[Any]

FAN_IN = 8
"""Largest number of vectors that one task adds. With 8, the tree has one task for 7 chunks; with 2, one for each chunk.

Measured: a task costs the scheduler 1 ms, and a worker 2.6 ms (AMD EPYC, dask 2026.8.0, 2026-11-28).
"""

NO_WEIGHT_EXPONENT = -1074
"""The exponent of a chunk whose weights are all 0: below those of all other chunks, whose scale it must not change."""


def loss_and_gradients(
    net_input: Any,
    all_weights: Sequence[ArrayLike] | Array,
    all_biases: Sequence[ArrayLike] | None,
    y: Any,
    *,
    loss: str = "least_squares",
    reduction: str = "sum",
    sample_weight: Any = None,
    input_gradient: bool = False,
    layer_sizes: Iterable[int] | None = None,
    num_threads: int = 1,
    compute: bool = True,
) -> tuple[Any, ...]:
    """The loss of a batch in dask arrays and its gradient by every weight and bias.

    Parameters
    ----------
    net_input : dask array (D_i, N)
        One sample in each column, of any dtype that :func:`fastbackprop.loss_and_gradients` takes. All features of a
        sample are in one chunk. Samples in rows are passed as ``X.T``, which copies nothing.
    all_weights : list of K + 1 arrays, or one vector (P,)
        ``all_weights[k]`` is (D_{k+1}, D_k); NumPy arrays. A vector is in the order of :func:`fastbackprop.pack`.
    all_biases : list of K + 1 arrays, or None
        ``all_biases[k]`` is (D_{k+1}, 1) or (D_{k+1},). None beside a vector.
    y : dask array (D_o, N), (1, N) or (N,)
        The target of each sample, as for :func:`fastbackprop.loss_and_gradients`. Its chunks along the samples are
        those of net_input. A target for all samples is a number or a NumPy array (D_o, 1).
    loss : str
        The name of a loss. For a loss of your own, pass its derivative to :func:`vjp`.
    reduction : {"sum", "mean"}
        The mean divides by N, or by the sum of sample_weight.
    sample_weight : dask array (N,), optional
        A factor for the loss of each sample, with the chunks of net_input.
    input_gradient : bool
        Also return the derivative by the input, as a dask array.
    layer_sizes : sequence of int, optional
        D_i, D_1, ..., D_K, D_o. Needed beside a vector of parameters.
    num_threads : int
        Threads of one task. The default suits Dask, which runs one task on each of its threads. The result has the
        same bits for any number.
    compute : bool
        False returns Delayed objects, which ``dask.compute(loss, all_dl_dweights, all_dl_dbiases)`` evaluates
        together.

    Returns
    -------
    loss : float
    all_dl_dweights, all_dl_dbiases : lists of K + 1 arrays
        Each gradient has its parameter's shape. For a vector of parameters, one vector (P,) instead of both lists.
    dl_dinput : dask array (D_i, N)
        Only if ``input_gradient`` is true. It is always lazy. To compute it takes another pass over the data.

    Raises
    ------
    TypeError
        As :func:`fastbackprop.loss_and_gradients`; ``y has type ndarray; expected a dask array: pass
        dask.array.from_array(y, chunks=(net_input.chunks[1],))``; callables for loss.
    ValueError
        As :func:`fastbackprop.loss_and_gradients`, and for chunks: ``net_input has 2 chunks along its rows; expected
        one, as a chunk holds whole samples: pass net_input.rechunk({0: -1})``. A task that finds a wrong value raises
        ``chunk 2 of the samples: y[3] is 10; expected class numbers in 0 .. 9``, where 3 counts from the chunk's first
        sample and 2 from the first chunk.

    Notes
    -----
    The vectors are added in the dtype of the gradient, the loss in float64. Numbers agree with
    :func:`fastbackprop.loss_and_gradients` on the whole batch to rounding; other chunks round in another order.

    Examples
    --------
    >>> import dask.array as da
    >>> import numpy as np
    >>> from fastbackprop.dask import loss_and_gradients
    >>> x = da.from_array(np.array([[1.0, -3.0, 2.0]]), chunks=(1, 2))
    >>> weights, biases = [np.array([[2.0], [1.0]]), np.array([[1.0, -1.0]])], [np.zeros((2, 1)), np.zeros((1, 1))]
    >>> loss, all_dl_dweights, all_dl_dbiases = loss_and_gradients(x, weights, biases, y=3.0)
    >>> loss, all_dl_dweights[0].ravel(), all_dl_dbiases[1].ravel()
    (14.0, array([-8.,  8.]), array([-12.]))
    """
    if not isinstance(loss, str):
        raise TypeError(
            f"loss is {loss!r}; expected the name of a loss: for a loss of your own, pass its derivative by "
            "predict(...) to vjp, as a dask array"
        )
    network, shapes = _take_parameters(all_weights, all_biases, layer_sizes)
    arguments = _check_batch(network, net_input, y, sample_weight, reduction)
    function = functools.partial(fastbackprop.loss_and_gradients, loss=loss, num_threads=num_threads)
    _try(function, *arguments, reduction="sum" if reduction == "mean" else reduction)
    mean = reduction == "mean"
    result = _differentiate(function, arguments, shapes, None if mean else 1, compute)
    return (*result, _input_gradient(function, arguments, mean)) if input_gradient else result


def vjp(
    net_input: Any,
    all_weights: Sequence[ArrayLike] | Array,
    all_biases: Sequence[ArrayLike] | None,
    dl_doutput: Any,
    *,
    input_gradient: bool = False,
    layer_sizes: Iterable[int] | None = None,
    num_threads: int = 1,
    compute: bool = True,
) -> Any:
    """The vector-Jacobian product: the gradient of sum(dl_doutput * output), for any derivative by the output.

    Parameters
    ----------
    net_input, all_weights, all_biases, input_gradient, layer_sizes, num_threads, compute
        As for :func:`loss_and_gradients`.
    dl_doutput : dask array (D_o, N)
        The derivative of a loss by the network's output, with the chunks of net_input along the samples.

    Returns
    -------
    all_dl_dweights, all_dl_dbiases : lists of K + 1 arrays
        Each gradient has its parameter's shape. For a vector of parameters, one vector (P,) instead of both lists.
    dl_dinput : dask array (D_i, N)
        Only if ``input_gradient`` is true.

    Raises
    ------
    ValueError, TypeError
        As :func:`loss_and_gradients`.

    Examples
    --------
    The gradient of sum(log(1 + output^2)), a loss that has no name:

    >>> import dask.array as da
    >>> import numpy as np
    >>> from fastbackprop.dask import predict, vjp
    >>> x = da.from_array(np.array([[1.0, -3.0, 2.0]]), chunks=(1, 2))
    >>> weights, biases = [np.array([[2.0], [1.0]]), np.array([[1.0, -1.0]])], [np.zeros((2, 1)), np.zeros((1, 1))]
    >>> output = predict(x, weights, biases)
    >>> all_dl_dweights, _ = vjp(x, weights, biases, 2 * output / (1 + output**2))
    >>> all_dl_dweights[1]
    array([[5.2, 2.6]])
    """
    network, shapes = _take_parameters(all_weights, all_biases, layer_sizes)
    samples = _check_input(net_input, network)
    _check_samples(dl_doutput, "dl_doutput", [(network.layer_sizes[-1], samples)], net_input)
    function = functools.partial(fastbackprop.vjp, num_threads=num_threads)
    arguments = network, None, net_input, dl_doutput
    _try(function, *arguments)
    _, *gradients = _differentiate(function, arguments, shapes, 1, compute)
    if input_gradient:
        gradients.append(_input_gradient(function, arguments, False))
    return tuple(gradients) if len(gradients) > 1 else gradients[0]


def predict(
    net_input: Any,
    all_weights: Sequence[ArrayLike] | Array,
    all_biases: Sequence[ArrayLike] | None,
    *,
    layer_sizes: Iterable[int] | None = None,
    num_threads: int = 1,
) -> Any:
    """The network's output, as a dask array with the chunks of net_input.

    Parameters
    ----------
    net_input, all_weights, all_biases, layer_sizes, num_threads
        As for :func:`loss_and_gradients`.

    Returns
    -------
    net_output : dask array (D_o, N)

    Raises
    ------
    ValueError, TypeError
        As :func:`loss_and_gradients`.

    Examples
    --------
    >>> import dask.array as da
    >>> import numpy as np
    >>> from fastbackprop.dask import predict
    >>> x = da.from_array(np.array([[1.0, -3.0, 2.0]]), chunks=(1, 2))
    >>> weights, biases = [np.array([[2.0], [1.0]]), np.array([[1.0, -1.0]])], [np.zeros((2, 1)), np.zeros((1, 1))]
    >>> predict(x, weights, biases).compute()
    array([[1., 0., 2.]])
    """
    network, _ = _take_parameters(all_weights, all_biases, layer_sizes)
    _check_input(net_input, network)
    function = functools.partial(fastbackprop.predict, num_threads=num_threads)
    arguments = network, None, net_input
    return _map_chunks(_call, function, arguments, _try(function, *arguments))


def clipped_gradients(
    net_input: Any,
    all_weights: Sequence[ArrayLike] | Array,
    all_biases: Sequence[ArrayLike] | None,
    y: Any,
    max_norm: float,
    *,
    loss: str = "least_squares",
    reduction: str = "sum",
    sample_weight: Any = None,
    layer_sizes: Iterable[int] | None = None,
    num_threads: int = 1,
    compute: bool = True,
) -> tuple[Any, ...]:
    """The sum of the samples' gradients, each scaled down to a norm of at most max_norm before it is summed.

    Parameters
    ----------
    net_input, all_weights, all_biases, y, loss, sample_weight, layer_sizes, num_threads, compute
        As for :func:`loss_and_gradients`.
    max_norm, reduction
        As for :func:`fastbackprop.clipped_gradients`: the mean divides by N.

    Returns
    -------
    loss : float
    all_dl_dweights, all_dl_dbiases : lists of K + 1 arrays
        As :func:`loss_and_gradients` returns them; one vector (P,) for a vector of parameters.
    norms : dask array (N,)
        The norm of each sample's gradient before it was clipped. It is always lazy, and computing it is a pass of its
        own over the data.

    Raises
    ------
    ValueError, TypeError
        As :func:`loss_and_gradients` and :func:`fastbackprop.clipped_gradients`.

    Examples
    --------
    >>> import dask.array as da
    >>> import numpy as np
    >>> from fastbackprop.dask import clipped_gradients
    >>> weights, biases = [np.array([[3.0, 4.0]])], [np.zeros((1, 1))]
    >>> x = da.from_array(np.array([[1.0, 0.0], [0.0, 0.0]]), chunks=(2, 1))
    >>> y = da.from_array(np.array([4.0, 0.5]), chunks=1)
    >>> loss, _, all_dl_dbiases, norms = clipped_gradients(x, weights, biases, y, max_norm=1.0)
    >>> loss, all_dl_dbiases[0].round(6), norms.compute().round(6)
    (1.25, array([[-1.707107]]), array([2.828427, 1.      ]))
    """
    network, shapes = _take_parameters(all_weights, all_biases, layer_sizes)
    arguments = _check_batch(network, net_input, y, sample_weight, reduction)
    options: dict[str, Any] = {"loss": loss, "num_threads": num_threads}
    function = functools.partial(fastbackprop.clipped_gradients, max_norm=max_norm, **options)
    _try(function, *arguments, reduction="sum" if reduction == "mean" else reduction)
    result = _differentiate(function, arguments, shapes, net_input.shape[1] if reduction == "mean" else 1, compute)
    return *result, _map_norms(arguments, **options)[1]


def per_sample_gradient_norms(
    net_input: Any,
    all_weights: Sequence[ArrayLike] | Array,
    all_biases: Sequence[ArrayLike] | None,
    y: Any,
    *,
    loss: str = "least_squares",
    per_layer: bool = False,
    layer_sizes: Iterable[int] | None = None,
    num_threads: int = 1,
) -> tuple[Any, Any]:
    """The loss of each sample, and the norm of its gradient, as dask arrays with the chunks of net_input.

    Parameters
    ----------
    net_input, all_weights, all_biases, y, loss, layer_sizes, num_threads
        As for :func:`loss_and_gradients`.
    per_layer : bool
        The norms by the parameters of each layer instead, weights and biases together.

    Returns
    -------
    losses : dask array (N,)
    norms : dask array (N,), or (K + 1, N) where ``per_layer`` is true
        ``dask.compute(losses, norms)`` computes both in one pass.

    Raises
    ------
    ValueError, TypeError
        As :func:`loss_and_gradients` and :func:`fastbackprop.per_sample_gradient_norms`.

    Examples
    --------
    >>> import dask.array as da
    >>> import numpy as np
    >>> from fastbackprop.dask import per_sample_gradient_norms
    >>> weights, biases = [np.array([[3.0, 4.0]])], [np.zeros((1, 1))]
    >>> x = da.from_array(np.array([[1.0, 0.0], [0.0, 0.0]]), chunks=(2, 1))
    >>> losses, norms = per_sample_gradient_norms(x, weights, biases, 4.0)
    >>> norms.compute().round(6)
    array([2.828427, 8.      ])
    """
    network, _ = _take_parameters(all_weights, all_biases, layer_sizes)
    arguments = _check_batch(network, net_input, y)
    rows = _map_norms(arguments, loss=loss, per_layer=per_layer, num_threads=num_threads)
    return rows[0], rows[1:] if per_layer else rows[1]


def squared_gradient_sums(
    net_input: Any,
    all_weights: Sequence[ArrayLike] | Array,
    all_biases: Sequence[ArrayLike] | None,
    y: Any,
    *,
    loss: str = "least_squares",
    layer_sizes: Iterable[int] | None = None,
    num_threads: int = 1,
    compute: bool = True,
) -> tuple[Any, ...]:
    """The loss, its gradient, and for each parameter the sum over the samples of their squared derivatives.

    Parameters
    ----------
    net_input, all_weights, all_biases, y, loss, layer_sizes, num_threads, compute
        As for :func:`loss_and_gradients`.

    Returns
    -------
    loss : float
    all_dl_dweights, all_dl_dbiases : lists of K + 1 arrays
        As :func:`loss_and_gradients` returns them.
    all_squared_dweights, all_squared_dbiases : lists of K + 1 arrays
        The sums of the squares, with the same shapes. For a vector of parameters, two vectors (P,) instead of the four
        lists.

    Raises
    ------
    ValueError, TypeError
        As :func:`loss_and_gradients` and :func:`fastbackprop.squared_gradient_sums`.

    Examples
    --------
    >>> import dask.array as da
    >>> import numpy as np
    >>> from fastbackprop.dask import squared_gradient_sums
    >>> weights, biases = [np.array([[3.0, 4.0]])], [np.zeros((1, 1))]
    >>> x = da.from_array(np.array([[1.0, 0.0], [0.0, 0.0]]), chunks=(2, 1))
    >>> squared_gradient_sums(x, weights, biases, da.from_array(np.array([4.0, 0.5]), chunks=1))[3:]
    ([array([[4., 0.]])], [array([[5.]])])
    """
    network, shapes = _take_parameters(all_weights, all_biases, layer_sizes)
    arguments = _check_batch(network, net_input, y)
    function = functools.partial(fastbackprop.squared_gradient_sums, loss=loss, num_threads=num_threads)
    _try(function, *arguments)
    result: tuple[Any, ...] = _differentiate(function, arguments, shapes, 1, compute, gradients=2)
    return result


@dataclass(frozen=True, eq=False)
class _Network:
    """All parameters, packed into a vector."""

    vector: Array
    layer_sizes: tuple[int, ...]


def _take_parameters(all_weights: Any, all_biases: Any, layer_sizes: Iterable[int] | None) -> tuple[_Network, Any]:
    """A copy of the parameters, and their shapes, or None where they are one vector."""
    if all_biases is None and isinstance(all_weights, np.ndarray):
        if layer_sizes is None:
            raise ValueError("all_weights is one vector and layer_sizes is None; expected sizes such as (784, 100, 10)")
        network = _Network(all_weights.copy(), tuple(layer_sizes))
        fastbackprop.unpack(network.vector, network.layer_sizes)  # raises an error where they do not match
        return network, None
    if layer_sizes is not None:
        raise ValueError(f"layer_sizes is {layer_sizes}; expected None beside lists of parameters, which have shapes")
    vector = fastbackprop.pack(all_weights, all_biases)
    weight_shapes, bias_shapes = ([np.shape(array) for array in arrays] for arrays in (all_weights, all_biases))
    return _Network(vector, (weight_shapes[0][1], *[rows for rows, _ in weight_shapes])), (weight_shapes, bias_shapes)


def _check_input(net_input: Any, network: _Network) -> int:
    """The number of samples in net_input."""
    _check_chunks(net_input, "net_input")
    units, shape = network.layer_sizes[0], net_input.shape
    if len(shape) != 2 or shape[0] != units:
        hint = " (samples are columns: transpose net_input)" if shape[1:] == (units,) else ""
        raise ValueError(
            f"net_input has shape {shape}; expected ({units}, N): "
            f"its rows must match the columns of all_weights[0], one column for each sample{hint}"
        )
    return int(shape[1])


def _check_batch(
    network: _Network, net_input: Any, y: Any, sample_weight: Any = None, reduction: str = "sum"
) -> tuple[Any, ...]:
    """The arguments of a task, whose arrays have matching shapes and chunks."""
    samples = _check_input(net_input, network)
    if isinstance(y, da.Array) or np.shape(y)[-1:] not in ((), (1,)):
        _check_samples(y, "y", [(network.layer_sizes[-1], samples), (1, samples), (samples,)], net_input)
    if sample_weight is not None:
        _check_samples(sample_weight, "sample_weight", [(samples,)], net_input)
    if reduction == "mean" and samples == 0:
        raise ValueError("reduction is 'mean' and there are no samples; expected something to divide by")
    return network, sample_weight, net_input, y


def _check_samples(array: Any, name: str, shapes: list[tuple[int, ...]], net_input: Any) -> None:
    """Refuse an array that has another shape than one of these, or other chunks along the samples than net_input."""
    _check_chunks(array, name)
    if array.shape not in shapes:
        hint = f" (samples are columns: transpose {name})" if array.shape[::-1] in shapes else ""
        expected = " or ".join(map(str, dict.fromkeys(shapes)))
        raise ValueError(f"{name} has shape {array.shape}; expected {expected}, for the samples of net_input{hint}")
    if array.chunks[-1] != net_input.chunks[1]:
        found, expected = reprlib.repr(array.chunks[-1]), reprlib.repr(net_input.chunks[1])
        raise ValueError(
            f"{name} has chunks {found} along the samples; expected {expected}, those of net_input: "
            f"pass {name}.rechunk({{{array.ndim - 1}: net_input.chunks[1]}})"
        )


def _check_chunks(array: Any, name: str) -> None:
    """Refuse what is no dask array, or has chunks of unknown size or along the features."""
    if not isinstance(array, da.Array):
        along = "'auto'" if name == "net_input" else "net_input.chunks[1]"
        chunks = f"(-1, {along})" if np.ndim(array) == 2 else f"({along},)"
        raise TypeError(
            f"{name} has type {type(array).__name__}; expected a dask array: "
            f"pass dask.array.from_array({name}, chunks={chunks})"
        )
    if any(map(math.isnan, array.shape)):
        raise ValueError(
            f"{name} has chunks of unknown size; expected known sizes: call {name}.compute_chunk_sizes() first"
        )
    if array.ndim > 1 and array.numblocks[0] > 1:
        raise ValueError(
            f"{name} has {array.numblocks[0]} chunks along its rows; expected one, as a chunk holds whole samples: "
            f"pass {name}.rechunk({{0: -1}})"
        )


def _try(function: Callable[..., Any], network: _Network, *arrays: Any, **options: Any) -> Any:
    """Call on no samples, which raises what is wrong before any task runs, and tells the dtype of results."""
    empty = [np.empty((*a.shape[:-1], 0), a.dtype) if isinstance(a, da.Array) else a for a in arrays]
    return _call(functools.partial(function, **options), network, *empty)


def _map_chunks(
    task: Callable[..., Any], function: Callable[..., Any], arguments: Any, meta: Array, **more: Any
) -> Any:
    """A dask array of what a task returns for each chunk. Dask fuses it with the tasks that read the chunk."""
    network, *arrays = arguments
    shared = dask.delayed(network, traverse=False)  # one node of the graph: workers get it once, not with every chunk
    chunks = (meta.shape[0],), arrays[1].chunks[1]
    return da.map_blocks(task, function, shared, *arrays, **more, chunks=chunks, dtype=meta.dtype, meta=meta)


def _differentiate(
    function: Callable[..., Any], arguments: Any, shapes: Any, divisor: int | None, compute: bool, gradients: int = 1
) -> Any:
    """The loss, 0 where the function returns none, and what it returns for each parameter, as arrays or as Delayed
    objects. They are divided by the divisor, or by the sum of the weights where it is None."""
    # Each chunk of this array is a tuple: the loss is float64 beside any gradient. Nobody computes the array itself.
    parts = _map_chunks(_partial, function, arguments, np.empty((1, 0), object), mean=divisor is None).to_delayed()
    finish = dask.delayed(_finish, nout=1 + gradients * (1 if shapes is None else 2))
    result = finish(_tree_sum(list(parts.ravel())), arguments[0].layer_sizes, shapes, divisor)
    return result.compute() if compute else tuple(result)


def _tree_sum(parts: list[Any]) -> Any:
    """The sum of what tasks return, by other tasks, at most FAN_IN at once."""
    add = dask.delayed(_add)
    while len(parts) > 1:
        parts = [add(parts[first : first + FAN_IN]) for first in range(0, len(parts), FAN_IN)]
    return parts[0]


def _map_norms(arguments: Any, **options: Any) -> Any:
    """A dask array of the losses of the samples, and below of the norms of their gradients."""
    function = functools.partial(_stacked_norms, **options)
    network, _, *columns = arguments
    arguments = network, None, *columns  # norms have no weights
    return _map_chunks(_call, function, arguments, _try(function, *arguments))


def _input_gradient(function: Callable[..., Any], arguments: Any, mean: bool) -> Any:
    """The derivative by the input, as a dask array."""
    function = functools.partial(function, input_gradient=True)
    _, sample_weight, net_input, _ = arguments
    total: Any = None
    if mean and sample_weight is None:
        total = 0, net_input.shape[1]
    elif mean:
        total = _tree_sum([dask.delayed(_weight_sum)(weight) for weight in sample_weight.to_delayed()])
    return _map_chunks(_input_part, function, arguments, _try(function, *arguments)[-1], total=total)


# The tasks, which see NumPy arrays.


def _call(
    function: Callable[..., Any], network: _Network, sample_weight: Any, *columns: Any, block_id: Any = None
) -> Any:
    """Call a function of the package on one chunk, whose number an error tells."""
    options = {} if sample_weight is None else {"sample_weight": sample_weight}
    net_input, *target = columns
    try:
        return function(net_input, *fastbackprop.unpack(network.vector, network.layer_sizes), *target, **options)
    except (TypeError, ValueError) as error:
        if block_id is None:
            raise
        raise type(error)(f"chunk {block_id[-1]} of the samples: {error}") from error


def _near_one(sample_weight: Any) -> tuple[int, Any]:
    """An exponent e and the weights times 2^-e, the largest from 1/2 to 1: float32 may not hold the weights themselves.

    This rounds no weight, except one that is nothing beside the largest.
    """
    if sample_weight is None:
        return 0, None
    weight = sample_weight.astype(np.float64)
    largest = float(np.maximum.reduce(abs(weight), initial=0.0))
    exponent = math.frexp(largest)[1] if largest else NO_WEIGHT_EXPONENT
    with np.errstate(all="ignore"):
        return exponent, np.ldexp(weight, -exponent)


def _weight_sum(sample_weight: Any) -> tuple[int, float]:
    """e and the sum of a chunk's weights times 2^-e."""
    exponent, weight = _near_one(sample_weight)
    return exponent, float(np.sum(weight))


def _partial(
    function: Callable[..., Any], network: _Network, sample_weight: Any, *columns: Any, mean: bool, block_id: Any
) -> tuple[Any, ...]:
    """An exponent e, and a chunk's sum of weights, loss and packed gradients, all times 2^-e. A sum has e = 0."""
    exponent = 0
    if mean:
        exponent, sample_weight = _near_one(sample_weight)
    result = _call(function, network, sample_weight, *columns, block_id=block_id)
    lists = [part for part in result if isinstance(part, list)]
    loss = 0.0 if isinstance(result[0], list) else result[0]
    weights = columns[0].shape[1] if sample_weight is None else np.sum(sample_weight, dtype=np.float64)
    return exponent, float(weights), loss, *map(fastbackprop.pack, lists[::2], lists[1::2])


def _stacked_norms(*arguments: Any, **options: Any) -> Array:
    """The losses of a chunk's samples, and below the norms."""
    return np.vstack(fastbackprop.per_sample_gradient_norms(*arguments, **options))


def _add(parts: list[tuple[Any, ...]]) -> tuple[Any, ...]:
    """The largest exponent of the parts, and their sums at this scale, from left to right."""
    largest = max(exponent for exponent, *_ in parts)
    with np.errstate(all="ignore"):
        scaled = [
            values if exponent == largest else [np.ldexp(value, exponent - largest) for value in values]
            for exponent, *values in parts
        ]
        return largest, *[functools.reduce(operator.add, values) for values in zip(*scaled, strict=True)]


def _finish(total: tuple[Any, ...], layer_sizes: tuple[int, ...], shapes: Any, divisor: int | None) -> Any:
    """The loss and the gradients of the batch, in the parameters' shapes."""
    _, weights, loss, *vectors = total
    if divisor != 1:
        by = _divisor(weights if divisor is None else divisor)
        with np.errstate(all="ignore"):
            loss, vectors = float(loss / by), [vector / by for vector in vectors]
    if shapes is None:
        return loss, *vectors
    lists = [arrays for vector in vectors for arrays in fastbackprop.unpack(vector, layer_sizes)]
    return loss, *[
        [a.reshape(shape) for a, shape in zip(*pair, strict=True)]
        for pair in zip(lists, shapes * len(vectors), strict=True)
    ]


def _input_part(
    function: Callable[..., Any], network: _Network, sample_weight: Any, *columns: Any, total: Any, block_id: Any
) -> Any:
    """A chunk's derivative by the input. The total is that of the weights, as `_weight_sum` has it, or None."""
    if total is None:
        return _call(function, network, sample_weight, *columns, block_id=block_id)[-1]
    exponent, weight = _near_one(sample_weight)
    dl_dinput = _call(function, network, weight, *columns, block_id=block_id)[-1]
    with np.errstate(all="ignore"):
        return np.ldexp(dl_dinput / _divisor(total[1]), exponent - total[0])


def _divisor(weights: Any) -> Any:
    if weights == 0:
        raise ValueError("reduction is 'mean' and the sum of sample_weight is 0; expected something to divide by")
    return float(weights)
