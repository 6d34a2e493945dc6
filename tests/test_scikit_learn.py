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


def scikit_learn_gradient(model, X, target):
    """Its parameters, their gradient, and its loss there: from what a call of partial_fit changes."""
    if isinstance(model, neural_network.MLPClassifier):
        labels = target.shape[1] if target.ndim == 2 else np.max(target) + 1
        model.partial_fit(X, target, classes=np.arange(labels))
    else:
        model.partial_fit(X, target)
    before = [array.copy() for array in model.coefs_], [array.copy() for array in model.intercepts_]
    model.partial_fit(X, target)
    after = model.coefs_, model.intercepts_
    gradient = [[b - a for b, a in zip(*pair, strict=True)] for pair in zip(before, after, strict=True)]
    return before, gradient, model.loss_


@pytest.mark.parametrize(("outputs", "loss", "factor"), [(2, "least_squares", 0.5), (1, "half_least_squares", 1.0)])
def test_gradients_of_mlp_regressor(outputs, loss, factor):
    rng = np.random.default_rng(0)
    X, target = rng.normal(size=(SAMPLES, INPUTS)), rng.normal(size=(SAMPLES, outputs)).squeeze()
    (coefs, intercepts), expected, expected_loss = scikit_learn_gradient(neural_network.MLPRegressor(**STEP), X, target)
    value, *got = fb.loss_and_gradients(X.T, [w.T for w in coefs], intercepts, target.T, loss=loss)
    assert_close([factor / SAMPLES * g.T for g in got[0]], expected[0], 1e-12)
    assert_close([factor / SAMPLES * g for g in got[1]], expected[1], 1e-12)
    # Its loss is the mean over the outputs too; its gradient is not that of a mean over the outputs.
    assert factor / SAMPLES * value / outputs == pytest.approx(expected_loss, rel=1e-12)


@pytest.mark.parametrize(
    ("loss", "shape", "classes"),
    [
        ("softmax_cross_entropy", SAMPLES, 5),
        ("binary_cross_entropy", SAMPLES, 2),
        ("binary_cross_entropy", (SAMPLES, 3), 2),
    ],
    ids=["classes", "two classes", "several labels"],
)
def test_gradients_of_mlp_classifier(loss, shape, classes):
    rng = np.random.default_rng(0)
    X, target = rng.normal(size=(SAMPLES, INPUTS)), rng.integers(classes, size=shape)
    (coefs, intercepts), expected, expected_loss = scikit_learn_gradient(
        neural_network.MLPClassifier(**STEP), X, target
    )
    value, *got = fb.loss_and_gradients(X.T, [w.T for w in coefs], intercepts, target.T, loss=loss, reduction="mean")
    assert_close([g.T for g in got[0]], expected[0], 1e-12)
    assert_close(got[1], expected[1], 1e-12)
    assert value == pytest.approx(expected_loss, rel=1e-12)


def test_predictions_of_scikit_learn():
    rng = np.random.default_rng(1)
    X, target = rng.normal(size=(SAMPLES, INPUTS)), rng.normal(size=(SAMPLES, 2))
    model = neural_network.MLPRegressor(**STEP).partial_fit(X, target)
    got = fb.predict(X.T, [w.T for w in model.coefs_], model.intercepts_)
    assert_close(got.T, model.predict(X))
