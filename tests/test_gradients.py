"""The fused path against the oracle: depths, widths, batch sizes, every keyword."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastbackprop as fb
from benchmarks.cases import TABLE, batch, network
from fastbackprop import reference
from fastbackprop.arguments.checks import check_shapes
from fastbackprop.engine.limits import FEW
from fastbackprop.engine.results import split
from tests.conftest import assert_close, assert_same_bits, smooth_batch, target_of

DEPTHS = {0: (4, 3), 1: (5, 7, 2), 5: (1, 6, 6, 6, 6, 6, 1), 60: (3, *[8] * 60, 2)}
SAMPLES = [0, 1, 2, 7, 64, 257, 1000]


def compare(layer_sizes, samples, dtype, tolerance=None, **options):
    all_weights, all_biases = network(layer_sizes, dtype)
    net_input, y = smooth_batch(layer_sizes, samples, all_weights, all_biases, dtype)
    y = target_of(options.get("loss"), y)
    got = fb.loss_and_gradients(net_input, all_weights, all_biases, y, **options)
    expected = reference.loss_and_gradients(net_input, all_weights, all_biases, y, **options)
    assert isinstance(got[0], float)
    assert got[0] == pytest.approx(expected[0], rel=1e-4 if dtype == np.float32 else 1e-12)
    assert_close(got[1:], expected[1:], tolerance)


@pytest.mark.parametrize("samples", SAMPLES)
@pytest.mark.parametrize("depth", DEPTHS)
def test_depths_and_samples(depth, samples, dtype):
    tolerance = 2e-4 if dtype == np.float32 and depth == 60 else None
    compare(DEPTHS[depth], samples, dtype, tolerance)
    compare(DEPTHS[depth], samples, dtype, tolerance, input_gradient=True, loss="half_least_squares")


@pytest.mark.parametrize("width", range(1, 131))
def test_widths(width):
    compare((3, width, max(1, width - 1), 2), 70, np.dtype(np.float64), input_gradient=True)


@pytest.mark.parametrize("samples", range(1, FEW + 2))
def test_few_samples(samples, dtype, shared_from):
    shared_from(2**19)
    for layer_sizes in (1, 6, 6, 1), (3, 17, 70, 2), (40, 130, 5), (33, 300, 400, 3):
        compare(layer_sizes, samples, dtype, input_gradient=True)
    weight = np.linspace(-0.5, 1.0, samples)
    compare((3, 17, 2), samples, dtype, reduction="mean", sample_weight=weight, loss="half_least_squares")


@pytest.mark.parametrize("width", [1, 5, 6, 7, 31, 64, 65, 130])
def test_widths_in_float32(width):
    compare((3, width, width + 1, 2), 70, np.dtype(np.float32), input_gradient=True)


@pytest.mark.parametrize("case", TABLE, ids=str)
def test_the_cases_of_the_benchmarks(case, dtype):
    compare(case.layer_sizes, min(case.samples, 3000), dtype)


@given(
    layer_sizes=st.lists(st.integers(1, 40), min_size=2, max_size=7),
    samples=st.integers(0, 300),
    dtype=st.sampled_from([np.float64, np.float32]),
    mean=st.booleans(),
    weighted=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_shape(layer_sizes, samples, dtype, mean, weighted, seed):
    all_weights, all_biases = network(layer_sizes, dtype, seed)
    net_input, y = smooth_batch(layer_sizes, samples, all_weights, all_biases, dtype, seed + 1)
    weight = np.random.default_rng(seed).uniform(0.5, 2, samples) if weighted else None
    options = {"reduction": "mean" if mean and samples else "sum", "sample_weight": weight, "input_gradient": True}
    got = fb.loss_and_gradients(net_input, all_weights, all_biases, y, **options)
    expected = reference.loss_and_gradients(net_input, all_weights, all_biases, y, **options)
    scale = max([np.linalg.norm(array) for part in expected[1:3] for array in part])
    for g, e in zip([*got[1], *got[2], got[3]], [*expected[1], *expected[2], expected[3]], strict=True):
        assert g.shape == e.shape
        assert g.dtype == e.dtype == dtype
        limit = 1e-11 if dtype == np.float64 else 1e-4  # relative to the largest gradient: small ones may cancel
        assert np.linalg.norm(g - e) <= limit * max(scale, np.linalg.norm(expected[3]))


def test_a_thousand_layers(dtype):
    layer_sizes = (2, *[3] * 1000, 1)
    all_weights, all_biases = network(layer_sizes, dtype)
    net_input, y = batch(layer_sizes, 5, dtype)
    for biases in all_biases:
        biases += 0.5
    got = fb.loss_and_gradients(net_input, all_weights, all_biases, y)
    expected = reference.loss_and_gradients(net_input, all_weights, all_biases, y)
    assert_close(got[1:], expected[1:], 1e-3 if dtype == np.float32 else 1e-10)


def test_many_chunks_and_a_last_tile_that_is_not_full(dtype):
    """The kernel may drop neither the mask, nor the last partial tile, nor the last thread's share."""
    layer_sizes = (2, 6, 6, 1)
    all_weights, all_biases = network(layer_sizes, dtype)
    net_input, y = batch(layer_sizes, 300_007, dtype)
    got = fb.loss_and_gradients(net_input, all_weights, all_biases, y, num_threads=2)
    wide = [[array.astype(np.float64) for array in arrays] for arrays in (all_weights, all_biases)]
    expected = reference.loss_and_gradients(net_input.astype(np.float64), *wide, y.astype(np.float64))
    limit = 1e-12 if dtype == np.float64 else 2e-6
    assert got[0] == pytest.approx(expected[0], rel=limit)
    for part in 1, 2:
        assert_close([array.astype(np.float64) for array in got[part]], expected[part], limit)
    last = slice(300_006, None)
    *_, single = fb.loss_and_gradients(net_input[:, last], all_weights, all_biases, y[:, last], input_gradient=True)
    *_, whole = fb.loss_and_gradients(net_input, all_weights, all_biases, y, input_gradient=True)
    assert_close(whole[:, last], single)


def test_predict(dtype):
    for layer_sizes in DEPTHS.values():
        all_weights, all_biases = network(layer_sizes, dtype)
        net_input, _ = batch(layer_sizes, 300, dtype)
        expected = reference.predict(net_input, all_weights, all_biases)
        assert_close(fb.predict(net_input, all_weights, all_biases), expected, 1e-4 if dtype == np.float32 else None)
        got = fb.Workspace(layer_sizes, dtype).predict(net_input, all_weights, all_biases)
        assert_close(got, expected, 1e-4 if dtype == np.float32 else None)


def test_vjp(dtype):
    layer_sizes = (3, 7, 9, 2)
    all_weights, all_biases = network(layer_sizes, dtype)
    net_input, seed = batch(layer_sizes, 300, dtype)
    for input_gradient in False, True:
        expected = reference.vjp(net_input, all_weights, all_biases, seed, input_gradient=input_gradient)
        assert_close(fb.vjp(net_input, all_weights, all_biases, seed, input_gradient=input_gradient), expected)
        workspace = fb.Workspace(layer_sizes, dtype)
        assert_close(workspace.vjp(net_input, all_weights, all_biases, seed, input_gradient=input_gradient), expected)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("loss", reference.LOSSES)
def test_reductions_and_weights(reduction, weighted, loss, dtype):
    weight = np.linspace(0, 3, 400) if weighted else None
    compare((3, 6, 2), 400, dtype, reduction=reduction, sample_weight=weight, loss=loss, input_gradient=True)


FAR = [1e-300, 1e-50, 1e-46, 1e-42, 1e-38, 1e-30, 1e30, 1e39, 1e300]


@pytest.mark.parametrize("samples", [5, 60, 3000])
@pytest.mark.parametrize("call", ["function", "workspace", "oracle"])
def test_a_mean_does_not_depend_on_the_scale_of_its_weights(samples, call, dtype):
    layer_sizes = (3, 6, 2)
    all_weights, all_biases = network(layer_sizes, dtype)
    net_input, y = smooth_batch(layer_sizes, samples, all_weights, all_biases, dtype)
    weight = np.random.default_rng(0).uniform(0.5, 1.5, samples)
    weight[1] *= -0.25

    def mean(sample_weight):
        makers = {"function": fb, "workspace": fb.Workspace(layer_sizes, dtype), "oracle": reference}
        options = {"reduction": "mean", "sample_weight": sample_weight, "input_gradient": True}
        return makers[call].loss_and_gradients(net_input, all_weights, all_biases, y, **options)

    expected = mean(weight)
    exact = weight.astype(np.float32).astype(np.float64)
    for factor in FAR:
        got = mean(weight * factor)
        assert got[0] == pytest.approx(expected[0], rel=1e-5)
        assert_close(got[1:], expected[1:], 1e-6)
    assert_same_bits(list(mean(exact * 2.0**-900)), list(mean(exact)))
    assert_close(mean(np.full(samples, 1e308))[1:], mean(None)[1:], 1e-6)  # their sum is infinite


@pytest.mark.parametrize("value", [3e38, 1e-44])
def test_the_scale_of_float32_weights(value):
    all_weights, all_biases = network((3, 6, 2), np.float32)
    net_input, y = smooth_batch((3, 6, 2), 300, all_weights, all_biases, np.float32)
    options = {"reduction": "mean", "sample_weight": np.full(300, value, np.float32)}
    got = fb.loss_and_gradients(net_input, all_weights, all_biases, y, **options)
    expected = fb.loss_and_gradients(net_input, all_weights, all_biases, y, reduction="mean")
    assert got[0] == pytest.approx(expected[0], rel=1e-6)
    assert_close(got[1:], expected[1:], 1e-6)
    assert fb.check_gradients(net_input, all_weights, all_biases, y, **options).passed


def test_a_weight_that_is_nothing_beside_the_largest():
    all_weights, all_biases = network((3, 6, 2), np.float32)
    net_input, y = smooth_batch((3, 6, 2), 2, all_weights, all_biases, np.float32)
    got = fb.loss_and_gradients(
        net_input, all_weights, all_biases, y, reduction="mean", sample_weight=np.array([1e-50, 1e-300])
    )
    expected = fb.loss_and_gradients(net_input[:, :1], all_weights, all_biases, y[:, :1])
    assert got[0] == pytest.approx(expected[0], rel=1e-6)
    assert_close(got[1:], expected[1:], 1e-6)


def test_callables_see_the_whole_batch_once():
    layer_sizes = (2, 6, 3)
    all_weights, all_biases = network(layer_sizes)
    net_input, y = batch(layer_sizes, 50_000)
    calls = []

    def value(output, target):
        calls.append((output.shape, target))
        return np.sum((output - target) ** 2) / target.shape[1]

    def derivative(output, target):
        calls.append((output.shape, target))
        return 2 * (output - target) / target.shape[1]

    got = fb.loss_and_gradients(net_input, all_weights, all_biases, y, loss=(value, derivative))
    expected = reference.loss_and_gradients(net_input, all_weights, all_biases, y, reduction="mean")
    assert got[0] == pytest.approx(expected[0])
    assert_close(got[1:], expected[1:], 1e-11)
    assert [shape for shape, _ in calls] == [(3, 50_000)] * 2
    assert all(target is y for _, target in calls)


def test_callables_take_labels_of_any_shape():
    all_weights, all_biases = network((2, 6, 3))
    net_input, _ = batch((2, 6, 3), 40)
    labels = np.arange(40) % 3
    one_hot = np.eye(3)[:, labels]
    pair = (lambda o, c: np.sum((o - np.eye(3)[:, c]) ** 2), lambda o, c: 2 * (o - np.eye(3)[:, c]))
    got = fb.loss_and_gradients(net_input, all_weights, all_biases, labels, loss=pair)
    assert_close(got[1:], reference.loss_and_gradients(net_input, all_weights, all_biases, one_hot)[1:])


def test_targets_are_broadcast(dtype):
    layer_sizes = (2, 6, 3)
    all_weights, all_biases = network(layer_sizes, dtype)
    net_input, y = batch(layer_sizes, 9, dtype)
    for target in y[:, :1], y[:1, :1], 3, 0.5, np.int64(2), y[0, 0]:
        got = fb.loss_and_gradients(net_input, all_weights, all_biases, target)
        full = np.broadcast_to(np.asarray(target, dtype), y.shape)
        assert_close(got[1:], reference.loss_and_gradients(net_input, all_weights, all_biases, full)[1:])
    all_weights, all_biases = network((2, 6, 1), dtype)
    got = fb.loss_and_gradients(net_input, all_weights, all_biases, y[0])
    assert_close(got[1:], reference.loss_and_gradients(net_input, all_weights, all_biases, y[:1])[1:])


def test_out_is_written_and_returned(dtype):
    layer_sizes = (2, 6, 1)
    all_weights, all_biases = network(layer_sizes, dtype)
    net_input, y = batch(layer_sizes, 9, dtype)
    expected = reference.loss_and_gradients(net_input, all_weights, all_biases, y)
    out = (
        [np.empty((2, 6), dtype).T, np.empty((1, 6), dtype)],
        [np.empty((6, 2), dtype)[:, 1:], np.empty((1, 1), dtype)],
    )
    for call in fb.loss_and_gradients, fb.Workspace(layer_sizes, dtype).loss_and_gradients:
        for array in out[0] + out[1]:
            array[...] = np.nan
        got = call(net_input, all_weights, all_biases, y, out=out)
        assert got[1] is out[0]
        assert got[2] is out[1]
        assert_close(out, expected[1:])


def test_out_may_be_the_parameters_themselves():
    all_weights, all_biases = network((2, 6, 1))
    net_input, y = batch((2, 6, 1), 9)
    expected = reference.loss_and_gradients(net_input, all_weights, all_biases, y)
    fb.loss_and_gradients(net_input, all_weights, all_biases, y, out=(all_weights, all_biases))
    assert_close([all_weights, all_biases], expected[1:])


def test_results_are_fresh_and_writable():
    all_weights, all_biases = network((2, 6, 1))
    net_input, y = batch((2, 6, 1), 9)
    workspace = fb.Workspace((2, 6, 1))
    for call in fb.loss_and_gradients, workspace.loss_and_gradients:
        first = call(net_input, all_weights, all_biases, y, input_gradient=True)
        kept = [array.copy() for array in [*first[1], *first[2], first[3]]]
        call(net_input + 1, all_weights, all_biases, y, input_gradient=True)
        for array, copy in zip([*first[1], *first[2], first[3]], kept, strict=True):
            assert array.flags.writeable
            assert_same_bits(array, copy)
            array *= 0


def test_parameters_may_be_edited_in_place_between_calls():
    all_weights, all_biases = network((2, 6, 1))
    net_input, y = batch((2, 6, 1), 9)
    workspace = fb.Workspace((2, 6, 1))
    for _ in range(2):
        expected = reference.loss_and_gradients(net_input, all_weights, all_biases, y)
        assert_close(workspace.loss_and_gradients(net_input, all_weights, all_biases, y)[1:], expected[1:])
        assert_close(fb.loss_and_gradients(net_input, all_weights, all_biases, y)[1:], expected[1:])
        all_weights[0] *= -1


def test_no_samples():
    all_weights, all_biases = network((2, 6, 1))
    net_input, y = batch((2, 6, 1), 0)
    loss, *gradients, dl_dinput = fb.loss_and_gradients(net_input, all_weights, all_biases, y, input_gradient=True)
    assert loss == 0
    assert all((array == 0).all() for part in gradients for array in part)
    assert dl_dinput.shape == (2, 0)
    with pytest.raises(ValueError, match="reduction is 'mean' and there are no samples"):
        fb.loss_and_gradients(net_input, all_weights, all_biases, y, reduction="mean")


def test_pack_and_unpack(dtype):
    all_weights, all_biases = network((2, 6, 1), dtype)
    vector = fb.pack(all_weights, all_biases)
    assert vector.dtype == dtype
    np.testing.assert_array_equal(vector[:12].reshape(6, 2), all_weights[0])
    np.testing.assert_array_equal(vector[12:18], all_biases[0][:, 0])
    views = fb.unpack(vector, (2, 6, 1))
    assert_same_bits(list(views), [all_weights, all_biases])
    views[0][1][0, 2] = 42
    assert vector[20] == 42
    vector[12] = 43
    assert views[1][0][0, 0] == 43


@pytest.mark.parametrize("layer_sizes", [(2, 5, 3), (40, 300, 500, 4)])
def test_a_workspace_takes_a_vector_of_parameters_and_returns_the_gradient_as_one(dtype, layer_sizes, shared_from):
    shared_from(2**19)
    all_weights, all_biases = network(layer_sizes, dtype)
    net_input, y = batch(layer_sizes, 70, dtype)
    vector = fb.pack(all_weights, all_biases)
    workspace = fb.Workspace(layer_sizes, dtype)
    loss, *expected = workspace.loss_and_gradients(net_input, all_weights, all_biases, y)
    got_loss, got = workspace.loss_and_gradients(net_input, vector, None, y)
    assert got_loss == loss
    assert_same_bits(got, fb.pack(*expected))
    out = np.empty_like(vector)
    assert workspace.loss_and_gradients(net_input, vector, None, y, out=out)[1] is out
    assert_same_bits(out, got)
    assert_same_bits(workspace.predict(net_input, vector, None), workspace.predict(net_input, all_weights, all_biases))

    seed = np.ones_like(y)
    *expected, expected_input = workspace.vjp(net_input, all_weights, all_biases, seed, input_gradient=True)
    got, dl_dinput = workspace.vjp(net_input, vector, None, seed, input_gradient=True)
    assert_same_bits(got, fb.pack(*expected))
    assert_same_bits(dl_dinput, expected_input)
    assert_same_bits(workspace.vjp(net_input, vector, None, seed), got)

    awkward = np.zeros(2 * vector.size, vector.dtype.newbyteorder())[::2]
    awkward[:] = vector
    assert_same_bits(workspace.vjp(net_input, awkward, None, seed), got)


def test_a_vector_of_parameters_with_callables_for_the_loss():
    all_weights, all_biases = network((2, 5, 3), np.float64)
    net_input, y = batch((2, 5, 3), 70, np.float64)
    loss = (lambda output, y: np.sum((output - y) ** 2), lambda output, y: 2.0 * (output - y))
    workspace = fb.Workspace((2, 5, 3))
    got_loss, got = workspace.loss_and_gradients(net_input, fb.pack(all_weights, all_biases), None, y, loss=loss)
    expected_loss, *expected = workspace.loss_and_gradients(net_input, all_weights, all_biases, y, loss=loss)
    assert got_loss == expected_loss
    assert_same_bits(got, fb.pack(*expected))


@pytest.mark.parametrize(
    ("vector", "options", "error", "text"),
    [
        (np.zeros(4), {}, ValueError, r"all_weights has shape \(4,\); expected \(3,\): the parameters of layer sizes"),
        (np.zeros((3, 1)), {}, ValueError, r"all_weights has shape \(3, 1\); expected \(3,\)"),
        (np.zeros(3, complex), {}, TypeError, "all_weights has dtype complex128; expected float32 or float64"),
        (np.zeros(3), {"out": np.zeros(2)}, ValueError, r"out has shape \(2,\); expected \(3,\)"),
        (np.zeros(3), {"out": np.zeros(3, np.float32)}, TypeError, "out has dtype float32; expected float64"),
        (np.zeros(3), {"out": ([], [])}, TypeError, r"out has type tuple; expected an array \(P,\)"),
        (np.zeros(3), {"out": np.broadcast_to(0.0, 3)}, ValueError, "out is read-only"),
    ],
)
def test_a_bad_vector_is_refused(vector, options, error, text):
    with pytest.raises(error, match=text):
        fb.Workspace((2, 1)).loss_and_gradients(np.zeros((2, 1)), vector, None, 0.0, **options)


def test_lists_and_vectors_do_not_mix():
    workspace = fb.Workspace((2, 1))
    with pytest.raises(TypeError, match="all_biases has type NoneType; expected a list of arrays"):
        fb.loss_and_gradients(np.zeros((2, 1)), [np.zeros((1, 2))], None, 0.0)
    with pytest.raises(TypeError, match="all_weights has type ndarray; expected a list of arrays"):
        workspace.loss_and_gradients(np.zeros((2, 1)), np.zeros(3), [np.zeros(1)], 0.0)
    with pytest.raises(ValueError, match=r"all_weights has shape \(1, 1, 2\); expected \(3,\)"):
        workspace.loss_and_gradients(np.zeros((2, 1)), [np.zeros((1, 2))], None, 0.0)


def test_gradients_beyond_the_largest_structured_dtype_are_split():
    gradient = np.empty(2**28 + 2**14)  # 2 GB of addresses, no memory
    dl_dweights, dl_dbiases = split(gradient, check_shapes(((2**14, 2**14),), ((2**14,),)))
    assert (dl_dweights.shape, dl_dbiases.shape) == ((2**14, 2**14), (2**14,))
    assert dl_dweights.ctypes.data == gradient.ctypes.data
    assert dl_dbiases.ctypes.data == gradient.ctypes.data + dl_dweights.nbytes
