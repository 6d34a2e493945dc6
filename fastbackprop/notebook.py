"""The notebooks' six functions, with the same names, arguments and results. Samples are columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastbackprop.arguments.batch import Batch, ForwardPass
from fastbackprop.arguments.checks import Array, as_numbers, shown
from fastbackprop.engine.engine import Engine
from fastbackprop.engine.memory import empty_columns
from fastbackprop.engine.pool import run


def ReLU(preactivation: ArrayLike) -> Any:
    """max(0, f) of each entry f. ReLU of NaN is NaN.

    Parameters
    ----------
    preactivation : array or scalar

    Returns
    -------
    activation : array of the same shape and dtype

    Examples
    --------
    >>> import numpy as np
    >>> from fastbackprop import ReLU
    >>> ReLU(np.array([-1.0, 0.0, 2.0, np.nan]))
    array([ 0.,  0.,  2., nan])
    """
    return np.maximum(as_numbers(preactivation, "preactivation"), 0)


def indicator_function(x: ArrayLike) -> Array:
    """The derivative of ReLU: 1 where x > 0, 0 where x <= 0, NaN where x is NaN.

    Parameters
    ----------
    x : array or scalar

    Returns
    -------
    indicator : array of the same shape and dtype

    Examples
    --------
    >>> import numpy as np
    >>> from fastbackprop import indicator_function
    >>> indicator_function(np.array([-1.0, 0.0, 2.0, np.nan]))
    array([ 0.,  0.,  1., nan])
    """
    indicator = np.array(as_numbers(x, "x"))
    indicator[indicator > 0] = 1
    indicator[indicator <= 0] = 0
    return indicator


def least_squares_loss(net_output: Any, y: Any) -> Any:
    """sum (o - y)^2 over all entries.

    Parameters
    ----------
    net_output : array (D_o, N)
    y : array that broadcasts with net_output

    Returns
    -------
    loss : NumPy scalar

    Examples
    --------
    >>> from fastbackprop import least_squares_loss
    >>> import numpy as np
    >>> float(least_squares_loss(np.array([[1.0, 2.0]]), np.array([[0.0, 4.0]])))
    5.0
    """
    error = _errors(net_output, y)
    with np.errstate(all="ignore"):
        return np.sum(error * error)


def d_loss_d_output(net_output: Any, y: Any) -> Any:
    """2 (o - y): the derivative of :func:`least_squares_loss` by the network's output.

    Parameters
    ----------
    net_output : array (D_o, N)
    y : array that broadcasts with net_output

    Returns
    -------
    dl_doutput : array (D_o, N)

    Examples
    --------
    >>> from fastbackprop import d_loss_d_output
    >>> import numpy as np
    >>> d_loss_d_output(np.array([[1.0, 2.0]]), np.array([[0.0, 4.0]]))
    array([[ 2., -4.]])
    """
    error = _errors(net_output, y)
    with np.errstate(all="ignore"):
        return 2.0 * error


def _errors(net_output: Any, y: Any) -> Any:
    """o - y."""
    output, target = as_numbers(net_output, "net_output"), as_numbers(y, "y")
    try:
        np.broadcast_shapes(np.shape(output), np.shape(target))
    except ValueError:
        raise ValueError(
            f"y has shape {np.shape(target)}; expected one that broadcasts with net_output, {np.shape(output)}"
        ) from None
    with np.errstate(all="ignore"):
        return output - target


def compute_network_output(
    net_input: Array, all_weights: Sequence[ArrayLike], all_biases: Sequence[ArrayLike], *, append_output: bool = False
) -> tuple[Array, list[Array], list[Array]]:
    """The forward pass, with all preactivations and activations.

    Parameters
    ----------
    net_input : array (D_i, N)
        One sample in each column; float32, float64 or integers, in any memory order.
    all_weights : list of K + 1 arrays
        ``all_weights[k]`` is (D_{k+1}, D_k).
    all_biases : list of K + 1 arrays
        ``all_biases[k]`` is (D_{k+1}, 1) or (D_{k+1},).
    append_output : bool
        Append the output to ``all_h``, as some notebooks do. ``all_h`` then has K + 2 entries.

    Returns
    -------
    net_output : array (D_o, N)
        The same object as ``all_f[K]``.
    all_f : list of K + 1 arrays
        The preactivations ``all_f[k]``, (D_{k+1}, N).
    all_h : list of K + 1 arrays
        The activations ``all_h[k]``, (D_k, N); ``all_h[0]`` is net_input itself.

    Raises
    ------
    ValueError, TypeError
        As :func:`loss_and_gradients`.

    Notes
    -----
    Equation 7.16 of Prince, "Understanding Deep Learning". :func:`loss_and_gradients` keeps no activations and is
    several times faster; :func:`predict` is the forward pass alone.

    Examples
    --------
    >>> import numpy as np
    >>> from fastbackprop import compute_network_output
    >>> weights, biases = [np.array([[2.0], [1.0]]), np.array([[1.0, -1.0]])], [np.zeros((2, 1)), np.zeros((1, 1))]
    >>> net_output, all_f, all_h = compute_network_output(np.array([[1.0, -3.0]]), weights, biases)
    >>> net_output, all_h[1]
    (array([[1., 0.]]), array([[2., 0.],
           [1., 0.]]))
    """
    batch = Batch(net_input, all_weights, all_biases)
    batch.set_options(batch.dtype)
    sizes = batch.layer_sizes[1:]
    all_f, all_h = (empty_columns(units, batch.samples, batch.dtype) for units in (sizes, sizes[:-1]))
    batch.take_columns(all_f, all_h, all_f[-1:])  # the last layer has no ReLU: its place is not written
    run(Engine.predict_columns, batch)
    return all_f[-1], all_f, [net_input, *all_h, *all_f[-1:] * append_output]


def backward_pass(
    all_weights: Sequence[ArrayLike],
    all_biases: Sequence[ArrayLike],
    all_f: Sequence[ArrayLike],
    all_h: Sequence[ArrayLike],
    y: Any,
    *,
    loss: str | Callable[[Array, Any], Array] = "least_squares",
    intermediates: bool = False,
) -> tuple[Any, ...]:
    """The backward pass: the gradient by every weight and bias, from what the forward pass returned.

    Parameters
    ----------
    all_weights, all_biases : lists of K + 1 arrays
        As for :func:`compute_network_output`.
    all_f : list of K + 1 arrays
        The preactivations. Their signs decide the derivative of each ReLU.
    all_h : list of K + 1 or K + 2 arrays
        The activations. Entry K + 2 is ignored.
    y : array (D_o, N)
        The target, as for :func:`loss_and_gradients`. ``"softmax_cross_entropy"`` also takes class numbers. A callable
        loss gets y unchanged.
    loss : str or callable
        ``"least_squares"``, ``"half_least_squares"``, ``"softmax_cross_entropy"``, ``"binary_cross_entropy"``, or a
        function ``(net_output, y) -> dl_doutput`` (D_o, N), such as a script's own ``d_loss_d_output``.
    intermediates : bool
        Also return the derivatives by the activations and preactivations.

    Returns
    -------
    all_dl_dweights, all_dl_dbiases : lists of K + 1 arrays
        Summed over the batch; each has its parameter's shape.
    all_dl_dh, all_dl_df : lists of K + 1 arrays
        Only if ``intermediates`` is true. ``all_dl_dh[k]`` is (D_k, N), ``all_dl_df[k]`` is (D_{k+1}, N).

    Raises
    ------
    ValueError, TypeError
        As :func:`loss_and_gradients`; ``all_f has 5 entries; expected 6: one for each entry of all_weights``.

    Notes
    -----
    Equations 7.21, 7.22 and 7.25 of Prince, "Understanding Deep Learning". The arguments are not changed.

    Examples
    --------
    >>> import numpy as np
    >>> from fastbackprop import backward_pass, compute_network_output
    >>> weights, biases = [np.array([[2.0], [1.0]]), np.array([[1.0, -1.0]])], [np.zeros((2, 1)), np.zeros((1, 1))]
    >>> net_output, all_f, all_h = compute_network_output(np.array([[1.0, -3.0]]), weights, biases)
    >>> all_dl_dweights, all_dl_dbiases = backward_pass(weights, biases, all_f, all_h, y=np.array([[3.0, 3.0]]))
    >>> all_dl_dweights[0].ravel(), all_dl_dbiases[1].ravel()
    (array([-4.,  4.]), array([-10.]))
    """
    batch = ForwardPass(all_weights, all_biases, all_f, all_h)
    if callable(loss):
        batch.set_seed(loss(batch.net_output, y), "what loss returned")
    elif isinstance(loss, str):
        batch.set_loss(y, loss, "sum", None)
    else:
        raise TypeError(f"loss is {shown(loss)}; expected a name or a callable (net_output, y) -> dl_doutput")
    batch.set_options(batch.dtype, input_gradient=intermediates)
    if intermediates:
        sizes = batch.layer_sizes[1:]
        all_dl_dh, all_dl_df = (empty_columns(units, batch.samples, batch.dtype) for units in (sizes[:-1], sizes))
        batch.take_columns(all_dl_dh, all_dl_df[-1:], all_dl_df)  # the output has no dl_dh
    _, *gradients = run(Engine.differentiate_columns, batch)
    if not intermediates:
        return tuple(gradients)
    all_dl_dweights, all_dl_dbiases, dl_dinput = gradients
    return all_dl_dweights, all_dl_dbiases, [dl_dinput, *all_dl_dh], all_dl_df
