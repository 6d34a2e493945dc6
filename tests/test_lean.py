"""Lean NumPy, against the oracle."""

import numpy as np
import pytest

from benchmarks.cases import batch, network
from fastbackprop import lean, reference
from tests.conftest import assert_close, target_of

LAYER_SIZES = (3, 9, 4, 7, 5, 2)
SAMPLES = 40


@pytest.fixture
def problem(dtype):
    net_input, y = batch(LAYER_SIZES, SAMPLES, dtype)
    return net_input, *network(LAYER_SIZES, dtype), y


def assert_same_gradients(got, expected):
    assert got[0] == pytest.approx(expected[0], rel=1e-5)
    assert_close(got[1:], expected[1:])


@pytest.mark.parametrize("loss", reference.LOSSES)
@pytest.mark.parametrize("input_gradient", [False, True])
def test_gradients(problem, loss, input_gradient):
    problem = *problem[:3], target_of(loss, problem[3]).astype(problem[0].dtype)
    got = lean.loss_and_gradients(*problem, loss=loss, input_gradient=input_gradient)
    assert_same_gradients(got, reference.loss_and_gradients(*problem, loss=loss, input_gradient=input_gradient))


@pytest.mark.parametrize("layer_sizes", [(2, 1), (3, 4, 1), LAYER_SIZES])
def test_buffers_are_used_again(layer_sizes, dtype):
    kept = lean.buffers(layer_sizes, SAMPLES, dtype)
    for seed in 1, 2:
        net_input, y = batch(layer_sizes, SAMPLES, dtype, seed)
        problem = net_input, *network(layer_sizes, dtype, seed), y
        assert_same_gradients(lean.loss_and_gradients(*problem, kept=kept), reference.loss_and_gradients(*problem))
        activations = reference.compute_network_output(*problem[:3])[2][1:]
        assert_close(kept[0][:-1], activations)


def test_passes(problem):
    *network_and_input, y = problem
    expected = reference.compute_network_output(*network_and_input)
    got = lean.compute_network_output(*network_and_input)
    assert_close(got, expected)
    assert_close(lean.predict(*network_and_input), expected[0])
    parameters = network_and_input[1:]
    assert_close(lean.backward_pass(*parameters, *got[1:], y), reference.backward_pass(*parameters, *expected[1:], y))
    assert_close(got, expected)  # as before: the notebooks go on with what they were given


def test_nothing_that_is_passed_is_changed(problem):
    before = [np.copy(array) for array in (problem[0], *problem[1], *problem[2], problem[3])]
    lean.loss_and_gradients(*problem, input_gradient=True)
    for array, copy in zip((problem[0], *problem[1], *problem[2], problem[3]), before, strict=True):
        np.testing.assert_array_equal(array, copy)
