"""scikit-learn's MLPClassifier and MLPRegressor on this package's gradients and predictions.

The classes are subclasses of scikit-learn's. ReLU networks with squared error, softmax or logistic outputs run on this
package's kernels where the samples are a dense array. Everything else runs scikit-learn's own code.
"""

import contextlib
import functools
import math
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastbackprop import Workspace, pack, predict, unpack

try:
    from joblib.parallel import get_active_backend
    from sklearn import __version__ as sklearn_version
    from sklearn import neural_network
    from sklearn.base import is_classifier
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import train_test_split
    from sklearn.neural_network._base import ACTIVATIONS
    from sklearn.neural_network._multilayer_perceptron import BaseMultilayerPerceptron
    from sklearn.neural_network._stochastic_optimizers import AdamOptimizer, SGDOptimizer
    from sklearn.utils.parallel import _get_threadpool_controller
    from sklearn.utils.validation import validate_data

    if tuple(map(int, sklearn_version.split(".")[:2])) < (1, 7):
        raise ImportError(f"scikit-learn {sklearn_version} is too old")
except ImportError as error:
    raise ImportError(
        "fastbackprop.sklearn needs scikit-learn 1.7 or newer: pip install 'fastbackprop[sklearn]'"
    ) from error

__all__ = ["MLPClassifier", "MLPRegressor"]

Array = NDArray[Any]

LOSSES = {
    ("squared_error", "identity"): "half_least_squares",
    ("log_loss", "softmax"): "softmax_cross_entropy",
    ("log_loss", "logistic"): "binary_cross_entropy",
}
"""This package's name for scikit-learn's loss and activation of the output."""

LEAST_PREDICTIONS = 128
"""Predictions of fewer samples run scikit-learn's own code, which is as fast or up to 25 us faster on them.

Measured: 64-100-10 and 784-100-10 on one thread, without the validation of 80 us, AMD Zen 4, 2026-11-28.
"""


_BLAS = threading.Lock()
"""Held by the fit that has set BLAS's number of threads."""


class _Network:
    """A model's loss and its gradient, penalty included, as functions of one vector of parameters in `pack` order."""

    def __init__(self, model: Any, dtype: Any) -> None:
        units = [len(model.coefs_[0]), *(coefs.shape[1] for coefs in model.coefs_)]
        self.workspace = Workspace(units, dtype, num_threads=_num_threads())
        self.loss = LOSSES[model.loss, model.out_activation_]
        self.divisor = units[-1] if self.loss == "half_least_squares" else 1  # its loss is a mean over outputs too
        self.alpha = np.zeros(sum((a + 1) * b for a, b in pairwise(units)), dtype)  # intercepts have no penalty
        for weights in unpack(self.alpha, units)[0]:
            weights[:] = model.alpha

    def target(self, y: Array) -> Array:
        """The target of the loss for scikit-learn's y (N, D_o): class numbers (N,), or floats (N, D_o)."""
        return y.argmax(axis=1) if self.loss == "softmax_cross_entropy" else y.astype(self.workspace.dtype)

    def differentiate(
        self, X: Array, target: Array, sample_weight: Array | None, parameters: Array, gradient: Array
    ) -> float:
        """Return the loss of a batch, samples in rows, and write its gradient."""
        options: dict[str, Any] = {"reduction": "mean", "sample_weight": sample_weight, "out": gradient}
        loss, _ = self.workspace.loss_and_gradients(X.T, parameters, None, target.T, loss=self.loss, **options)
        penalty = self.alpha * parameters
        penalty /= len(X) if sample_weight is None else sample_weight.sum()
        gradient += penalty
        penalty *= parameters  # no dot product: with a stochastic solver, BLAS's threads would spin beside the kernels'
        return float(loss / self.divisor + 0.5 * penalty.sum())


class _OnKernels(BaseMultilayerPerceptron):
    """The methods of scikit-learn's networks that compute, with its own as the fallback."""

    _no_improvement_count: int

    def _runs_on_kernels(self, X: Any) -> bool:
        dense = isinstance(X, np.ndarray) and (X.dtype.char in "fd" or X.dtype.kind in "iu")
        return dense and self.activation == "relu" and (self.loss, self.out_activation_) in LOSSES

    def _forward_pass_fast(self, X: Any, check_input: bool = True) -> Array:
        if check_input:
            X = validate_data(self, X, accept_sparse=["csr", "csc"], reset=False)
        if X.shape[0] < LEAST_PREDICTIONS or not self._runs_on_kernels(X):
            return super()._forward_pass_fast(X, check_input=False)
        all_weights = [coefs.T for coefs in self.coefs_]
        output = predict(X.T, all_weights, self.intercepts_, num_threads=_num_threads()).T
        ACTIVATIONS[self.out_activation_](output)  # before the copy: a softmax of ten rows is faster than of columns
        return np.ascontiguousarray(output)

    def _fit_lbfgs(self, X: Any, y: Array, sample_weight: Array | None, *rest: Any) -> None:
        if not self._runs_on_kernels(X):
            super()._fit_lbfgs(X, y, sample_weight, *rest)
            return
        network = _Network(self, self._pack().dtype)
        X = X.astype(network.workspace.dtype, copy=False)
        # scikit-learn hands these arguments on to _loss_grad_lbfgs; the first of the rest is scratch space in its own.
        with _one_blas_thread():
            super()._fit_lbfgs(X, network.target(y), sample_weight, network, *rest[1:])
        self._pack()

    def _loss_grad_lbfgs(self, vector: Array, X: Any, y: Array, sample_weight: Any, *rest: Any) -> Any:
        network, *_ = rest
        if not isinstance(network, _Network):
            return super()._loss_grad_lbfgs(vector, X, y, sample_weight, *rest)
        self._unpack(vector)
        parameters = self._pack()
        gradient = np.empty_like(parameters)
        loss = network.differentiate(X, y, sample_weight, parameters, gradient)
        all_dl_dweights, all_dl_dbiases = unpack(gradient, network.workspace.layer_sizes)
        return loss, np.concatenate([array.T.ravel() for array in all_dl_dweights + all_dl_dbiases])

    def _fit_stochastic(self, X: Any, y: Array, sample_weight: Array | None, *rest: Any) -> None:
        """scikit-learn's training loop; parameters, gradient and the optimiser's state are one vector each."""
        *_, incremental = rest
        if not self._runs_on_kernels(X) or (self.early_stopping and incremental):  # the latter raises an error there
            super()._fit_stochastic(X, y, sample_weight, *rest)
            return
        if not incremental or not hasattr(self, "_optimizer"):
            self._optimizer = self._make_optimizer()
        training, validation = (X, y, sample_weight), (None, None, None)
        if self.early_stopping:
            training, validation = self._hold_out(*training)
        epoch = self._make_epoch(*training)
        try:
            self.n_iter_ = 0
            for _ in range(self.max_iter):
                self.loss_ = epoch()
                self.n_iter_ += 1
                self.t_ += len(training[0])
                self.loss_curve_.append(self.loss_)
                if self.verbose:
                    print(f"Iteration {self.n_iter_}, loss = {self.loss_:.8f}")
                self._update_no_improvement_count(self.early_stopping, *validation)
                self._optimizer.iteration_ends(self.t_)
                if incremental or self._should_stop():
                    break
            else:
                message = f"Maximum iterations ({self.max_iter}) reached and the optimization hasn't converged yet."
                warnings.warn(f"Stochastic Optimizer: {message}", ConvergenceWarning, stacklevel=2)
        except KeyboardInterrupt:
            warnings.warn("Training interrupted by user.", stacklevel=2)
        if self.early_stopping:
            self.coefs_, self.intercepts_ = self._best_coefs, self._best_intercepts
            self._pack()

    def _make_optimizer(self) -> Any:
        parameters = self.coefs_ + self.intercepts_
        if self.solver == "adam":
            return AdamOptimizer(parameters, self.learning_rate_init, self.beta_1, self.beta_2, self.epsilon)
        schedule = self.learning_rate, self.momentum, self.nesterovs_momentum, self.power_t
        return SGDOptimizer(parameters, self.learning_rate_init, *schedule)

    def _hold_out(self, X: Any, y: Any, sample_weight: Any) -> tuple[Any, Any]:
        """Training and validation data: X, y and sample_weight each."""
        given = [array for array in (X, y, sample_weight) if array is not None]
        stratify = y if is_classifier(self) and self.n_outputs_ == 1 else None
        options = {"random_state": self._random_state, "test_size": self.validation_fraction, "stratify": stratify}
        parts = train_test_split(*given, **options)
        training, validation = parts[::2], parts[1::2]
        if len(validation[0]) < 2:
            raise ValueError(
                "The validation set is too small. Increase 'validation_fraction' or the size of your dataset."
            )
        if is_classifier(self):
            validation[1] = self._label_binarizer.inverse_transform(validation[1])
        return [*training, None][:3], [*validation, None][:3]

    def _make_epoch(self, X: Array, y: Array, sample_weight: Array | None) -> Callable[[], np.float64]:
        """A function that goes through the data once, updates the parameters, and returns the mean loss."""
        parameters = self._pack()
        gradient = np.empty_like(parameters)
        network = _Network(self, parameters.dtype)
        update = _make_update(self._optimizer, parameters, gradient)
        X, target = X.astype(parameters.dtype, copy=False), network.target(y)
        samples, size = len(X), 200 if self.batch_size == "auto" else self.batch_size
        if size > samples and self.batch_size != "auto":
            message = "Got `batch_size` less than 1 or larger than sample size. It is going to be clipped"
            warnings.warn(message, stacklevel=2)
        order = np.arange(samples)

        def epoch() -> np.float64:
            if self.shuffle:
                order[:] = order[self._random_state.permutation(samples)]  # as sklearn.utils.shuffle
            total = np.float64(0.0)
            for first in range(0, samples, size):
                batch = slice(first, first + size)
                rows = order[batch] if self.shuffle else batch
                weight = None if sample_weight is None else sample_weight[rows]
                inputs = X[rows]
                total += len(inputs) * network.differentiate(inputs, target[rows], weight, parameters, gradient)
                update()
            return total / samples

        return epoch

    def _should_stop(self) -> bool:
        if self._no_improvement_count <= self.n_iter_no_change:
            return False
        what = "Validation score did not improve" if self.early_stopping else "Training loss did not improve"
        message = f"{what} more than tol={self.tol:f} for {self.n_iter_no_change} consecutive epochs."
        if self._optimizer.trigger_stopping(message, self.verbose):
            return True
        self._no_improvement_count = 0  # the learning rate was lowered
        return False

    def _pack(self) -> Array:
        """A new vector of all parameters, of which coefs_ and intercepts_ become views.

        The lists stay the same: after early stopping, _best_coefs is coefs_.
        """
        arrays = self.coefs_ + self.intercepts_
        vector = _as_one_vector(arrays)
        self.coefs_[:], self.intercepts_[:] = arrays[: len(self.coefs_)], arrays[len(self.coefs_) :]
        return vector


@contextlib.contextmanager
def _one_blas_thread() -> Iterator[None]:
    """Let BLAS have one thread: SciPy's operations on more than 10,000 elements start all of its threads, which then
    spin beside those of the kernels.

    A fit that begins while another one has set the limit leaves it alone: two would restore it in the wrong order.
    Measured: without the limit, fits by L-BFGS of the digits took 1.3 (128 units) to 1.5 times as long (512 units), on
    two threads (Zen 4, 2026-11-28).
    """
    if not _BLAS.acquire(blocking=False):
        yield
        return
    try:
        with _get_threadpool_controller().limit(limits=1, user_api="blas"):
            yield
    finally:
        _BLAS.release()


class MLPClassifier(_OnKernels, neural_network.MLPClassifier):
    """scikit-learn's MLPClassifier, trained and evaluated on this package's kernels.

    Parameters, attributes and methods are those of :class:`sklearn.neural_network.MLPClassifier`, and so are losses and
    predictions, up to rounding. The default ``activation="relu"`` on dense data runs on the kernels. Other activations
    and sparse matrices run scikit-learn's own code.

    Notes
    -----
    The cross-entropy is computed from the raw output. scikit-learn computes it from probabilities, which it clips to
    2.2e-16 (float64) or 1.2e-7 (float32): a sample that is classified wrongly with more certainty costs less there.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from fastbackprop.sklearn import MLPClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> model = MLPClassifier((16,), solver="lbfgs", alpha=0.1, random_state=0).fit(X, y)
    >>> bool(model.score(X, y) > 0.95)
    True
    """


class MLPRegressor(_OnKernels, neural_network.MLPRegressor):
    """scikit-learn's MLPRegressor, trained and evaluated on this package's kernels.

    Parameters, attributes and methods are those of :class:`sklearn.neural_network.MLPRegressor`, and so are losses and
    predictions, up to rounding. The default ``activation="relu"`` and ``loss="squared_error"`` on dense data run on the
    kernels. Other activations, the Poisson loss and sparse matrices run scikit-learn's own code.

    Examples
    --------
    >>> import numpy as np
    >>> from fastbackprop.sklearn import MLPRegressor
    >>> X = np.linspace(-1, 1, 200).reshape(-1, 1)
    >>> model = MLPRegressor(hidden_layer_sizes=(16,), solver="lbfgs", max_iter=2000, random_state=0)
    >>> model = model.fit(X, np.sin(3 * X[:, 0]))
    >>> bool(model.score(X, np.sin(3 * X[:, 0])) > 0.99)
    True
    """


def _num_threads() -> int | None:
    """None, the default of this package; in a worker of joblib, the share of the CPUs that joblib gives to it.

    joblib sets NUMBA_NUM_THREADS in its processes. Its threads get no share: each of them computes alone.
    """
    backend, _ = get_active_backend()
    if backend.nesting_level and "FASTBACKPROP_NUM_THREADS" not in os.environ:
        return int(os.environ.get("NUMBA_NUM_THREADS", "1"))
    return None


def _as_one_vector(arrays: list[Array]) -> Array:
    """Replace coefs_ and intercepts_, or an optimiser's state of them, by views of a new vector in `pack` order."""
    layers = len(arrays) // 2
    units = [len(arrays[0]), *map(len, arrays[layers:])]
    vector = pack([coefs.T for coefs in arrays[:layers]], arrays[layers:])
    all_weights, all_biases = unpack(vector, units)
    arrays[:] = [weights.T for weights in all_weights] + [biases[:, 0] for biases in all_biases]
    return vector


def _make_update(optimizer: Any, parameters: Array, gradient: Array) -> Callable[[], None]:
    """scikit-learn's update of the parameters: the same operations on each element, but in place."""
    if isinstance(optimizer, AdamOptimizer):
        state = [_as_one_vector(arrays) for arrays in (optimizer.ms, optimizer.vs)]
        return functools.partial(_update_adam, optimizer, parameters, gradient, *state)
    return functools.partial(_update_sgd, optimizer, parameters, gradient, _as_one_vector(optimizer.velocities))


def _update_adam(optimizer: Any, parameters: Array, gradient: Array, mean: Array, square: Array) -> None:
    optimizer.t += 1
    correction = math.sqrt(1 - optimizer.beta_2**optimizer.t) / (1 - optimizer.beta_1**optimizer.t)
    optimizer.learning_rate = optimizer.learning_rate_init * correction
    mean *= optimizer.beta_1
    mean += (1 - optimizer.beta_1) * gradient
    square *= optimizer.beta_2
    square += (1 - optimizer.beta_2) * (gradient * gradient)
    scale = np.sqrt(square)
    scale += optimizer.epsilon
    step = -optimizer.learning_rate * mean
    step /= scale
    parameters += step


def _update_sgd(optimizer: Any, parameters: Array, gradient: Array, velocity: Array) -> None:
    step = optimizer.learning_rate * gradient
    velocity *= optimizer.momentum
    velocity -= step
    if optimizer.nesterov:
        parameters += optimizer.momentum * velocity - step
    else:
        parameters += velocity
