"""The notebooks' six functions, as drop-in replacements."""

import itertools

import numpy as np
import pytest

import fastbackprop as fb
from benchmarks.cases import batch, network
from fastbackprop import reference
from fastbackprop.cli.demonstration import notebook_network
from tests.conftest import assert_close, smooth_batch

DEPTHS = {0: (4, 3), 1: (5, 7, 2), 5: (1, 6, 6, 6, 6, 6, 1), 60: (3, *[8] * 60, 2)}
SAMPLES = [0, 1, 2, 7, 64, 257, 1000]


@pytest.mark.parametrize("samples", SAMPLES)
@pytest.mark.parametrize("depth", DEPTHS)
def test_both_passes_agree_with_the_oracle(depth, samples, dtype):
    layer_sizes = DEPTHS[depth]
    all_weights, all_biases = network(layer_sizes, dtype)
    net_input, y = batch(layer_sizes, samples, dtype)
    tolerance = 1e-4 if dtype == np.float32 and depth == 60 else None
    net_output, all_f, all_h = fb.compute_network_output(net_input, all_weights, all_biases)
    expected = reference.compute_network_output(net_input, all_weights, all_biases)
    assert_close([net_output, all_f, all_h], expected, tolerance)
    for intermediates in False, True:
        # From the same activations, or a unit at its kink in float32 would differ.
        got = fb.backward_pass(all_weights, all_biases, *expected[1:], y, intermediates=intermediates)
        oracle = reference.backward_pass(all_weights, all_biases, *expected[1:], y, intermediates=intermediates)
        assert_close(got, oracle, tolerance)


@pytest.mark.parametrize("width", [1, 2, 5, 6, 7, 12, 13, 24, 63, 64, 65, 130])
def test_widths(width, dtype):
    layer_sizes = (3, width, width + 1, 2)
    all_weights, all_biases = network(layer_sizes, dtype)
    net_input, y = batch(layer_sizes, 70, dtype)
    expected = reference.compute_network_output(net_input, all_weights, all_biases)
    assert_close(fb.compute_network_output(net_input, all_weights, all_biases), expected)
    got = fb.backward_pass(all_weights, all_biases, *expected[1:], y)
    assert_close(got, reference.backward_pass(all_weights, all_biases, *expected[1:], y))


def test_many_samples_on_all_threads(dtype):
    """Several chunks and slices, a last one that is not full."""
    layer_sizes = (2, 6, 6, 1)
    all_weights, all_biases = network(layer_sizes, dtype)
    net_input, y = batch(layer_sizes, 100_001, dtype)
    got = fb.compute_network_output(net_input, all_weights, all_biases)
    expected = reference.compute_network_output(net_input, all_weights, all_biases)
    assert_close(got, expected)
    for intermediates in False, True:
        got = fb.backward_pass(all_weights, all_biases, *expected[1:], y, intermediates=intermediates)
        wide = [[array.astype(np.float64) for array in arrays] for arrays in (all_weights, all_biases, *expected[1:])]
        oracle = reference.backward_pass(*wide, y.astype(np.float64), intermediates=intermediates)
        assert_close([array.astype(np.float64) for part in got for array in part], list(itertools.chain(*oracle)), 5e-6)


def test_numbers_of_the_notebooks():
    all_weights, all_biases = notebook_network()
    net_input, y = np.full((1, 1), 1.2), np.full((1, 1), 20.0)
    net_output, all_f, all_h = fb.compute_network_output(net_input, all_weights, all_biases)
    assert round(net_output.item(), 3) == 1.907
    assert round(float(fb.least_squares_loss(net_output, y)), 3) == 327.371
    _, all_dl_dbiases = fb.backward_pass(all_weights, all_biases, all_f, all_h, y)
    np.testing.assert_allclose(all_dl_dbiases[0].ravel(), [-4.486, 4.947, 6.812, -3.883, -24.935, 0], atol=5.1e-4)
    net_output, all_f, all_h = fb.compute_network_output(net_input, all_weights, all_biases, append_output=True)
    assert len(all_h) == 7
    _, all_dl_dbiases = fb.backward_pass(all_weights, all_biases, all_f, all_h, y, loss=lambda output, y: output - y)
    np.testing.assert_allclose(all_dl_dbiases[0].ravel(), [-2.243, 2.474, 3.406, -1.942, -12.468, 0], atol=5.1e-4)


def test_what_the_lists_hold():
    all_weights, all_biases = network((2, 3, 4, 1))
    net_input, y = batch((2, 3, 4, 1), 5)
    net_output, all_f, all_h = fb.compute_network_output(net_input, all_weights, all_biases)
    assert all_h[0] is net_input
    assert net_output is all_f[2]
    assert len(all_f) == len(all_h) == 3
    *_, appended = fb.compute_network_output(net_input, all_weights, all_biases, append_output=True)
    assert len(appended) == 4
    assert np.array_equal(appended[3], net_output)
    got = fb.backward_pass(all_weights, all_biases, all_f, all_h, y, intermediates=True)
    again = fb.backward_pass(all_weights, all_biases, all_f, all_h, y, intermediates=True)
    for part in [all_f, all_h[1:], *got]:
        for array in part:
            assert type(array) is np.ndarray
            assert array.flags.writeable
    for one, other in zip(itertools.chain(*got), itertools.chain(*again), strict=True):
        assert not np.shares_memory(one, other)
    before = [array.copy() for array in got[0]]
    fb.backward_pass(all_weights, all_biases, all_f, all_h, y + 1)
    assert_close(got[0], before, 0)


def test_lists_may_be_edited_between_the_passes():
    """The mask comes from all_f, the gradient of the weights from all_h, and an appended output is ignored."""
    all_weights, all_biases = network((2, 6, 6, 1))
    net_input, y = batch((2, 6, 6, 1), 30)
    _, all_f, all_h = reference.compute_network_output(net_input, all_weights, all_biases, append_output=True)
    all_h[1] *= 1.5
    all_h[2][all_h[2] > 1] = -3.0
    all_h[3] = "not looked at"
    all_f[0] = all_f[0][:, ::-1]
    got = fb.backward_pass(all_weights, all_biases, tuple(all_f), all_h, y)
    assert_close(got, reference.backward_pass(all_weights, all_biases, all_f, all_h, y))
    all_weights[1] *= 2
    got = fb.backward_pass(all_weights, all_biases, all_f, all_h, y)
    assert_close(got, reference.backward_pass(all_weights, all_biases, all_f, all_h, y))


def test_losses_of_the_backward_pass(dtype):
    layer_sizes = (2, 6, 3)
    all_weights, all_biases = network(layer_sizes, dtype)
    net_input, y = batch(layer_sizes, 9, dtype)
    _, all_f, all_h = reference.compute_network_output(net_input, all_weights, all_biases)
    seen = []

    def own(output, target):
        seen.append((output, target))
        return (output - target) / target.shape[1]

    for loss in "least_squares", "half_least_squares", fb.d_loss_d_output, own:
        got = fb.backward_pass(all_weights, all_biases, all_f, all_h, y, loss=loss)
        assert_close(got, reference.backward_pass(all_weights, all_biases, all_f, all_h, y, loss=loss))
    assert seen[0][0] is all_f[1]
    assert seen[0][1] is y
    for target in y[:, :1], y[:1, :1], 3, 0.5:
        got = fb.backward_pass(all_weights, all_biases, all_f, all_h, target)
        expected = reference.backward_pass(all_weights, all_biases, all_f, all_h, np.asarray(target, dtype))
        assert_close(got, expected)


def test_biases_of_either_shape():
    all_weights, all_biases = network((2, 6, 1))
    net_input, y = batch((2, 6, 1), 9)
    flat = [array.ravel() for array in all_biases]
    _, all_f, all_h = fb.compute_network_output(net_input, all_weights, flat)
    got = fb.backward_pass(all_weights, flat, all_f, all_h, y)
    assert_close(got, reference.backward_pass(all_weights, flat, all_f, all_h, y))
    assert got[1][0].shape == (6,)


def test_small_functions_keep_shape_and_dtype(dtype):
    values = np.array([[-2.0, -0.0, 0.0, 3.0, np.nan, np.inf, -np.inf]], dtype)
    np.testing.assert_array_equal(fb.ReLU(values), np.array([[0, 0, 0, 3, np.nan, np.inf, 0]], dtype), strict=True)
    expected = np.array([[0, 0, 0, 1, np.nan, 1, 0]], dtype)
    np.testing.assert_array_equal(fb.indicator_function(values), expected, strict=True)
    output, y = np.array([[1.0, -2.0]], dtype), np.array([[0.5, 1.0]], dtype)
    assert fb.least_squares_loss(output, y) == 9.25
    np.testing.assert_array_equal(fb.d_loss_d_output(output, y), np.array([[1, -6]], dtype), strict=True)
    assert fb.ReLU(-1.5) == 0
    assert fb.indicator_function(2.0) == 1
    assert values[0, 0] == -2


def test_integers_count_as_float64():
    weights, biases = [np.array([[1, -2]])], [np.array([[3]])]
    net_output, _, _ = fb.compute_network_output(np.array([[1, 2], [3, 4]]), weights, biases)
    np.testing.assert_array_equal(net_output, np.array([[-2.0, -3.0]]), strict=True)


@pytest.mark.parametrize("samples", [2, 129, 257, 513, 1025])
def test_a_last_slice_of_one_sample(samples, dtype, shared_from):
    shared_from(2**19)
    for layer_sizes in (2, 5, 3), (3, 400, 400, 2):
        all_weights, all_biases = network(layer_sizes, dtype)
        net_input, y = smooth_batch(layer_sizes, samples, all_weights, all_biases, dtype)
        output, all_f, all_h = fb.compute_network_output(net_input, all_weights, all_biases)
        expected_output, expected_f, expected_h = reference.compute_network_output(net_input, all_weights, all_biases)
        assert_close([output, all_f, all_h], [expected_output, expected_f, expected_h])
        got = fb.backward_pass(all_weights, all_biases, all_f, all_h, y, intermediates=True)
        expected = reference.backward_pass(all_weights, all_biases, all_f, all_h, y, intermediates=True)
        assert_close(got, expected)
