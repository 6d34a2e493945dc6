"""The cross-entropies: against the oracle and the definition, what targets may be, and what is refused."""

import math
import re
import tracemalloc

import numpy as np
import pytest
from numba import njit

import fastbackprop as fb
from benchmarks.cases import batch, network
from fastbackprop import reference
from fastbackprop.arguments import checks
from fastbackprop.engine.plan import plan_gradient
from fastbackprop.kernels import elementary
from tests.conftest import assert_close, assert_same_bits, smooth_batch, target_of
from tests.test_layouts import ZOO

CROSS_ENTROPIES = ["softmax_cross_entropy", "binary_cross_entropy"]
LAYER_SIZES = (3, 7, 6, 5)
SAMPLES = [0, 1, 2, 5, 64, 513, 2000]
INTEGERS = [np.dtype(kind + size) for kind in "iu" for size in "1248"]


@njit(error_model="numpy")
def exponentials(values):
    for s in range(values.size):
        values[s] = elementary.exp(values[s])


@njit(error_model="numpy")
def logarithms(values):
    for s in range(values.size):
        values[s] = elementary.log1p(values[s])


def through(kernel, values):
    got = np.array(values)
    kernel(got)
    return got


def both(net_input, parameters, y, loss, **options):
    """Loss and gradients, and the notebooks' backward pass, from the package and from the oracle."""
    got = fb.loss_and_gradients(net_input, *parameters, y, loss=loss, input_gradient=True, **options)
    expected = reference.loss_and_gradients(net_input, *parameters, y, loss=loss, input_gradient=True, **options)
    _, all_f, all_h = reference.compute_network_output(net_input, *parameters)
    passes = [
        module.backward_pass(*parameters, all_f, all_h, y, loss=loss, intermediates=True) for module in (fb, reference)
    ]
    assert isinstance(got[0], float)
    return [*got[1:], *passes[0]], [*expected[1:], *passes[1]], got[0], expected[0]


def from_output(net_output, y, loss):
    """The loss and its derivative by a given output, through a layer that leaves it as it is."""
    units, dtype = net_output.shape[0], net_output.dtype
    parameters = [np.eye(units, dtype=dtype)], [np.zeros((units, 1), dtype)]
    value, *_, dl_doutput = fb.loss_and_gradients(net_output, *parameters, y, loss=loss, input_gradient=True)
    *_, all_dl_df = fb.backward_pass(*parameters, [net_output], [net_output], y, loss=loss, intermediates=True)
    assert_same_bits(all_dl_df[0], dl_doutput)
    return value, dl_doutput


def problem(dtype, samples=40, layer_sizes=LAYER_SIZES):
    parameters = network(layer_sizes, dtype)
    return smooth_batch(layer_sizes, samples, *parameters, dtype), parameters


def test_exp(dtype):
    lowest = -90.0 if dtype == np.float32 else -710.0
    values = np.concatenate([np.linspace(lowest, 0, 10_001), -np.geomspace(1e-30, 1, 1000)]).astype(dtype)
    expected = np.exp(values.astype(np.longdouble))
    error = np.abs(through(exponentials, values) - expected) / np.spacing(expected.astype(dtype))
    assert np.max(error) <= 1.1
    special = np.array([0.0, -0.0, -1000.0, -np.finfo(dtype).max, -np.inf, np.nan], dtype)
    np.testing.assert_array_equal(through(exponentials, special), [1, 1, 0, 0, 0, np.nan])


def test_log1p(dtype):
    values = np.concatenate([[0], np.geomspace(np.finfo(dtype).tiny, 1e6, 20_001), np.linspace(0, 2, 5000)])
    values = values.astype(dtype)
    expected = np.log1p(values.astype(np.longdouble))
    error = np.abs(through(logarithms, values) - expected) / np.spacing(expected.astype(dtype))
    assert np.max(error) <= 3
    assert np.isnan(through(logarithms, np.array([np.nan, -np.nan], dtype))).all()


@pytest.mark.parametrize("kernel", [exponentials, logarithms])
def test_a_result_does_not_depend_on_its_lane(kernel, dtype):
    values = np.random.default_rng(0).exponential(5, 300).astype(dtype)
    values = -values if kernel is exponentials else values
    expected = through(kernel, values)
    for first in range(1, 40):
        assert_same_bits(through(kernel, values[first:]), expected[first:])
    assert_same_bits(np.array([through(kernel, values[s : s + 1])[0] for s in range(300)]), expected)


@pytest.mark.parametrize("samples", SAMPLES)
@pytest.mark.parametrize("loss", CROSS_ENTROPIES)
def test_against_the_oracle(loss, samples, dtype):
    (net_input, y), parameters = problem(dtype, samples)
    options = {"sample_weight": np.linspace(-0.5, 2, samples), "reduction": "mean"} if samples else {}
    for keywords in {}, options:
        target = target_of(loss, y)
        got, expected, value, oracle = both(net_input, parameters, target, loss, **keywords)
        assert_close(got, expected)
        assert value == pytest.approx(oracle, rel=1e-5 if dtype == np.float32 else 1e-12)


@pytest.mark.parametrize("outputs", [1, 2, 3, 10, 37])
@pytest.mark.parametrize("loss", CROSS_ENTROPIES)
def test_outputs(loss, outputs, dtype):
    layer_sizes = (4, 9, outputs)
    (net_input, y), parameters = problem(dtype, 90, layer_sizes)
    got, expected, value, oracle = both(net_input, parameters, target_of(loss, y), loss)
    assert value == pytest.approx(oracle, rel=1e-5 if dtype == np.float32 else 1e-12)
    assert_close(got, expected, 1e-4 if dtype == np.float32 else None)


@pytest.mark.parametrize("integer", INTEGERS, ids=str)
def test_class_numbers_are_one_hot_columns(integer, dtype):
    (net_input, _), parameters = problem(dtype)
    classes = (np.arange(40) * 3 % 5).astype(integer)
    one_hot = np.eye(5)[:, classes].astype(dtype)
    loss = "softmax_cross_entropy"
    expected, oracle, value, total = both(net_input, parameters, one_hot, loss)
    assert_close(expected, oracle)
    for y in classes, classes[None], one_hot.astype(integer), one_hot > 0, classes.tolist(), classes.astype(">i8"):
        got, _, same, _ = both(net_input, parameters, np.asarray(y), loss)
        assert_same_bits(got, expected)
        assert same == value == pytest.approx(total, rel=1e-5)
        assert got[0][0].dtype == dtype  # class numbers do not count for it
        assert_same_bits(fb.loss_and_gradients(net_input, *parameters, y, loss=loss)[1], expected[0])
        workspace = fb.Workspace(LAYER_SIZES, dtype)
        assert_same_bits(workspace.loss_and_gradients(net_input, *parameters, y, loss=loss)[1], expected[0])


def test_one_class_for_all_samples(dtype):
    (net_input, _), parameters = problem(dtype)
    loss = "softmax_cross_entropy"
    expected, *_ = both(net_input, parameters, np.full(40, 3), loss)
    for y in 3, np.int8(3), np.array([[3]]), np.eye(5)[:, 3:4].astype(int), np.eye(5, dtype=dtype)[:, 3:4]:
        assert_same_bits(fb.loss_and_gradients(net_input, *parameters, y, loss=loss)[1], expected[0])


def test_ambiguous_shapes_are_settled_by_dtype_and_dimensions(dtype):
    """As many samples as outputs, two outputs, one sample."""
    loss = "softmax_cross_entropy"
    (net_input, _), parameters = problem(dtype, 5)
    classes = np.array([0, 1, 4, 1, 0])
    expected, *_ = both(net_input, parameters, np.eye(5)[:, classes].astype(dtype), loss)
    assert_same_bits(fb.loss_and_gradients(net_input, *parameters, classes, loss=loss)[1], expected[0])
    columns = np.eye(5, dtype=int)  # (D_o, N) integers are probabilities
    expected, *_ = both(net_input, parameters, columns.astype(dtype), loss)
    assert_same_bits(fb.loss_and_gradients(net_input, *parameters, columns, loss=loss)[1], expected[0])
    with pytest.raises(ValueError, match=r"y has shape \(5,\) and dtype float64; expected class numbers of an integer"):
        fb.loss_and_gradients(net_input, *parameters, np.ones(5), loss=loss)
    layer_sizes = (3, 4, 2)
    (net_input, _), parameters = problem(dtype, 1, layer_sizes)
    by_class = [fb.loss_and_gradients(net_input, *parameters, y, loss=loss)[1] for y in (1, [1], [[1]], [[0], [1]])]
    for gradients in by_class[1:]:
        assert_same_bits(gradients, by_class[0])
    halves = fb.loss_and_gradients(net_input, *parameters, 0.5, loss=loss)  # a float is a probability
    expected = reference.loss_and_gradients(net_input, *parameters, np.full((2, 1), 0.5, dtype), loss=loss)
    assert_close(halves[1:], expected[1:])


def test_a_softmax_of_one_output_has_probability_one(dtype):
    (net_input, _), parameters = problem(dtype, 20, (3, 4, 1))
    for y in np.ones((1, 20), int), np.ones(20), 1:
        loss, *gradients = fb.loss_and_gradients(net_input, *parameters, y, loss="softmax_cross_entropy")
        assert loss == 0
        assert not any(array.any() for part in gradients for array in part)


def test_outputs_of_a_thousand_are_no_trouble(dtype):
    net_output = np.array([[1000, -1000, 1000, 0, 0], [-1000, 1000, 1000, 0, -1000], [0, 0, 0, 0, 0]], dtype)
    third = 1 / 3
    value, slope = from_output(net_output, np.array([0, 0, 2, 1, 2]), "softmax_cross_entropy")
    expected = [[0, -1, 0.5, third, 0.5], [0, 1, 0.5, third - 1, 0], [0, 0, -1, third, -0.5]]
    np.testing.assert_allclose(slope, np.array(expected), rtol=1e-6, atol=1e-7)
    assert value == pytest.approx(0 + 2000 + 1000 + math.log(2) + math.log(3) + math.log(2), rel=1e-6)
    y = np.array([[1, 1, 0, 0, 1], [0, 0.5, 1, 1, 0], [0.5, 1, 0, 0, 0]], dtype)
    value, slope = from_output(net_output, y, "binary_cross_entropy")
    sigmoid = np.array([[1, 0, 1, 0.5, 0.5], [0, 1, 1, 0.5, 0], [0.5] * 5])
    np.testing.assert_allclose(slope, sigmoid - y, rtol=1e-6, atol=1e-7)
    assert value == pytest.approx(1000 + 500 + 1000 + 8 * math.log(2), rel=1e-6)


def test_shares_of_a_confident_output_keep_their_digits():
    """Not 1 - 1, and no logarithm of a rounded 1 + exp(-40)."""
    value, slope = from_output(np.array([[40.0]]), 1.0, "binary_cross_entropy")
    assert value == pytest.approx(math.exp(-40), rel=1e-14)
    value, slope = from_output(np.array([[-40.0]]), 0.0, "binary_cross_entropy")
    assert value == pytest.approx(math.exp(-40), rel=1e-14)
    assert slope[0, 0] == pytest.approx(math.exp(-40), rel=1e-14)
    _, slope = from_output(np.array([[0.0], [-40.0]]), 0, "softmax_cross_entropy")
    assert slope[1, 0] == pytest.approx(math.exp(-40), rel=1e-14)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("samples", [1, 70])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("loss", CROSS_ENTROPIES)
def test_nan_and_infinity_go_where_numpy_takes_them(loss, value, samples, dtype):
    parameters = network((3, 4), dtype)
    for rows in [0], [2], [1, 3], [0, 1, 2, 3]:
        parameters[1][0][rows] = value
        net_input, y = batch((3, 4), samples, dtype)
        for target in target_of(loss, y), np.eye(4, dtype=dtype)[:, [2] * samples], 2 if "soft" in loss else 0.0:
            got, expected, total, oracle = both(net_input, parameters, target, loss)
            for part, other in zip(got, expected, strict=True):
                for g, e in zip(part, other, strict=True):
                    np.testing.assert_array_equal(np.isnan(g), np.isnan(e))
                    np.testing.assert_array_equal(np.isinf(g), np.isinf(e))
            assert str(total) == str(oracle) or total == pytest.approx(oracle, rel=1e-5)


def test_an_output_of_minus_infinity_excludes_a_class(dtype):
    """Also where its product with a target of 0 would be NaN: class numbers have none."""
    net_output = np.array([[0.0], [-np.inf], [0.0]], dtype)
    parameters = [np.zeros((3, 1), dtype)], [net_output]
    value, _, all_dl_dbiases = fb.loss_and_gradients(
        np.zeros((1, 1), dtype), *parameters, 0, loss="softmax_cross_entropy"
    )
    assert value == pytest.approx(math.log(2))
    np.testing.assert_allclose(all_dl_dbiases[0].ravel(), [-0.5, 0, 0.5])


@pytest.mark.parametrize("loss", CROSS_ENTROPIES)
def test_central_differences(loss, dtype):
    (net_input, y), parameters = problem(dtype)
    for target in [target_of(loss, y)] + [np.arange(40) % 5] * (loss == "softmax_cross_entropy"):
        options = {"loss": loss, "sample_weight": np.linspace(0.1, 2, 40), "reduction": "mean"}
        fb.check_gradients(net_input, *parameters, target, **options, raise_on_failure=True)
        _, *gradients = fb.loss_and_gradients(net_input, *parameters, target, **options)
        gradients[0][1][2, 3] += np.max(np.abs(gradients[0][1])) * 0.001
        report = fb.check_gradients(net_input, *parameters, target, **options, gradients=gradients)
        assert [(entry.layer, entry.index) for entry in report.failures] == [(1, (2, 3))]


@pytest.mark.parametrize("animal", ZOO, ids=lambda animal: animal.__name__)
@pytest.mark.parametrize("loss", CROSS_ENTROPIES)
def test_every_layout_of_a_target_gives_the_same_bits(loss, animal, dtype, tmp_path):
    (net_input, y), parameters = problem(dtype, 700)
    targets = [target_of(loss, y), np.arange(700) % 5, np.arange(700, dtype=np.uint16)[None] % 5]
    for target in targets if loss == "softmax_cross_entropy" else targets[:1]:
        _, all_f, all_h = fb.compute_network_output(net_input, *parameters)
        caged = animal(target, tmp_path)
        results = [
            [
                *fb.loss_and_gradients(net_input, *parameters, given, loss=loss),
                *fb.backward_pass(*parameters, all_f, all_h, given, loss=loss),
            ]
            for given in (target, caged)
        ]
        assert_same_bits(results[1], results[0])
        np.testing.assert_array_equal(caged, target)


@pytest.mark.parametrize("loss", CROSS_ENTROPIES)
def test_same_bits_for_any_number_of_threads(loss, dtype):
    layer_sizes = (2, 6, 6, 3)
    parameters = network(layer_sizes, dtype)
    net_input, y = batch(layer_sizes, 150_001, dtype)
    targets = [target_of(loss, y)] + [np.arange(150_001) % 3] * (loss == "softmax_cross_entropy")
    for target in targets:
        results = [
            list(fb.loss_and_gradients(net_input, *parameters, target, loss=loss, num_threads=count))
            for count in (1, 2, 5)
        ]
        assert_same_bits(results[1:], [results[0]] * 2)
        wide = [[array.astype(np.float64) for array in arrays] for arrays in parameters]
        y64 = target.astype(np.float64) if target.dtype.kind == "f" else target
        expected = reference.loss_and_gradients(net_input.astype(np.float64), *wide, y64, loss=loss)
        limit = 1e-12 if dtype == np.float64 else 2e-6
        assert results[0][0] == pytest.approx(expected[0], rel=limit)
        for part in 1, 2:
            assert_close([array.astype(np.float64) for array in results[0][part]], expected[part], limit)
        # Pieces of it, so that samples stand in other lanes.
        _, all_f, all_h = fb.compute_network_output(net_input, *parameters)
        *_, whole = fb.backward_pass(*parameters, all_f, all_h, target, loss=loss, intermediates=True)
        few = slice(777, 900)
        cut = [[array[:, few] for array in arrays] for arrays in (all_f, all_h)]
        *_, piece = fb.backward_pass(*parameters, *cut, target[..., few], loss=loss, intermediates=True)
        assert_same_bits(piece[-1], whole[-1][:, few])


@pytest.mark.parametrize("loss", CROSS_ENTROPIES)
def test_wide_networks(loss, dtype, shared_from):
    shared_from(2**19)
    layer_sizes = (20, 400, 330, 7)
    (net_input, y), parameters = problem(dtype, 300, layer_sizes)
    assert plan_gradient(layer_sizes, dtype.itemsize, 300).scheme == "shared"
    weight = np.linspace(0.5, 2, 300)
    for target in [target_of(loss, y)] + [np.arange(300) % 7] * (loss == "softmax_cross_entropy"):
        got, expected, value, oracle = both(net_input, parameters, target, loss, sample_weight=weight)
        assert_close(got, expected)
        assert value == pytest.approx(oracle, rel=1e-5)


def put(y, i, s, value):
    """y with one entry changed."""
    y[i, s] = value
    return y


REFUSALS = [
    ("softmax_cross_entropy", lambda _: [0, 4, 4, 10, 5] + [0] * 35, "y[3] is 10; expected class numbers in 0 .. 4"),
    ("softmax_cross_entropy", lambda _: np.full((1, 40), -1, "i1"), "y[0, 0] is -1; expected class numbers in 0 .. 4"),
    ("softmax_cross_entropy", lambda _: np.full(40, 2**63, "u8"), f"y[0] is {2**63}; expected class numbers in 0 .. 4"),
    ("softmax_cross_entropy", lambda _: 5, "y is 5; expected class numbers in 0 .. 4"),
    ("softmax_cross_entropy", lambda y: put(y, 1, 17, 1.5), "y[1, 17] is 1.5; expected probabilities in [0, 1]"),
    ("softmax_cross_entropy", lambda y: 0 * y, "column 0 of y sums to 0; expected 1"),
    ("softmax_cross_entropy", lambda y: y * (1 - 0.2 * np.eye(40)[17]), "column 17 of y sums to 0.8; expected 1"),
    ("softmax_cross_entropy", lambda y: y * 1.001, "column 0 of y sums to 1.001; expected 1"),
    ("softmax_cross_entropy", lambda y: put(y, 2, 6, np.inf), "y[2, 6] is inf; expected probabilities in [0, 1]"),
    ("softmax_cross_entropy", lambda _: 0.5, "column 0 of y sums to 2.5; expected 1"),
    (
        "softmax_cross_entropy",
        lambda _: np.ones(40),
        "y has shape (40,) and dtype float64; expected class numbers of an",
    ),
    (
        "softmax_cross_entropy",
        lambda _: np.ones((1, 40)),
        "y has shape (1, 40) and dtype float64; expected class numbers",
    ),
    (
        "softmax_cross_entropy",
        lambda _: np.ones(40, bool),
        "y has shape (40,) and dtype bool; expected class numbers of an integer dtype, (40,), or probabilities, "
        "(5, 40) or (5, 1): convert y to integers",
    ),
    (
        "softmax_cross_entropy",
        lambda _: np.ones(5, int),
        "y has shape (5,) and dtype int64; expected class numbers of an integer dtype, (40,), or probabilities, "
        "(5, 40) or (5, 1)",
    ),
    (
        "softmax_cross_entropy",
        lambda _: np.zeros((40, 1), int),
        "y has shape (40, 1) and dtype int64; expected class numbers of an integer dtype, (40,), or probabilities, "
        "(5, 40) or (5, 1): reshape y to (40,)",
    ),
    ("softmax_cross_entropy", lambda y: y.T, "y has shape (40, 5); expected (5, 40)"),
    ("binary_cross_entropy", lambda y: put(y, 0, 17, 1.5), "y[0, 17] is 1.5; expected probabilities in [0, 1]"),
    ("binary_cross_entropy", lambda y: put(y, 3, 0, -0.5)[:, :1], "y[3, 0] is -0.5; expected probabilities in [0, 1]"),
    ("binary_cross_entropy", lambda _: 2, "y is 2; expected probabilities in [0, 1]"),
    ("binary_cross_entropy", lambda _: np.nan, "y is nan; expected probabilities in [0, 1]"),
    ("binary_cross_entropy", lambda _: np.ones(40), "y has shape (40,); expected (5, 40)"),
    (
        "least_squares",
        lambda _: np.zeros(40, np.uint8),
        "y has shape (40,); expected (5, 40), the shape of the network's output, or (5, 1), (1, 1) or a scalar "
        "(class numbers need the loss 'softmax_cross_entropy')",
    ),
]


@pytest.mark.parametrize(("loss", "make", "message"), REFUSALS)
def test_what_is_refused(loss, make, message):
    (net_input, _), parameters = problem(np.dtype(np.float64))
    y = make(np.full((5, 40), 0.2))
    _, all_f, all_h = fb.compute_network_output(net_input, *parameters)
    called = []
    for call in fb.loss_and_gradients, fb.Workspace(LAYER_SIZES).loss_and_gradients:
        with pytest.raises(ValueError, match=re.escape(message)):
            call(net_input, *parameters, y, loss=loss, progress=lambda *done: called.append(done))
    with pytest.raises(ValueError, match=re.escape(message)):
        fb.backward_pass(*parameters, all_f, all_h, y, loss=loss)
    with pytest.raises(ValueError, match=re.escape(message)):
        fb.check_gradients(net_input, *parameters, y, loss=loss)
    assert not called


@pytest.mark.parametrize("samples", [1, 3, 70_001])
@pytest.mark.parametrize("loss", CROSS_ENTROPIES)
def test_nan_is_refused_wherever_it_is(loss, samples, dtype):
    parameters = network((2, 3), dtype)
    net_input, y = batch((2, 3), samples, dtype)
    for i, s in (0, 0), (1, samples // 2), (2, samples - 1):
        target = target_of(loss, y)
        target[i, s] = np.nan
        with pytest.raises(ValueError, match=re.escape(f"y[{i}, {s}] is nan; expected probabilities in [0, 1]")):
            fb.loss_and_gradients(net_input, *parameters, target, loss=loss)


def test_the_last_of_many_class_numbers_is_looked_at():
    classes = np.zeros(100_003, np.int16)
    classes[-1] = 3
    with pytest.raises(ValueError, match=re.escape("y[100002] is 3; expected class numbers in 0 .. 2")):
        fb.loss_and_gradients(np.zeros((2, 100_003)), *network((2, 3)), classes, loss="softmax_cross_entropy")


def test_columns_of_float32_sum_to_one_within_rounding():
    rng = np.random.default_rng(0)
    y = rng.exponential(size=(5000, 20)).astype(np.float32)
    y /= np.add.reduce(y, axis=0)
    parameters = [np.zeros((5000, 1), np.float32)], [rng.standard_normal((5000, 1)).astype(np.float32)]
    got = fb.loss_and_gradients(np.zeros((1, 20), np.float32), *parameters, y, loss="softmax_cross_entropy")
    assert got[2][0].dtype == np.float32
    assert abs(np.sum(got[2][0], dtype=np.float64)) < 1e-4


@pytest.mark.parametrize("loss", CROSS_ENTROPIES)
def test_nothing_of_the_batchs_size_is_allocated(loss):
    samples = 2_000_000
    parameters = network((1, 3), np.float32)
    net_input = np.broadcast_to(np.float32(1), (1, samples))
    classes, half = np.zeros(samples, np.int64), np.full((3, samples), 0.25, np.float32)
    half[0] = 0.5
    for y in [half] + [classes] * (loss == "softmax_cross_entropy"):
        fb.loss_and_gradients(net_input[:, :1000], *parameters, y[..., :1000], loss=loss)
        tracemalloc.start()
        fb.loss_and_gradients(net_input, *parameters, y, loss=loss, num_threads=1)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 4e6  # of 8 MB for one row of the batch


def test_the_tolerance_of_sums(dtype):
    (net_input, y), parameters = problem(dtype)
    y = target_of("softmax_cross_entropy", y)
    for size, refused in (0.5, False), (2, True):
        change = y.copy()
        change[:, 9] *= 1 + size * checks.SUM_TOLERANCE
        if refused:
            with pytest.raises(ValueError, match="column 9 of y sums to"):
                fb.loss_and_gradients(net_input, *parameters, change, loss="softmax_cross_entropy")
        else:
            fb.loss_and_gradients(net_input, *parameters, change, loss="softmax_cross_entropy")
