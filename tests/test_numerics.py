"""NaN, infinities, zeros, and how accurate float32 is."""

import itertools

import numpy as np
import pytest

import fastbackprop as fb
from benchmarks.cases import batch, network
from fastbackprop import reference
from tests.conftest import assert_close, assert_same_bits, smooth_batch

LAYER_SIZES = (3, 7, 6, 2)


def both(net_input, all_weights, all_biases, y):
    """Everything from the package and from the oracle."""
    results = []
    for module in fb, reference:
        fused = module.loss_and_gradients(net_input, all_weights, all_biases, y, input_gradient=True)
        output, all_f, all_h = module.compute_network_output(net_input, all_weights, all_biases)
        back = module.backward_pass(all_weights, all_biases, all_f, all_h, y, intermediates=True)
        results.append([*fused[1:], output, all_f, all_h[1:], *back, np.float64(fused[0])])
    return results


def flatten(parts):
    for part in parts:
        yield from part if isinstance(part, list) else [part]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("samples", [1, 5, 70, 600])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", ["net_input", "weights", "biases", "y"])
def test_nan_and_infinity_go_where_numpy_takes_them(place, value, samples, dtype):
    all_weights, all_biases = network(LAYER_SIZES, dtype)
    net_input, y = smooth_batch(LAYER_SIZES, samples, all_weights, all_biases, dtype)
    for k in range(3):
        weights, biases = [array.copy() for array in all_weights], [array.copy() for array in all_biases]
        x, target = net_input.copy(), y.copy()
        {"net_input": x, "weights": weights[k], "biases": biases[k], "y": target}[place][1, -1] = value
        for got, expected in zip(*map(list, map(flatten, both(x, weights, biases, target))), strict=True):
            np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
            np.testing.assert_array_equal(np.isposinf(got), np.isposinf(expected))
            np.testing.assert_array_equal(np.isneginf(got), np.isneginf(expected))


def test_a_diverged_network_is_not_hidden(dtype):
    """0 times infinity is NaN: the mask multiplies, it does not select."""
    all_weights = [np.array([[-1.0]], dtype), np.array([[np.inf]], dtype)]
    all_biases = [np.zeros((1, 1), dtype), np.zeros((1, 1), dtype)]
    _, all_dl_dweights, all_dl_dbiases = fb.loss_and_gradients(np.ones((1, 3), dtype), all_weights, all_biases, 1.0)
    assert np.isnan(all_dl_dweights[0]).all()
    assert np.isnan(all_dl_dbiases[0]).all()


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_the_derivative_at_zero_is_zero(zero, dtype):
    all_weights = [np.zeros((4, 2), dtype), np.ones((1, 4), dtype)]
    all_biases = [np.full((4, 1), zero, dtype), np.ones((1, 1), dtype)]
    net_input = np.ones((2, 5), dtype)
    for gradients in (
        fb.loss_and_gradients(net_input, all_weights, all_biases, 0.0)[1:],
        fb.backward_pass(
            all_weights, all_biases, *fb.compute_network_output(net_input, all_weights, all_biases)[1:], 0.0
        ),
    ):
        assert (gradients[0][0] == 0).all()
        assert (gradients[1][0] == 0).all()
        assert gradients[1][1] == 10


def test_infinite_biases_do_not_leak_from_the_unused_part_of_a_tile(dtype):
    """Behind the last sample a hidden layer holds ReLU of its biases: zero times that must not be NaN."""
    all_weights, all_biases = network((1, 3, 1), dtype)
    all_weights[0][0] = -np.inf
    all_biases[0][0] = np.finfo(dtype).max
    net_input = np.full((1, 5), 2, dtype)
    got = fb.loss_and_gradients(net_input, all_weights, all_biases, 1.0)
    expected = reference.loss_and_gradients(net_input, all_weights, all_biases, 1.0)
    np.testing.assert_array_equal(np.isnan(got[1][1]), np.isnan(expected[1][1]))
    np.testing.assert_allclose(got[2][1], expected[2][1], rtol=1e-5)


def test_huge_and_tiny_activations(dtype):
    for scale in 1e3, 1e-3:
        layer_sizes = (2, *[5] * 8, 1)
        all_weights, all_biases = network(layer_sizes, dtype)
        all_weights = [scale * array for array in all_weights]
        net_input, _ = smooth_batch(layer_sizes, 20, all_weights, all_biases, dtype)
        got = fb.vjp(net_input, all_weights, all_biases, np.ones((1, 20), dtype), input_gradient=True)
        expected = reference.vjp(net_input, all_weights, all_biases, np.ones((1, 20), dtype), input_gradient=True)
        assert_close(got, expected, 1e-4 if dtype == np.float32 else 1e-12)


@pytest.mark.parametrize("last", [1.0, 1e65, 1e-65])
@pytest.mark.parametrize(("hidden", "width"), [(50, 200), (900, 11), (1000, 20)])
def test_deep_networks(hidden, width, last):
    """Activations that keep their size, and that have grown or shrunk by 65 powers of ten in the last layer."""
    layer_sizes = (10, *[width] * hidden, 3)
    all_weights, all_biases = network(layer_sizes)
    net_input, _ = batch(layer_sizes, 130)
    h, size = net_input, 1.0
    for weights, biases in zip(all_weights[:-1], all_biases[:-1], strict=True):
        size *= last ** (1 / hidden)
        f = weights @ h + biases * np.linalg.norm(h) / np.sqrt(h.size)
        scale = size / np.sqrt(np.mean(reference.ReLU(f) ** 2))
        biases *= scale * np.linalg.norm(h) / np.sqrt(h.size)
        weights *= scale
        h = reference.ReLU(weights @ h + biases)
    assert np.sqrt(np.mean(h * h)) == pytest.approx(last)
    dl_doutput = np.ones((3, 130))
    got = fb.vjp(net_input, all_weights, all_biases, dl_doutput, input_gradient=True)
    expected = reference.vjp(net_input, all_weights, all_biases, dl_doutput, input_gradient=True)
    assert np.any(expected[2])
    assert_close(got, expected, 1e-11)
    expected_output = reference.predict(net_input, all_weights, all_biases)
    assert_close(fb.predict(net_input, all_weights, all_biases), expected_output, 1e-11)


@pytest.mark.parametrize("layer_sizes", [(1, 6, 6, 6, 6, 6, 1), (8, 32, 32, 32, 1), (4, *[12] * 8, 2)], ids=str)
def test_float32_stays_close_to_float64(layer_sizes):
    """2e-6 in relative norm, however many samples are summed."""
    all_weights, all_biases = network(layer_sizes, np.float32)
    wide = [[array.astype(np.float64) for array in arrays] for arrays in (all_weights, all_biases)]
    for samples in 1000, 200_000:
        net_input, y = smooth_batch(layer_sizes, samples, all_weights, all_biases, np.dtype(np.float32))
        got = fb.loss_and_gradients(net_input, all_weights, all_biases, y)
        expected = fb.loss_and_gradients(net_input.astype(np.float64), *wide, y.astype(np.float64))
        assert got[0] == pytest.approx(expected[0], rel=2e-6)
        for part in 1, 2:
            assert_close([array.astype(np.float64) for array in got[part]], expected[part], 2e-6)


@pytest.mark.parametrize("samples", [10, 1000])
@pytest.mark.parametrize("layer_sizes", [(30, 64, 2), (5, 6, 6, 6, 3), (100, 130, 17)], ids=str)
def test_the_error_is_not_larger_than_numpys(layer_sizes, samples):
    all_weights, all_biases = network(layer_sizes, np.float32)
    net_input, y = smooth_batch(layer_sizes, samples, all_weights, all_biases, np.dtype(np.float32))
    wide = [[array.astype(np.float64) for array in arrays] for arrays in (all_weights, all_biases)]
    expected = reference.loss_and_gradients(net_input.astype(np.float64), *wide, y.astype(np.float64))
    got = fb.loss_and_gradients(net_input, all_weights, all_biases, y)
    numpy = reference.loss_and_gradients(net_input, all_weights, all_biases, y)

    def error(result):
        return np.sqrt(
            sum(
                np.sum((g - e) ** 2) / np.sum(e**2) for k in (1, 2) for g, e in zip(result[k], expected[k], strict=True)
            )
        )

    assert error(got) <= 1.5 * error(numpy)


WIDE = {
    "inputs in [0, 1]": ((784, 900, 10), lambda random: random.random((784, 8192)), 0.0),
    "one sample over and over": ((784, 900, 10), lambda random: np.repeat(random.random((784, 1)), 8192, axis=1), 0.0),
    "standard normal": ((2000, 400), lambda random: random.standard_normal((2000, 8192)), 0.0),
    "an offset": ((2000, 400), lambda random: random.random((2000, 8192)), 50.0),
    "a network that is not wide": ((784, 100, 10), lambda random: random.random((784, 8192)), 0.0),
}


@pytest.mark.parametrize("case", WIDE)
def test_weight_gradients_of_wide_networks_are_as_exact_as_numpys(case):
    """Those of the last layer, behind which there is no kink. 2e-7 is what a single rounding of each term would do."""
    layer_sizes, inputs, target = WIDE[case]
    all_weights, all_biases = network(layer_sizes, np.float32)
    net_input = inputs(np.random.default_rng(1)).astype(np.float32)
    y = np.full((layer_sizes[-1], 8192), target, np.float32)
    wide = [[array.astype(np.float64) for array in arrays] for arrays in (all_weights, all_biases)]
    exact = reference.loss_and_gradients(net_input.astype(np.float64), *wide, y.astype(np.float64))[1][-1]
    got, numpy = (module.loss_and_gradients(net_input, all_weights, all_biases, y)[1][-1] for module in (fb, reference))
    errors = [np.linalg.norm(result - exact) / np.linalg.norm(exact) for result in (got, numpy)]
    assert errors[0] <= 1.5 * max(errors[1], 2e-7)
    assert_close(fb.loss_and_gradients(net_input.astype(np.float64), *wide, y.astype(np.float64))[1][-1], exact)


def test_same_bits_again_and_from_any_workspace(dtype):
    all_weights, all_biases = network(LAYER_SIZES, dtype)
    net_input, y = batch(LAYER_SIZES, 50_000, dtype)
    first = list(fb.loss_and_gradients(net_input, all_weights, all_biases, y, input_gradient=True))
    workspace = fb.Workspace(LAYER_SIZES, dtype)
    workspace.loss_and_gradients(2 * net_input, all_weights, all_biases, y)
    for call in (
        fb.loss_and_gradients,
        workspace.loss_and_gradients,
        fb.Workspace(LAYER_SIZES, dtype).loss_and_gradients,
    ):
        assert_same_bits(list(call(net_input.copy(), all_weights, all_biases, y, input_gradient=True)), first)


HUGE = {"float32": 1e38, "float64": 1e308}


@pytest.mark.parametrize("mode", ["warn", "raise"])  # warnings are errors in all tests
@pytest.mark.parametrize("samples", [3, 70, 3000])
def test_no_warning_on_the_way(mode, samples, dtype):
    """Whatever overflows, also where arguments are converted, becomes infinite or NaN, and that is all."""
    layer_sizes, huge = (4, 6, 2), HUGE[dtype.name]
    parameters = network(layer_sizes, dtype)
    net_input = np.sign(batch(layer_sizes, samples, dtype)[0]) * dtype.type(huge)
    y = np.where(np.arange(samples) % 2, huge, -huge).astype(dtype) * np.ones((2, 1), dtype)
    workspace, wide = fb.Workspace(layer_sizes, dtype), [[a.astype(np.float64) for a in b] for b in parameters]
    far_apart = np.logspace(-300, 300, samples)
    targets = dict.fromkeys(reference.LOSSES, np.full((2, samples), 0.5, dtype)) | {"least_squares": y}
    with np.errstate(all=mode):
        assert not np.isfinite(fb.loss_and_gradients(net_input, *parameters, y)[1][0]).all()
        for (name, target), reduction, weight in itertools.product(targets.items(), ("sum", "mean"), (None, far_apart)):
            options = {"loss": name, "reduction": reduction, "sample_weight": weight}
            for call in fb.loss_and_gradients, workspace.loss_and_gradients:
                call(net_input, *parameters, target, **options)
        report = fb.check_gradients(net_input[:, :70], *parameters, y[:, :70], sample_weight=far_apart[:70])
        assert not report.passed
        fb.loss_and_gradients(net_input, *wide, y)
        fb.predict(net_input, *parameters)
        fb.clipped_gradients(net_input, *parameters, y, 1.0, sample_weight=far_apart)
        fb.per_sample_gradient_norms(net_input, *parameters, y)
        fb.squared_gradient_sums(net_input, *parameters, y)
        fb.per_sample_gradients(net_input, *parameters, y)
        fb.vjp(net_input, *parameters, y)
        fb.vjp(net_input * dtype.type(0), *parameters, y)
        _, all_f, all_h = fb.compute_network_output(net_input, *parameters)
        for target in 1e300, dtype.type(-huge), y:  # a Python number, which does not count for the dtype of the result
            fb.backward_pass(*parameters, all_f, all_h, target, intermediates=True)
            workspace.loss_and_gradients(net_input, *parameters, target, input_gradient=True)
            assert fb.least_squares_loss(y, target) in (np.inf, 0)
            fb.d_loss_d_output(y, target)
        fb.ReLU(np.full(samples, np.nan, dtype))
        fb.indicator_function(np.full(samples, np.nan, dtype))
