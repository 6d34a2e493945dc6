"""Rows as samples, and weights (in, out): gradients against those of scikit-learn's networks."""

import numpy as np
import pytest

import fastbackprop as fb
from tests.conftest import assert_close

neural_network = pytest.importorskip("sklearn.neural_network", reason="see the extra `examples`")

SAMPLES, INPUTS, HIDDEN = 300, 6, (12, 9)
STEP = {
    "hidden_layer_sizes": HIDDEN,
    "solver": "sgd",
    "learning_rate_init": 1.0,
    "momentum": 0.0,
    "alpha": 0.0,
    "batch_size": SAMPLES,
    "random_state": 0,
}
"""With these, each call of partial_fit subtracts the gradient of the whole batch from the parameters."""


def labels(rng, classes):
    y = rng.integers(classes, size=SAMPLES)
    y[:classes] = range(classes)
    return y


CASES = {
    "regression": (lambda rng: rng.normal(size=(SAMPLES, 2)), "least_squares", 1 / (2 * SAMPLES), 1 / 2),
    "half": (lambda rng: rng.normal(size=SAMPLES), "half_least_squares", 1 / SAMPLES, 1),
    "classes": (lambda rng: labels(rng, 5), "softmax_cross_entropy", 1 / SAMPLES, 1),
    "two classes": (lambda rng: labels(rng, 2), "binary_cross_entropy", 1 / SAMPLES, 1),
    "multilabel": (lambda rng: rng.integers(2, size=(SAMPLES, 3)), "binary_cross_entropy", 1 / SAMPLES, 1),
}
"""A target in rows, the loss, and scikit-learn's over ours: of the gradient, and then of the loss.

Its loss of a regression is the mean over the outputs as well; its gradient is not that of a mean over the outputs.
"""


@pytest.mark.parametrize("name", CASES)
def test_gradients_of_scikit_learn(name):
    draw, loss_name, factor, loss_factor = CASES[name]
    rng = np.random.default_rng(0)
    X, target = rng.normal(size=(SAMPLES, INPUTS)), draw(rng)
    if "least_squares" in loss_name:
        model = neural_network.MLPRegressor(**STEP).partial_fit(X, target)
    else:
        classes = np.unique(target) if target.ndim == 1 else np.arange(target.shape[1])
        model = neural_network.MLPClassifier(**STEP).partial_fit(X, target, classes=classes)
    coefs, intercepts = [w.copy() for w in model.coefs_], [b.copy() for b in model.intercepts_]
    model.partial_fit(X, target)
    expected_weights = [before - after for before, after in zip(coefs, model.coefs_, strict=True)]
    expected_biases = [before - after for before, after in zip(intercepts, model.intercepts_, strict=True)]

    all_weights, y = [w.T for w in coefs], target.T
    assert all(np.shares_memory(w, c) for w, c in zip(all_weights, coefs, strict=True))
    loss, all_dl_dweights, all_dl_dbiases = fb.loss_and_gradients(X.T, all_weights, intercepts, y, loss=loss_name)
    assert_close([factor * g.T for g in all_dl_dweights], expected_weights, 1e-12)
    assert_close([factor * g for g in all_dl_dbiases], expected_biases, 1e-12)
    assert factor * loss_factor * loss == pytest.approx(model.loss_, rel=1e-12)
    if factor == 1 / SAMPLES:
        mean = fb.loss_and_gradients(X.T, all_weights, intercepts, y, loss=loss_name, reduction="mean")
        assert mean[0] == pytest.approx(factor * loss, rel=1e-12)
        assert_close([g.T for g in mean[1]], expected_weights, 1e-12)


def test_predictions_of_scikit_learn():
    rng = np.random.default_rng(1)
    X, target = rng.normal(size=(SAMPLES, INPUTS)), rng.normal(size=(SAMPLES, 2))
    model = neural_network.MLPRegressor(**STEP).partial_fit(X, target)
    got = fb.predict(X.T, [w.T for w in model.coefs_], model.intercepts_)
    assert_close(got.T, model.predict(X))
