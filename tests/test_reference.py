"""The oracle, against the notebooks' printed numbers, complex steps and a loop over samples."""

import ast
import inspect

import numpy as np
import pytest

from benchmarks.cases import batch, network
from fastbackprop import reference
from fastbackprop.cli.demonstration import notebook_network
from tests.conftest import target_of

FIRST_BIASES = {
    "least_squares": [-4.486, 4.947, 6.812, -3.883, -24.935, 0.0],
    "half_least_squares": [-2.243, 2.474, 3.406, -1.942, -12.468, 0.0],
}
LOSS = {"least_squares": 327.371, "half_least_squares": 163.685}


@pytest.mark.parametrize("loss", LOSS)
def test_numbers_of_the_notebooks(loss):
    all_weights, all_biases = notebook_network()
    net_input, y = np.full((1, 1), 1.2), np.full((1, 1), 20.0)
    got, _, all_dl_dbiases = reference.loss_and_gradients(net_input, all_weights, all_biases, y, loss=loss)
    assert round(reference.predict(net_input, all_weights, all_biases).item(), 3) == 1.907
    assert round(got, 3) == LOSS[loss]
    np.testing.assert_allclose(all_dl_dbiases[0].ravel(), FIRST_BIASES[loss], atol=5.1e-4)


@pytest.mark.parametrize("loss", reference.LOSSES)
def test_every_derivative_is_a_central_difference(loss):
    layer_sizes = (3, 5, 4, 2)
    all_weights, all_biases = network(layer_sizes)
    net_input, y = batch(layer_sizes, 7)
    y = target_of(loss, y)
    _, *gradients, dl_dinput = reference.loss_and_gradients(
        net_input, all_weights, all_biases, y, loss=loss, input_gradient=True
    )

    def value():
        return reference.loss_value(reference.predict(net_input, all_weights, all_biases), y, loss)

    arrays = [*all_weights, *all_biases, net_input]
    for array, gradient in zip(arrays, [*gradients[0], *gradients[1], dl_dinput], strict=True):
        for index in np.ndindex(array.shape):
            before = array[index]
            array[index] = before + 1e-6
            right = value()
            array[index] = before - 1e-6
            left = value()
            array[index] = before
            assert gradient[index] == pytest.approx((right - left) / 2e-6, rel=1e-5, abs=1e-6)


def test_a_batch_is_the_sum_of_its_samples():
    layer_sizes = (3, 5, 2)
    all_weights, all_biases = network(layer_sizes)
    net_input, y = batch(layer_sizes, 9)
    weight = np.linspace(-1, 2, 9)
    loss, all_dl_dweights, all_dl_dbiases = reference.loss_and_gradients(
        net_input, all_weights, all_biases, y, reduction="mean", sample_weight=weight
    )
    parts = [
        reference.loss_and_gradients(net_input[:, s : s + 1], all_weights, all_biases, y[:, s : s + 1])
        for s in range(9)
    ]
    total = weight.sum()
    assert loss == pytest.approx(sum(w * part[0] for w, part in zip(weight, parts, strict=True)) / total)
    for got, k in (all_dl_dweights, 1), (all_dl_dbiases, 2):
        for layer, array in enumerate(got):
            expected = sum(w * part[k][layer] for w, part in zip(weight, parts, strict=True)) / total
            np.testing.assert_allclose(array, expected, rtol=1e-12, atol=1e-14)


def test_callables_replace_a_named_loss():
    layer_sizes = (3, 4, 2)
    all_weights, all_biases = network(layer_sizes)
    net_input, y = batch(layer_sizes, 5)
    pair = (lambda o, t: np.sum((o - t) ** 2), lambda o, t: 2 * (o - t))
    got = reference.loss_and_gradients(net_input, all_weights, all_biases, y, loss=pair)
    expected = reference.loss_and_gradients(net_input, all_weights, all_biases, y)
    assert got[0] == pytest.approx(expected[0])
    for g, e in zip(got[1] + got[2], expected[1] + expected[2], strict=True):
        np.testing.assert_allclose(g, e)


def test_imports_numpy_and_nothing_else_of_the_package():
    tree = ast.parse(inspect.getsource(reference))
    imports = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imports |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    assert imports == {"functools", "numpy", "numpy.typing", "collections.abc", "typing"}
