"""What each sample of a batch says: the norm of its gradient, clipped sums, sums of squares, and the gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from numpy.typing import ArrayLike

from fastbackprop.arguments.batch import Batch
from fastbackprop.arguments.checks import Array, Gradients
from fastbackprop.engine.engine import Engine
from fastbackprop.engine.pool import run


def clipped_gradients(
    net_input: ArrayLike,
    all_weights: Sequence[ArrayLike],
    all_biases: Sequence[ArrayLike],
    y: Any,
    max_norm: float,
    *,
    loss: str = "least_squares",
    reduction: str = "sum",
    sample_weight: ArrayLike | None = None,
    out: Gradients | None = None,
    num_threads: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> tuple[Any, ...]:
    """The sum of the samples' gradients, each scaled down to a norm of at most max_norm before it is summed.

    One forward and one backward pass, in memory that does not grow with the number of samples but for the norms.

    Parameters
    ----------
    net_input, all_weights, all_biases, y, out, num_threads, progress
        As for :func:`loss_and_gradients`.
    max_norm : float
        The gradient of a sample, over all weights and biases, is multiplied by ``min(1, max_norm / norm)``. A positive
        number, which may be infinite.
    loss : str
        A name, see :func:`loss_and_gradients`; callables see the whole batch, not each sample.
    reduction : {"sum", "mean"}
        The mean divides by N, as differentially private training does, not by the sum of sample_weight.
    sample_weight : array (N,), optional
        A factor for the loss of each sample, and for its gradient after it was clipped.

    Returns
    -------
    loss : float
        With weights and reduction, and not clipped.
    all_dl_dweights, all_dl_dbiases : lists of K + 1 arrays
        As :func:`loss_and_gradients` returns them.
    norms : array (N,)
        The norm of each sample's gradient, without its weight, before it was clipped.

    Raises
    ------
    ValueError
        ``max_norm is -1.0; expected a positive number``, and as :func:`loss_and_gradients`.
    TypeError
        ``max_norm is '1'; expected a positive number``, ``loss is a pair of callables; expected a name: callables see
        the whole batch, not each sample``, and as :func:`loss_and_gradients`.

    Notes
    -----
    The weight gradient of a sample is the outer product dl/df_k h_k^T (equation 7.22 of Prince, "Understanding Deep
    Learning"). So its squared norm is the sum over the layers of ||dl/df_k||^2 (||h_k||^2 + 1), see Goodfellow,
    "Efficient per-example gradient computations" (2015). Clipping is that of Abadi et al., "Deep learning with
    differential privacy" (2016). No noise is added.

    What is multiplied is dl/df_k. That of a gradient whose norm is infinite is multiplied by 0, and 0 times infinity is
    NaN.

    Examples
    --------
    >>> import numpy as np
    >>> from fastbackprop import clipped_gradients
    >>> weights, biases = [np.array([[3.0, 4.0]])], [np.zeros((1, 1))]
    >>> x = np.array([[1.0, 0.0], [0.0, 0.0]])
    >>> loss, all_dl_dweights, all_dl_dbiases, norms = clipped_gradients(x, weights, biases, [4.0, 0.5], max_norm=1.0)
    >>> loss, all_dl_dweights[0].round(6), all_dl_dbiases[0].round(6), norms.round(6)
    (1.25, array([[-0.707107,  0.      ]]), array([[-1.707107]]), array([2.828427, 1.      ]))
    """
    batch = Batch.of_samples(net_input, all_weights, all_biases, y, loss)
    batch.set_clipping(max_norm, reduction, sample_weight)
    batch.set_options(batch.dtype, out=out, num_threads=num_threads, progress=progress)
    return run(Engine.clip, batch)


def per_sample_gradient_norms(
    net_input: ArrayLike,
    all_weights: Sequence[ArrayLike],
    all_biases: Sequence[ArrayLike],
    y: Any,
    *,
    loss: str = "least_squares",
    per_layer: bool = False,
    num_threads: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> tuple[Array, Array]:
    """The loss of each sample, and the norm of its gradient. No weight gradients are computed.

    Parameters
    ----------
    net_input, all_weights, all_biases, y, num_threads, progress
        As for :func:`loss_and_gradients`.
    loss : str
        A name, as for :func:`clipped_gradients`.
    per_layer : bool
        The norms by the parameters of each layer instead, weights and biases together.

    Returns
    -------
    losses : array (N,)
    norms : array (N,), or (K + 1, N) where ``per_layer`` is true

    Raises
    ------
    ValueError, TypeError
        As :func:`clipped_gradients`.

    Notes
    -----
    The square root of the sum over the layers of ||dl/df_k||^2 (||h_k||^2 + 1), see :func:`clipped_gradients`. Sums are
    in double precision, and no square on the way is too large or too small: a norm is infinite only if it is too large
    itself.

    Examples
    --------
    >>> import numpy as np
    >>> from fastbackprop import per_sample_gradient_norms
    >>> weights, biases = [np.array([[3.0, 4.0]])], [np.zeros((1, 1))]
    >>> per_sample_gradient_norms(np.array([[1.0, 0.0], [0.0, 0.0]]), weights, biases, [4.0, 0.5])
    (array([1.  , 0.25]), array([2.82842712, 1.        ]))
    """
    batch = Batch.of_samples(net_input, all_weights, all_biases, y, loss)
    batch.set_options(batch.dtype, num_threads=num_threads, progress=progress)
    return run(Engine.layer_norms if per_layer else Engine.norms, batch)


def squared_gradient_sums(
    net_input: ArrayLike,
    all_weights: Sequence[ArrayLike],
    all_biases: Sequence[ArrayLike],
    y: Any,
    *,
    loss: str = "least_squares",
    num_threads: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> tuple[Any, ...]:
    """The loss, its gradient, and for each parameter the sum over the samples of their squared derivatives.

    Divided by N and with the cross-entropy as the loss, the last are the diagonal of the empirical Fisher matrix.

    Parameters
    ----------
    net_input, all_weights, all_biases, y, num_threads, progress
        As for :func:`loss_and_gradients`.
    loss : str
        A name, as for :func:`clipped_gradients`.

    Returns
    -------
    loss : float
    all_dl_dweights, all_dl_dbiases : lists of K + 1 arrays
        As :func:`loss_and_gradients` returns them.
    all_squared_dweights, all_squared_dbiases : lists of K + 1 arrays
        The sums of the squares, with the same shapes.

    Raises
    ------
    ValueError, TypeError
        As :func:`clipped_gradients`.

    Notes
    -----
    The sum of (dl/df_k)^2 (h_k^2)^T, elementwise squares: what is squared is dl/df_k and h_k, not their product.

    Examples
    --------
    >>> import numpy as np
    >>> from fastbackprop import squared_gradient_sums
    >>> weights, biases = [np.array([[3.0, 4.0]])], [np.zeros((1, 1))]
    >>> squared_gradient_sums(np.array([[1.0, 0.0], [0.0, 0.0]]), weights, biases, [4.0, 0.5])[3:]
    ([array([[4., 0.]])], [array([[5.]])])
    """
    batch = Batch.of_samples(net_input, all_weights, all_biases, y, loss)
    batch.set_options(batch.dtype, num_threads=num_threads, progress=progress)
    return run(Engine.square, batch)


def per_sample_gradients(
    net_input: ArrayLike,
    all_weights: Sequence[ArrayLike],
    all_biases: Sequence[ArrayLike],
    y: Any,
    *,
    loss: str = "least_squares",
    out: Gradients | None = None,
    num_threads: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> tuple[Any, ...]:
    """The loss and the gradient of each sample: N times the memory of one gradient.

    Parameters
    ----------
    net_input, all_weights, all_biases, y, num_threads, progress
        As for :func:`loss_and_gradients`.
    loss : str
        A name, as for :func:`clipped_gradients`.
    out : (list, list), optional
        Arrays to write the gradients to, with the shapes below; these lists are returned. Arrays of a file
        (numpy.memmap) serve for results larger than memory. Written as they are computed where each sample's gradient
        is contiguous and has the dtype of the result, else copied at the end.

    Returns
    -------
    losses : array (N,)
    all_dl_dweights : list of K + 1 arrays (N, D_{k+1}, D_k)
    all_dl_dbiases : list of K + 1 arrays (N, D_{k+1}, 1), or (N, D_{k+1}) for biases (D_{k+1},)

    Raises
    ------
    ValueError, TypeError
        As :func:`clipped_gradients`; ``out[0][1] has shape (3, 2); expected (5, 3, 2), a gradient for each sample``.
    MemoryError
        ``the gradients of 10000000 samples take 86.17 GiB, and there are 23.4: pass fewer samples, or arrays of a file
        as out``.

    Notes
    -----
    The outer products dl/df_k h_k^T, and dl/df_k: equations 7.21 and 7.22 of Prince, "Understanding Deep Learning".

    Examples
    --------
    >>> import numpy as np
    >>> from fastbackprop import per_sample_gradients
    >>> weights, biases = [np.array([[3.0, 4.0]])], [np.zeros((1, 1))]
    >>> per_sample_gradients(np.array([[1.0, 0.0], [0.0, 0.0]]), weights, biases, [4.0, 0.5])
    (array([1.  , 0.25]), [array([[[-2., -0.]],
    <BLANKLINE>
           [[-0., -0.]]])], [array([[[-2.]],
    <BLANKLINE>
           [[-1.]]])])
    """
    batch = Batch.of_samples(net_input, all_weights, all_biases, y, loss)
    batch.set_options(batch.dtype, out=out, num_threads=num_threads, progress=progress, of_samples=True)
    return run(Engine.differentiate_samples, batch)
