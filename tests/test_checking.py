"""The gradient checker finds planted faults, and takes no kink for one."""

import re

import numpy as np
import pytest

import fastbackprop as fb
from benchmarks.cases import batch, network
from fastbackprop import reference
from tests.conftest import target_of

LAYER_SIZES = (3, 6, 6, 6, 2)


def gradients_of(all_weights, all_biases, net_input, y):
    _, *gradients = reference.loss_and_gradients(net_input, all_weights, all_biases, y)
    return gradients


def right(*problem):
    return gradients_of(*problem)


def missing_mask(all_weights, all_biases, net_input, y):
    _, all_f, all_h = reference.compute_network_output(net_input, all_weights, all_biases)
    all_f[1] = np.abs(all_f[1])
    return reference.backward_pass(all_weights, all_biases, all_f, all_h, y)


def swapped_layers(*problem):
    all_dl_dweights, all_dl_dbiases = gradients_of(*problem)
    all_dl_dweights[1], all_dl_dweights[2] = all_dl_dweights[2], all_dl_dweights[1]
    return all_dl_dweights, all_dl_dbiases


def error_of_a_two_thousandth(*problem):
    all_dl_dweights, all_dl_dbiases = gradients_of(*problem)
    all_dl_dbiases[1] *= 1.0005
    return all_dl_dweights, all_dl_dbiases


def dropped_sample(all_weights, all_biases, net_input, y):
    return gradients_of(all_weights, all_biases, net_input[:, :-1], y[:, :-1])


def one_wrong_sign(*problem):
    all_dl_dweights, all_dl_dbiases = gradients_of(*problem)
    index = np.unravel_index(np.argmax(np.abs(all_dl_dweights[3])), all_dl_dweights[3].shape)
    all_dl_dweights[3][index] *= -1
    return all_dl_dweights, all_dl_dbiases


FAULTS = [missing_mask, swapped_layers, error_of_a_two_thousandth, dropped_sample, one_wrong_sign]


@pytest.mark.parametrize("every_entry", [True, False])
@pytest.mark.parametrize("fault", [right, *FAULTS], ids=lambda fault: fault.__name__)
def test_planted_faults_are_found(fault, every_entry, dtype):
    all_weights, all_biases = network(LAYER_SIZES, dtype)
    net_input, y = batch(LAYER_SIZES, 20, dtype)
    gradients = fault(all_weights, all_biases, net_input, y)
    report = fb.check_gradients(net_input, all_weights, all_biases, y, gradients=gradients, every_entry=every_entry)
    assert report.passed == (fault is right), str(report)
    assert bool(report.failures) == (fault is not right)
    assert len(report.entries) == (sum(a.size for a in all_weights + all_biases) if every_entry else 8)


@pytest.mark.parametrize(
    "loss", [*reference.LOSSES, (lambda o, y: np.sum((o - y) ** 4), lambda o, y: 4 * (o - y) ** 3)]
)
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_packages_own_gradients_pass(loss, reduction, dtype):
    if not isinstance(loss, str) and reduction == "mean":
        pytest.skip("callables reduce by themselves")
    all_weights, all_biases = network(LAYER_SIZES, dtype)
    net_input, y = batch(LAYER_SIZES, 20, dtype)
    y = target_of(loss, y)
    weight = np.linspace(1, 2, 20) if isinstance(loss, str) else None
    fb.check_gradients(
        net_input,
        all_weights,
        all_biases,
        y,
        loss=loss,
        reduction=reduction,
        sample_weight=weight,
        raise_on_failure=True,
    )


def test_large_networks_are_checked_along_directions():
    layer_sizes = (50, 200, 200, 10)
    all_weights, all_biases = network(layer_sizes)
    net_input, y = batch(layer_sizes, 30)
    report = fb.check_gradients(net_input, all_weights, all_biases, y, raise_on_failure=True)
    assert [entry.index for entry in report.entries] == [None] * 6
    again = fb.check_gradients(net_input, all_weights, all_biases, y)
    assert again.entries == report.entries


def test_a_failure_names_layer_parameter_index_values_and_tolerance():
    all_weights, all_biases = network(LAYER_SIZES)
    net_input, y = batch(LAYER_SIZES, 5)
    gradients = gradients_of(all_weights, all_biases, net_input, y)
    expected = gradients[0][2][3, 4]
    gradients[0][2][3, 4] += 1
    report = fb.check_gradients(net_input, all_weights, all_biases, y, gradients=gradients)
    (failure,) = report.failures
    assert (failure.layer, failure.parameter, failure.index) == (2, "all_weights", (3, 4))
    assert failure.got == pytest.approx(expected + 1)
    assert failure.expected == pytest.approx(expected, abs=1e-6)
    assert 0 < failure.tolerance < 1e-3
    message = re.escape("all_weights[2] [3, 4]: got ")
    with pytest.raises(AssertionError, match=message):
        report.raise_if_failed()
    with pytest.raises(AssertionError, match="1 derivatives are WRONG"):
        fb.check_gradients(net_input, all_weights, all_biases, y, gradients=gradients, raise_on_failure=True)


def test_a_kink_between_the_points_is_no_failure():
    all_weights = [np.array([[1.0]]), np.array([[2.0]])]
    all_biases = [np.array([[-1.0]]), np.array([[0.0]])]
    report = fb.check_gradients(np.array([[1.0]]), all_weights, all_biases, 5.0)
    assert not report.failures
    assert [(entry.parameter, entry.layer) for entry in report.kinks] == [("all_weights", 0), ("all_biases", 0)]
    assert "2 derivatives lie at a ReLU kink" in str(report)
    assert repr(report) == "<Report: passed, 4 entries, 0 failures, 2 at kinks>"
    assert report.passed


@pytest.mark.parametrize("every_entry", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_a_layer_that_starts_at_zero_is_at_its_kinks(seed, every_entry, dtype):
    """Samples switch on at both sides, and what they add to the second difference cancels."""
    rng = np.random.default_rng(seed)
    net_input, y = rng.standard_normal((3, 64)).astype(dtype), rng.standard_normal((2, 64)).astype(dtype)
    all_weights = [np.zeros((8, 3), dtype), rng.standard_normal((2, 8)).astype(dtype)]
    all_biases = [np.zeros((8, 1), dtype), rng.standard_normal((2, 1)).astype(dtype)]
    report = fb.check_gradients(net_input, all_weights, all_biases, y, every_entry=every_entry)
    assert report.passed, str(report)
    assert {entry.layer for entry in report.kinks} == {0}
    _, *gradients = fb.loss_and_gradients(net_input, all_weights, all_biases, y)
    assert not gradients[0][0].any()
    gradients[0][0][:] = gradients[1][0][:] = 1e5
    wrong = fb.check_gradients(net_input, all_weights, all_biases, y, gradients=gradients, every_entry=every_entry)
    assert {entry.layer for entry in wrong.failures} == {0}
    assert len(wrong.failures) == (32 if every_entry else 2)


def test_both_conventions_for_the_derivative_at_zero_are_at_a_kink():
    """W_0 = 0, W_1 = 1, x = (1, -1), y = (-1, 1): the loss is (s + 1)^2 + 1 at both sides of s = 0."""
    net_input, y = np.array([[1.0, -1.0]]), np.array([[-1.0, 1.0]])
    problem = net_input, [np.zeros((1, 1)), np.ones((1, 1))], [np.zeros((1, 1)), np.zeros((1, 1))], y
    for value, state in (0.0, "kink"), (4.0, "kink"), (2.0, "agrees"), (-0.1, "WRONG"), (4.1, "WRONG"):
        _, *gradients = fb.loss_and_gradients(*problem)
        gradients[0][0][0, 0] = value
        entry = fb.check_gradients(*problem, gradients=gradients).entries[0]
        assert str(entry).endswith(state)


def test_a_kink_does_not_excuse_an_error():
    """Zero biases and one sample of zeros: every unit of the first layer is at its kink."""
    all_weights, all_biases = network((2, 5, 1))
    all_biases = [np.zeros_like(array) for array in all_biases]
    net_input, y = batch((2, 5, 1), 9)
    net_input[:, 0] = 0
    gradients = gradients_of(all_weights, all_biases, net_input, y)
    right_report = fb.check_gradients(net_input, all_weights, all_biases, y, gradients=gradients)
    assert right_report.passed
    assert len(right_report.kinks) == 5
    gradients[1][0] *= 100
    assert not fb.check_gradients(net_input, all_weights, all_biases, y, gradients=gradients).passed


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_near_a_minimum_right_gradients_pass(reduction, dtype):
    """There the terms cancel, and what is left of the gradient is rounding."""
    rng = np.random.default_rng(0)
    all_weights, all_biases = network((3, 8, 2), dtype)
    net_input = rng.standard_normal((3, 200)).astype(dtype)
    y = reference.predict(net_input, all_weights, all_biases) + 1e-4 * rng.standard_normal((2, 200)).astype(dtype)
    for every_entry in True, False:
        fb.check_gradients(
            net_input,
            all_weights,
            all_biases,
            y,
            reduction=reduction,
            every_entry=every_entry,
            raise_on_failure=True,
        )


def test_nothing_that_could_be_compared_is_no_pass():
    report = fb.check_gradients(np.ones((1, 0)), [np.ones((1, 1))], [np.ones((1, 1))], 0.0)
    assert report.passed
    assert fb.checking.Report([]).passed is False


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("every_entry", [True, False])
def test_what_is_not_finite_is_a_failure(value, every_entry):
    all_weights, all_biases = network((2, 1))
    net_input, y = batch((2, 1), 5)
    gradients = gradients_of(all_weights, all_biases, net_input, y)
    gradients[0][0][0, 1] = value
    report = fb.check_gradients(net_input, all_weights, all_biases, y, gradients=gradients, every_entry=every_entry)
    assert len(report.failures) == 1
    assert "not finite" in str(report)
    assert str(report).endswith("1 derivatives are WRONG.")
    gradients[1][0][:] = value
    assert not fb.check_gradients(net_input, all_weights, all_biases, y, gradients=gradients).passed


def test_losses_that_are_not_finite_leave_nothing_to_compare():
    all_weights, all_biases = network((2, 1))
    net_input, y = batch((2, 1), 5)
    net_input[0, 0] = np.nan
    report = fb.check_gradients(net_input, all_weights, all_biases, y)
    assert not report.passed
    assert str(report).endswith("3 derivatives could not be compared: differences of losses are not finite.")
    report.entries.append(fb.checking.Entry(0, "all_weights", (0, 0), 1.0, 2.0, 0.1, False))
    assert str(report).endswith("are not finite. 1 derivatives are WRONG.")


def test_gradients_of_another_shape_are_refused():
    all_weights, all_biases = network((2, 3, 1))
    net_input, y = batch((2, 3, 1), 5)
    gradients = gradients_of(all_weights, all_biases, net_input, y)
    gradients[1][0] = gradients[1][0].ravel()
    with pytest.raises(ValueError, match=re.escape("gradients[1][0] has shape (3,); expected (3, 1), its parameter's")):
        fb.check_gradients(net_input, all_weights, all_biases, y, gradients=gradients)
