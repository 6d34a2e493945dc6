"""Workspace: the fused calls on buffers that are kept."""

from __future__ import annotations

import functools
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from fastbackprop.arguments.batch import Batch
from fastbackprop.arguments.checks import (
    FLOAT32,
    FLOAT64,
    Array,
    Gradients,
    Loss,
    Parameters,
    check_dtype,
    check_layer_sizes,
    check_num_threads,
)
from fastbackprop.engine.engine import Engine
from fastbackprop.engine.pool import new_engine
from fastbackprop.gradients import with_callables
from fastbackprop.parallel.cpus import available_threads
from fastbackprop.parallel.workers import Progress

T = TypeVar("T")


class Workspace:
    """The fused calls for networks of one shape and dtype, on buffers that are allocated once.

    Parameters
    ----------
    layer_sizes : sequence of int
        D_i, D_1, ..., D_K, D_o: the units of each layer, at least two numbers from 1 up.
    dtype : {numpy.float64, numpy.float32}
        The dtype of the computation. Integers are converted to it. float64 arrays in a float32 Workspace raise an
        error.
    num_threads : int, optional
        The largest number of threads of a call. The default is FASTBACKPROP_NUM_THREADS, or the smallest of
        OMP_NUM_THREADS, NUMBA_NUM_THREADS and the number of processors that this process may use, when the Workspace
        is created.

    Raises
    ------
    ValueError
        ``layer_sizes is (3,); expected at least two whole numbers from 1 up``, ``FASTBACKPROP_NUM_THREADS is 'two';
        expected a whole number from 1 up``
    TypeError
        ``dtype is float16; expected float32 or float64``

    Notes
    -----
    Threads may share a Workspace: calls on it take turns. The same inputs give the same bits, whatever the number of
    threads and the calls before.

    Its memory does not grow with the number of samples. Each thread has a tile: ``sum(layer_sizes)`` rows of 64 to 512
    samples, about 256 KB, or more if 128 samples need more. Partial gradients take at most 128 MB. If a partial
    gradient has more than 4 MB (1,000,000 parameters in float32, 500,000 in float64), threads share one gradient. Then
    all threads together have at most 8 tiles of twice the size. Large batches also need one sum in float64, or two of
    float64 data.

    Examples
    --------
    >>> import numpy as np
    >>> from fastbackprop import Workspace
    >>> weights, biases = [np.array([[2.0], [1.0]]), np.array([[1.0, -1.0]])], [np.zeros((2, 1)), np.zeros((1, 1))]
    >>> workspace = Workspace((1, 2, 1))
    >>> loss, all_dl_dweights, all_dl_dbiases = workspace.loss_and_gradients(np.ones((1, 3)), weights, biases, 0.0)
    >>> loss, all_dl_dweights[1]
    (3.0, array([[12.,  6.]]))

    An optimiser's vector of parameters, and its gradient:

    >>> vector = np.array([2.0, 1.0, 0.0, 0.0, 1.0, -1.0, 0.0])
    >>> workspace.loss_and_gradients(np.ones((1, 3)), vector, None, 0.0)
    (3.0, array([ 6., -6.,  6., -6., 12.,  6.,  6.]))
    """

    def __init__(
        self, layer_sizes: Iterable[int], dtype: DTypeLike = np.float64, *, num_threads: int | None = None
    ) -> None:
        self.layer_sizes = check_layer_sizes(layer_sizes)
        self.dtype = check_dtype(dtype)
        self.num_threads = check_num_threads(num_threads)
        self._most_threads = self.num_threads or available_threads()
        self._engine = new_engine(self.layer_sizes, self.dtype)
        self._lock = threading.RLock()
        self._running = False
        _all_workspaces.add(self)

    def loss_and_gradients(
        self,
        net_input: ArrayLike,
        all_weights: Parameters,
        all_biases: Sequence[ArrayLike] | None,
        y: Any,
        *,
        loss: Loss = "least_squares",
        reduction: str = "sum",
        sample_weight: ArrayLike | None = None,
        input_gradient: bool = False,
        out: Gradients | Array | None = None,
        progress: Progress | None = None,
    ) -> tuple[Any, ...]:
        """As :func:`fastbackprop.loss_and_gradients`, on these buffers and in this dtype.

        The parameters may be one vector, in the order of :func:`fastbackprop.pack`, with None for all_biases. Then the
        call returns ``loss, dl_dvector``, and ``out`` is an array (P,).
        """
        if not isinstance(loss, str):
            options: dict[str, Any] = {"input_gradient": input_gradient, "out": out, "progress": progress}
            passed = (net_input, all_weights, all_biases, y, loss, reduction, sample_weight)
            return with_callables(self.predict, self._vjp, *passed, options)
        batch = Batch(net_input, all_weights, all_biases, self.layer_sizes, self.dtype)
        batch.set_loss(y, loss, reduction, sample_weight)
        return self._alone(Engine.differentiate, batch, progress, input_gradient=input_gradient, out=out)

    def vjp(
        self,
        net_input: ArrayLike,
        all_weights: Parameters,
        all_biases: Sequence[ArrayLike] | None,
        dl_doutput: ArrayLike,
        *,
        input_gradient: bool = False,
        out: Gradients | Array | None = None,
        progress: Progress | None = None,
    ) -> Any:
        """As :func:`fastbackprop.vjp`, on these buffers and in this dtype.

        For a vector of parameters, it returns ``dl_dvector``, or ``dl_dvector, dl_dinput`` with ``input_gradient``.
        """
        passed = (net_input, all_weights, all_biases, dl_doutput)
        result = self._vjp(*passed, input_gradient=input_gradient, out=out, progress=progress)
        return result[0] if len(result) == 1 else result

    def _vjp(
        self,
        net_input: ArrayLike,
        all_weights: Parameters,
        all_biases: Sequence[ArrayLike] | None,
        dl_doutput: ArrayLike,
        *,
        input_gradient: bool,
        out: Gradients | Array | None,
        progress: Progress | None,
    ) -> tuple[Any, ...]:
        batch = Batch(net_input, all_weights, all_biases, self.layer_sizes, self.dtype)
        batch.set_seed(dl_doutput)
        return self._alone(Engine.differentiate, batch, progress, input_gradient=input_gradient, out=out)[1:]

    def predict(
        self,
        net_input: ArrayLike,
        all_weights: Parameters,
        all_biases: Sequence[ArrayLike] | None,
        *,
        progress: Progress | None = None,
    ) -> Array:
        """As :func:`fastbackprop.predict`, on these buffers and in this dtype."""
        batch = Batch(net_input, all_weights, all_biases, self.layer_sizes, self.dtype)
        return self._alone(Engine.predict, batch, progress)

    def clipped_gradients(
        self,
        net_input: ArrayLike,
        all_weights: Parameters,
        all_biases: Sequence[ArrayLike] | None,
        y: Any,
        max_norm: float,
        *,
        loss: str = "least_squares",
        reduction: str = "sum",
        sample_weight: ArrayLike | None = None,
        out: Gradients | Array | None = None,
        progress: Progress | None = None,
    ) -> tuple[Any, ...]:
        """As :func:`fastbackprop.clipped_gradients`; for a vector of parameters ``loss, dl_dvector, norms``."""
        batch = self._batch(net_input, all_weights, all_biases, y, loss)
        batch.set_clipping(max_norm, reduction, sample_weight)
        return self._alone(Engine.clip, batch, progress, out=out)

    def per_sample_gradient_norms(
        self,
        net_input: ArrayLike,
        all_weights: Parameters,
        all_biases: Sequence[ArrayLike] | None,
        y: Any,
        *,
        loss: str = "least_squares",
        per_layer: bool = False,
        progress: Progress | None = None,
    ) -> tuple[Array, Array]:
        """As :func:`fastbackprop.per_sample_gradient_norms`."""
        batch = self._batch(net_input, all_weights, all_biases, y, loss)
        return self._alone(Engine.layer_norms if per_layer else Engine.norms, batch, progress)

    def squared_gradient_sums(
        self,
        net_input: ArrayLike,
        all_weights: Parameters,
        all_biases: Sequence[ArrayLike] | None,
        y: Any,
        *,
        loss: str = "least_squares",
        progress: Progress | None = None,
    ) -> tuple[Any, ...]:
        """As :func:`fastbackprop.squared_gradient_sums`; for a vector ``loss, dl_dvector, squared_dvector``."""
        batch = self._batch(net_input, all_weights, all_biases, y, loss)
        return self._alone(Engine.square, batch, progress)

    def per_sample_gradients(
        self,
        net_input: ArrayLike,
        all_weights: Parameters,
        all_biases: Sequence[ArrayLike] | None,
        y: Any,
        *,
        loss: str = "least_squares",
        out: Gradients | Array | None = None,
        progress: Progress | None = None,
    ) -> tuple[Any, ...]:
        """As :func:`fastbackprop.per_sample_gradients`; for a vector of P parameters ``losses, all_dl_dvector``, which
        is (N, P)."""
        batch = self._batch(net_input, all_weights, all_biases, y, loss)
        return self._alone(Engine.differentiate_samples, batch, progress, out=out, of_samples=True)

    def _batch(
        self, net_input: ArrayLike, all_weights: Parameters, all_biases: Sequence[ArrayLike] | None, y: Any, loss: str
    ) -> Batch:
        return Batch.of_samples(net_input, all_weights, all_biases, y, loss, self.layer_sizes, self.dtype)

    def __repr__(self) -> str:
        return f"Workspace({self.layer_sizes}, {self.dtype}, num_threads={self.num_threads})"

    def __reduce__(self) -> tuple[Any, ...]:
        # Buffers and locks stay behind; a copy makes its own.
        return functools.partial(Workspace, num_threads=self.num_threads), (self.layer_sizes, self.dtype)

    def _alone(
        self,
        compute: Callable[[Engine, Batch], T],
        batch: Batch,
        progress: Progress | None,
        **options: Any,
    ) -> T:
        """What an engine's method returns for a batch, when its other callers have finished."""
        if batch.dtype is FLOAT64 and self.dtype is FLOAT32:
            raise TypeError(
                f"{batch.widest}; expected float32, the dtype of this Workspace: "
                "pass .astype(np.float32), or make a Workspace of dtype float64"
            )
        most = self._most_threads
        batch.set_options(self.dtype, num_threads=most, progress=progress, **options)
        with self._lock:
            if self._running:
                raise RuntimeError("the progress callback called its own Workspace again; use another one")
            self._running = True
            try:
                return compute(self._engine, batch)
            except BaseException:
                # Buffers and records may have been left half made.
                self._engine = new_engine(self.layer_sizes, self.dtype)
                raise
            finally:
                self._running = False


_all_workspaces: weakref.WeakSet[Workspace] = weakref.WeakSet()


def _unlock_all() -> None:
    # In a forked child, the threads that held these locks do not exist.
    for workspace in _all_workspaces:
        workspace._lock = threading.RLock()
        workspace._running = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlock_all)
