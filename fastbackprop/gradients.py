"""The fused calls: forward, loss and backward in one function whose memory does not grow with the batch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastbackprop.arguments.batch import Batch, check_callables
from fastbackprop.arguments.checks import OUTPUT_SHAPE, Array, Gradients, Loss, as_numbers, check_columns
from fastbackprop.engine.engine import Engine
from fastbackprop.engine.pool import run


def loss_and_gradients(
    net_input: ArrayLike,
    all_weights: Sequence[ArrayLike],
    all_biases: Sequence[ArrayLike],
    y: Any,
    *,
    loss: Loss = "least_squares",
    reduction: str = "sum",
    sample_weight: ArrayLike | None = None,
    input_gradient: bool = False,
    out: Gradients | None = None,
    num_threads: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> tuple[Any, ...]:
    """The loss of a batch and its gradient by every weight and bias.

    Parameters
    ----------
    net_input : array (D_i, N)
        One sample in each column; float32, float64 or integers, in any memory order. N may be 0.
    all_weights : list of K + 1 arrays
        ``all_weights[k]`` is (D_{k+1}, D_k).
    all_biases : list of K + 1 arrays
        ``all_biases[k]`` is (D_{k+1}, 1) or (D_{k+1},).
    y : array (D_o, N)
        The target. (D_o, 1), (1, 1) and a scalar are broadcast; (N,) is allowed if D_o is 1. A callable loss gets y
        unchanged. The cross-entropies expect probabilities, 0 to 1. For the softmax, each column sums to 1 (within
        1e-4). Instead of probabilities, the softmax takes class numbers 0 .. D_o - 1 if D_o is 2 or more: integers
        (N,), (1, N), or one number for all samples. Integers (D_o, N) and (D_o, 1) are probabilities, such as one-hot
        columns.
    loss : str or pair of callables
        For the output o, ``"least_squares"`` is sum (o - y)^2 and ``"half_least_squares"`` is half of it. The
        cross-entropies take the raw output: ``"softmax_cross_entropy"`` is sum y (logsumexp(o) - o), and
        ``"binary_cross_entropy"`` is sum log(1 + exp(o)) - o y. A pair ``(value, derivative)`` is called once each, as
        ``f(net_output, y)`` with the whole output (D_o, N). It takes memory for D_o N numbers and a second forward
        pass.
    reduction : {"sum", "mean"}
        The mean divides by N, or by the sum of sample_weight. Not allowed with callables.
    sample_weight : array (N,), optional
        A factor for the loss of each sample. Not allowed with callables. A mean depends only on the ratios of the
        weights, however large or small they are. A sum takes them in the dtype of the result: 1e-50 is 0 in float32.
    input_gradient : bool
        Also return the derivative by the input.
    out : (list, list), optional
        Arrays with the parameters' shapes, into which the gradients are written. The call returns these lists.
    num_threads : int, optional
        The default is FASTBACKPROP_NUM_THREADS, or the smallest of OMP_NUM_THREADS, NUMBA_NUM_THREADS and the number
        of processors that this process may use. The result has the same bits for any number.
    progress : callable, optional
        Called as ``progress(done, total)`` on the calling thread, several times in long calls. Both are samples.

    Returns
    -------
    loss : float
    all_dl_dweights, all_dl_dbiases : lists of K + 1 arrays
        Each gradient has its parameter's shape. The dtype is float32 if net_input, all parameters and a floating y are
        float32, else float64. Integers in net_input and the parameters count as float64. Most gradients are views of
        one vector: copy what you keep for long, or it keeps the others in memory.
    dl_dinput : array (D_i, N)
        Only if ``input_gradient`` is true.

    Raises
    ------
    ValueError
        For wrong shapes and values: ``all_weights[2] has shape (6, 5); expected (6, 6): its columns must match the rows
        of all_weights[1]``, ``y[3] is 10; expected class numbers in 0 .. 9``, or a mean over no samples. Targets
        are checked before anything is computed.
    TypeError
        For wrong types: ``net_input has dtype float16; expected float32 or float64 (integers count as float64): pass
        net_input.astype(np.float64)``.

    Notes
    -----
    The backpropagation of Prince, "Understanding Deep Learning", section 7.4: equations 7.16 (forward), 7.21 and 7.22
    (bias and weights) and 7.25 (the recursion), summed over the samples. The derivative of ReLU at 0 is 0.
    The cross-entropies do not overflow: they take exponentials of numbers <= 0 only.

    Examples
    --------
    >>> import numpy as np
    >>> from fastbackprop import loss_and_gradients
    >>> weights, biases = [np.array([[2.0], [1.0]]), np.array([[1.0, -1.0]])], [np.zeros((2, 1)), np.zeros((1, 1))]
    >>> loss, all_dl_dweights, all_dl_dbiases = loss_and_gradients(np.array([[1.0, -3.0]]), weights, biases, y=3.0)
    >>> loss, all_dl_dweights[0].ravel(), all_dl_dbiases[1].ravel()
    (13.0, array([-4.,  4.]), array([-10.]))

    Two samples, of class 1 and of class 0:

    >>> weights, biases = [np.eye(2)], [np.zeros((2, 1))]
    >>> loss, _, all_dl_dbiases = loss_and_gradients(
    ...     np.array([[0.0, 900.0], [0.0, 0.0]]), weights, biases, [1, 0], loss="softmax_cross_entropy"
    ... )
    >>> round(loss, 6), all_dl_dbiases[0].ravel()
    (0.693147, array([ 0.5, -0.5]))
    """
    options: dict[str, Any] = {
        "input_gradient": input_gradient,
        "out": out,
        "num_threads": num_threads,
        "progress": progress,
    }
    if not isinstance(loss, str):
        passed = (net_input, all_weights, all_biases, y, loss, reduction, sample_weight)
        return with_callables(functools.partial(predict, num_threads=num_threads), vjp, *passed, options)
    batch = Batch(net_input, all_weights, all_biases)
    batch.set_loss(y, loss, reduction, sample_weight)
    batch.set_options(batch.dtype, **options)
    return run(Engine.differentiate, batch)


def vjp(
    net_input: ArrayLike,
    all_weights: Sequence[ArrayLike],
    all_biases: Sequence[ArrayLike],
    dl_doutput: ArrayLike,
    *,
    input_gradient: bool = False,
    out: Gradients | None = None,
    num_threads: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> tuple[Any, ...]:
    """The vector-Jacobian product: the gradient of sum(dl_doutput * output), for any derivative by the output.

    Parameters
    ----------
    net_input, all_weights, all_biases
        As for :func:`loss_and_gradients`.
    dl_doutput : array (D_o, N)
        The derivative of a loss by the network's output. With ones, the gradient is that of the summed outputs.
    input_gradient, out, num_threads, progress
        As for :func:`loss_and_gradients`.

    Returns
    -------
    all_dl_dweights, all_dl_dbiases : lists of K + 1 arrays
        Each gradient has its parameter's shape.
    dl_dinput : array (D_i, N)
        Only if ``input_gradient`` is true.

    Raises
    ------
    ValueError, TypeError
        As :func:`loss_and_gradients`; ``dl_doutput has shape (2, 5); expected (1, 5): the shape of the network's
        output``.

    Notes
    -----
    Equations 7.21, 7.22 and 7.25 of Prince, "Understanding Deep Learning".

    Examples
    --------
    >>> import numpy as np
    >>> from fastbackprop import vjp
    >>> weights, biases = [np.array([[2.0], [1.0]]), np.array([[1.0, -1.0]])], [np.zeros((2, 1)), np.zeros((1, 1))]
    >>> net_input = np.array([[1.0, -3.0]])
    >>> *_, doutput_dinput = vjp(net_input, weights, biases, np.ones((1, 2)), input_gradient=True)
    >>> doutput_dinput
    array([[1., 0.]])
    """
    batch = Batch(net_input, all_weights, all_biases)
    batch.set_seed(dl_doutput)
    batch.set_options(batch.dtype, input_gradient=input_gradient, out=out, num_threads=num_threads, progress=progress)
    return run(Engine.differentiate, batch)[1:]


def predict(
    net_input: ArrayLike,
    all_weights: Sequence[ArrayLike],
    all_biases: Sequence[ArrayLike],
    *,
    num_threads: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Array:
    """The network's output. No activations are kept.

    Parameters
    ----------
    net_input, all_weights, all_biases, num_threads, progress
        As for :func:`loss_and_gradients`.

    Returns
    -------
    net_output : array (D_o, N)

    Raises
    ------
    ValueError, TypeError
        As :func:`loss_and_gradients`.

    Notes
    -----
    Equation 7.16 of Prince, "Understanding Deep Learning".

    Examples
    --------
    >>> import numpy as np
    >>> from fastbackprop import predict
    >>> weights, biases = [np.array([[2.0], [1.0]]), np.array([[1.0, -1.0]])], [np.zeros((2, 1)), np.zeros((1, 1))]
    >>> predict(np.array([[1.0, -3.0]]), weights, biases)
    array([[1., 0.]])
    """
    batch = Batch(net_input, all_weights, all_biases)
    batch.set_options(batch.dtype, num_threads=num_threads, progress=progress)
    return run(Engine.predict, batch)


def with_callables(
    predict: Callable[..., Array],
    vjp: Callable[..., tuple[Any, ...]],
    net_input: ArrayLike,
    all_weights: Any,
    all_biases: Any,
    y: Any,
    loss: Any,
    reduction: str,
    sample_weight: ArrayLike | None,
    options: dict[str, Any],
) -> tuple[Any, ...]:
    """The loss and its gradients where the loss is a pair of callables: they see the output of the whole batch."""
    check_callables(loss, reduction, sample_weight)
    value, derivative = loss
    net_output = predict(net_input, all_weights, all_biases)
    total = np.asarray(as_numbers(value(net_output, y), "what the value of loss returned"))
    if total.size != 1:
        raise ValueError(f"what the value of loss returned has shape {total.shape}; expected one number")
    dl_doutput = derivative(net_output, y)
    name = "what the derivative of loss returned"
    check_columns(dl_doutput, name, net_output.shape[0], net_output.shape[1], OUTPUT_SHAPE)
    return float(total.item()), *vjp(net_input, all_weights, all_biases, dl_doutput, **options)
