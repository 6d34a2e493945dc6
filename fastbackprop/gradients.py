"""The fused path: forward, loss and backward in one call that keeps nothing of the batch's size."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastbackprop.arguments.batch import Batch, check_callables
from fastbackprop.arguments.checks import OUTPUT_SHAPE, Array, Gradients, Loss, check_columns
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
        The target; (D_o, 1), (1, 1), a scalar, and (N,) where D_o is 1, are broadcast. Callables get it as it is.
        The cross-entropies want probabilities, 0 to 1; for the softmax, each column sums to 1 (within 1e-4), or y
        holds class numbers 0 .. D_o - 1: integers (N,), (1, N) or one for all samples, where D_o is 2 or more.
        Integers (D_o, N) and (D_o, 1), such as one-hot columns, are probabilities.
    loss : str or pair of callables
        ``"least_squares"``, sum (o - y)^2; ``"half_least_squares"``, half of it; from the raw output,
        ``"softmax_cross_entropy"``, sum y (logsumexp(o) - o), and ``"binary_cross_entropy"``,
        sum log(1 + exp(o)) - o y; or ``(value, derivative)``, each called once as ``f(net_output, y)`` with the whole
        (D_o, N) output. Callables cost memory of size D_o N and a second forward pass.
    reduction : {"sum", "mean"}
        The mean divides by N, or by the sum of sample_weight. Not with callables.
    sample_weight : array (N,), optional
        A factor for the loss of each sample. Not with callables.
    input_gradient : bool
        Also return the derivative by the input.
    out : (list, list), optional
        Arrays to write the gradients to, with the parameters' shapes; these lists are returned.
    num_threads : int, optional
        The default is FASTBACKPROP_NUM_THREADS, or the processors this process may run on. The result is the same
        for any number, to the bit.
    progress : callable, optional
        Called as ``progress(done, total)`` now and then, in samples, on the calling thread.

    Returns
    -------
    loss : float
    all_dl_dweights, all_dl_dbiases : lists of K + 1 arrays
        Each gradient has its parameter's shape; the dtype is that of NumPy's promotion of net_input, the parameters
        and a floating y, where integers count as float64.
    dl_dinput : array (D_i, N)
        Where ``input_gradient`` is true.

    Raises
    ------
    ValueError
        For shapes and values, as ``all_weights[2] has shape (6, 5); expected (6, 6): its columns must match the rows
        of all_weights[1]``, ``y[3] is 10; expected class numbers in 0 .. 9``, or a mean over no samples. Targets are
        looked at before anything is computed.
    TypeError
        For types, as ``net_input has dtype float16; expected float32 or float64 (integers count as float64): pass
        net_input.astype(np.float64)``.

    Notes
    -----
    The backpropagation of Prince, "Understanding Deep Learning", section 7.4: equations 7.16 (forward), 7.21 and 7.22
    (bias and weights) and 7.25 (the recursion), summed over the samples. The derivative of ReLU at 0 is 0.
    No output is too large for the cross-entropies: only exponentials of what is not positive are taken.

    Examples
    --------
    >>> import numpy as np
    >>> from fastbackprop import loss_and_gradients
    >>> weights, biases = [np.array([[2.0], [1.0]]), np.array([[1.0, -1.0]])], [np.zeros((2, 1)), np.zeros((1, 1))]
    >>> loss, all_dl_dweights, all_dl_dbiases = loss_and_gradients(np.array([[1.0, -3.0]]), weights, biases, y=3.0)
    >>> loss, all_dl_dweights[0].ravel(), all_dl_dbiases[1].ravel()
    (13.0, array([-4.,  4.]), array([-10.]))

    Two samples of the classes 1 and 0, of two:

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
        The derivative of a loss by the network's output; ones give the derivatives of the summed outputs.
    input_gradient, out, num_threads, progress
        As for :func:`loss_and_gradients`.

    Returns
    -------
    all_dl_dweights, all_dl_dbiases : lists of K + 1 arrays
        Each gradient has its parameter's shape.
    dl_dinput : array (D_i, N)
        Where ``input_gradient`` is true.

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
    """The network's output, keeping no activations.

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
    total = np.asarray(value(net_output, y))
    if total.size != 1:
        raise ValueError(f"what the value of loss returned has shape {total.shape}; expected one number")
    dl_doutput = derivative(net_output, y)
    name = "what the derivative of loss returned"
    check_columns(dl_doutput, name, net_output.shape[0], net_output.shape[1], OUTPUT_SHAPE)
    return float(total.item()), *vjp(net_input, all_weights, all_biases, dl_doutput, **options)
