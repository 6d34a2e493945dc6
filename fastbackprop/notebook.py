"""The notebooks' six functions: the same names, arguments and results, on batches of columns."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastbackprop import losses
from fastbackprop.arguments import Batch, ForwardPass
from fastbackprop.engine import PASS_FLOPS, native
from fastbackprop.kernels import SEED, SQUARED_ERROR
from fastbackprop.parameters import split
from fastbackprop.pool import borrow, give_back
from fastbackprop.results import empty
from fastbackprop.threads import lanes, run
from fastbackprop.validation import FLOATS, OUTPUT_SHAPE, Array, check_columns, check_loss, check_loss_target


def ReLU(preactivation: ArrayLike) -> Any:
    """max(0, f) entry by entry, NaN where f is NaN.

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
    return np.maximum(preactivation, 0)


def indicator_function(x: ArrayLike) -> Array:
    """1 where x > 0 and 0 where x <= 0: the derivative of ReLU, with 0 at 0. NaN where x is NaN.

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
    indicator = np.array(x)
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
    error = net_output - y
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
    return losses.squared_error_derivative(1.0, net_output, y)


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
        Append the output to ``all_h``, which then has K + 2 entries, as some notebooks have it.

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
    dtype, samples = batch.dtype, batch.samples
    allocate = np.empty if samples == 1 else empty
    all_f = [allocate((units, samples), dtype) for units in batch.layer_sizes[1:]]
    all_h = [net_input, *[allocate((units, samples), dtype) for units in batch.layer_sizes[1:-1]]]
    weights, biases = native(batch.weights, dtype), [array.ravel() for array in native(batch.biases, dtype)]
    if samples == 1:
        weights = [np.ascontiguousarray(array) for array in weights]
    layers = list(
        zip(all_f, [*all_h[1:], NO_COLUMNS[dtype]], weights, biases, [batch.net_input, *all_h[1:]], strict=True)
    )
    engine = borrow(batch.layer_sizes, dtype)
    tile_samples = 1 if samples == 1 else engine.tile_samples
    layer = engine.forward_layer
    chunks = engine.chunks(samples, sums=False, flops=PASS_FLOPS)
    num_lanes = lanes(None, len(chunks))
    tiles = engine.tiles(num_lanes)

    def work(lane: int, _chunk: int, first: int, last: int) -> None:
        tile = tiles[lane]
        for f, h_next, layer_weights, layer_biases, h in layers:
            if last - first < samples:
                f, h_next, h = f[:, first:last], h_next[:, first:last], h[:, first:last]
            if h.dtype is not dtype:
                h = h.astype(dtype, copy=False)
            layer(f, h_next, layer_weights, layer_biases, h, tile, tile_samples)

    if samples == 1:
        work(0, 0, 0, 1)
    else:
        run(work, chunks, engine.pass_samples, num_lanes)
    give_back(engine)
    return all_f[-1], all_f, all_h + [all_f[-1]] * append_output


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
        The preactivations; the masks are taken from them.
    all_h : list of K + 1 or K + 2 arrays
        The activations; a (K + 2)th entry is ignored.
    y : array (D_o, N)
        The target, as for :func:`loss_and_gradients`: for ``"softmax_cross_entropy"`` also class numbers. A callable
        loss gets it as it is.
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
        Where ``intermediates`` is true: ``all_dl_dh[k]`` is (D_k, N), ``all_dl_df[k]`` is (D_{k+1}, N).

    Raises
    ------
    ValueError, TypeError
        As :func:`loss_and_gradients`; ``all_f has 5 entries; expected 6: one for each entry of all_weights``.

    Notes
    -----
    Equations 7.21, 7.22 and 7.25 of Prince, "Understanding Deep Learning". Nothing that is passed in is changed.

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
    mode, target = _take_loss(batch, y, loss)
    dtype, samples = batch.dtype, batch.samples
    dl_doutput = target if mode == SEED else np.empty(batch.all_f[-1].shape, dtype)
    weights = native(batch.weights, dtype)
    if samples == 1:
        weights = [np.ascontiguousarray(array) for array in weights]
    no_columns = NO_COLUMNS[dtype]
    all_dl_dh, all_dl_df = [no_columns] * len(weights), [no_columns] * len(weights)
    if intermediates:
        all_dl_dh = [empty((units, samples), dtype) for units in batch.layer_sizes[:-1]]
        all_dl_df = [
            *[empty((units, samples), dtype) for units in batch.layer_sizes[1:-1]],
            dl_doutput.astype(dtype, copy=mode == SEED),
        ]
    engine = borrow(batch.layer_sizes, dtype)
    tile_samples = 1 if samples == 1 else engine.tile_samples
    # Made here, not by several threads at once.
    layer = engine.backward_layer
    derivative, cross_entropy = engine.loss_derivative if mode != SEED else None, engine.loss_address(mode)

    def work(lane: int, chunk: int, first: int, last: int) -> None:
        sums = accumulators[chunk]
        if samples > 1 and first == chunks[chunk][0]:
            sums.fill(0.0)
        tile = tiles[lane]
        whole = last - first == samples
        all_h, all_f, dl_df = batch.all_h, batch.all_f, dl_doutput
        if not whole:
            all_h, all_f = ([array[:, first:last] for array in arrays] for arrays in (all_h, all_f))
            dl_df = dl_df[:, first:last]
        all_h, all_f, (dl_df,) = native(all_h, dtype), native(all_f, dtype), native([dl_df], dtype)
        if derivative is not None:
            (y_part,) = native([target if whole else target[:, first:last]], dtype)
            derivative(dl_df, all_f[-1], y_part, sums[engine.size :], tile, tile_samples, mode, cross_entropy)
        for k in range(len(weights) - 1, -1, -1):
            dl_dh, f_before, before = all_dl_dh[k], no_columns, no_columns
            if k > 0:
                f_before = all_f[k - 1]
                before = all_dl_df[k - 1] if intermediates else np.empty(f_before.shape, dtype)
            if intermediates and not whole:
                dl_dh, before = dl_dh[:, first:last], before[:, first:last]
            layer(gradient, sums, dl_dh, before, weights[k], dl_df, all_h[k], f_before, tile, tile_samples, offsets[k])
            dl_df = before

    chunks, offsets = engine.chunks(samples, flops=PASS_FLOPS), engine.weights_offsets
    num_lanes = lanes(None, len(chunks))
    accumulators, tiles = engine.accumulators(len(chunks)), engine.tiles(num_lanes)
    gradient = np.empty(engine.size if samples == 1 else 0, dtype)
    if samples == 1:
        work(0, 0, 0, 1)
    else:
        run(work, chunks, engine.pass_samples, num_lanes)
        gradient = engine.total_gradient(len(chunks))
    give_back(engine)
    gradients = split(gradient, batch.weights, batch.biases)
    return (*gradients, all_dl_dh, all_dl_df) if intermediates else gradients


def _take_loss(batch: ForwardPass, y: Any, loss: str | Callable[[Array, Any], Any]) -> tuple[int, Array]:
    """SEED and dl/df_K, or the mode of a cross-entropy and its target; their dtype counts for that of the result."""
    net_output, units = batch.all_f[-1], batch.layer_sizes[-1]
    if callable(loss):
        returned = loss(net_output, y)
        derivative = check_columns(returned, "what loss returned", units, batch.samples, OUTPUT_SHAPE)
        batch.widen_by_target(returned, derivative)
        return SEED, derivative
    if not isinstance(loss, str):
        raise TypeError(f"loss is {loss!r}; expected a name or a callable (net_output, y) -> dl_doutput")
    check_loss(loss)
    mode, factor = losses.LOSSES[loss]
    target = check_loss_target(y, mode, units, batch.samples)
    batch.widen_by_target(y, target)
    if mode == SQUARED_ERROR:
        return SEED, losses.squared_error_derivative(factor, *native([net_output, target], batch.dtype))
    return mode, target


NO_COLUMNS = {dtype: np.empty((1, 0), dtype) for dtype in FLOATS}
