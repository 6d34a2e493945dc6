"""What each sample says: against the oracle, finite differences and PyTorch; and the largest and smallest numbers."""

import itertools
import re

import numpy as np
import pytest

import fastbackprop as fb
from benchmarks.cases import batch, network
from fastbackprop import reference
from fastbackprop.engine import engine, memory, plan, pool
from fastbackprop.engine.calls import Call
from fastbackprop.losses import LOSSES
from fastbackprop.parallel import cpus
from tests.conftest import assert_close, assert_same_bits, smooth_batch, target_of

CALLS = {
    "clipped": ("clipped_gradients", {"max_norm": 2.0}),
    "clipped mean": ("clipped_gradients", {"max_norm": 0.3, "reduction": "mean"}),
    "norms": ("per_sample_gradient_norms", {}),
    "layer norms": ("per_sample_gradient_norms", {"per_layer": True}),
    "squares": ("squared_gradient_sums", {}),
    "gradients": ("per_sample_gradients", {}),
}
every_call = pytest.mark.parametrize("call", list(CALLS))
NETWORKS = [(3, 2), (1, 6, 6, 6, 1), (8, 32, 32, 32, 1), (30, 24, 50, 23, 40), (40, 300, 24, 7)]
of_networks = pytest.mark.parametrize("layer_sizes", NETWORKS, ids=str)


def called(call, given, where=fb, **options):
    """The result of one of the calls on (net_input, all_weights, all_biases, y), of the package or of the oracle."""
    name, fixed = CALLS[call]
    return getattr(where, name)(*given, **fixed, **options)


def flat(result):
    """The arrays of a result one by one."""
    return list(itertools.chain.from_iterable(part if isinstance(part, list) else [part] for part in result))


def assert_alike(got, expected, tolerance=None):
    """Compare two results in norm: the loss of float32 data is a Python float, of the same precision."""
    dtype = flat(expected)[-1].dtype
    for found, wanted in zip(flat(got), flat(expected), strict=True):
        if isinstance(wanted, float):
            assert isinstance(found, float)
            found, wanted = dtype.type(found), dtype.type(wanted)
        assert_close(found, wanted, tolerance)


def given_for(layer_sizes, samples, dtype, loss="least_squares"):
    parameters = network(layer_sizes, dtype)
    net_input, y = smooth_batch(layer_sizes, samples, *parameters, dtype)
    return net_input, *parameters, target_of(loss, y)


@every_call
@of_networks
@pytest.mark.parametrize("samples", [1, 5, 16, 65, 700])
def test_as_the_oracle(call, layer_sizes, samples, dtype):
    """Partial tiles and vectors, several tiles and chunks, layers along the units and along the samples."""
    given = given_for(layer_sizes, samples, dtype)
    assert_alike(called(call, given), called(call, given, reference))


@every_call
@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss(call, loss, dtype):
    given = given_for((8, 20, 30, 4), 150, dtype, loss)
    assert_alike(called(call, given, loss=loss), called(call, given, reference, loss=loss))


@every_call
def test_class_numbers(call, dtype):
    net_input, *parameters, _ = given_for((8, 20, 30, 4), 150, dtype)
    given = net_input, *parameters, np.arange(150) % 4
    loss = "softmax_cross_entropy"
    assert_alike(called(call, given, loss=loss), called(call, given, reference, loss=loss))


@every_call
def test_many_samples_come_slice_by_slice(call, dtype, monkeypatch):
    given = given_for((5, 24, 30, 2), 3000, dtype)
    whole = flat(called(call, given))
    monkeypatch.setattr(plan, "SLICE_FLOPS", 2**20)
    pool._free.clear()
    seen = []
    assert_same_bits(flat(called(call, given, progress=lambda *done: seen.append(done))), whole)
    assert len(seen) > 3
    assert seen[-1] == (3000, 3000)


@every_call
@pytest.mark.parametrize("layout", ["fortran", "strided", "swapped", "integers"])
def test_any_memory_order(call, layout):
    net_input, weights, biases, y = given_for((6, 24, 30, 3), 90, np.float64)
    net_input = np.round(4 * net_input) + 0.0  # no -0.0, which no integer is
    plain = flat(called(call, (net_input, weights, biases, y)))
    change = {
        "fortran": np.asfortranarray,
        "strided": lambda array: np.repeat(np.repeat(array, 2, 0), 3, 1)[::2, ::3],
        "swapped": lambda array: array.astype(array.dtype.newbyteorder()),
        "integers": lambda array: array,
    }[layout]
    changed = net_input.astype(int) if layout == "integers" else change(net_input)
    given = changed, [change(array) for array in weights], [change(array) for array in biases], change(y)
    assert_same_bits(flat(called(call, given)), plain)


@every_call
@of_networks
def test_packed_parameters(call, layer_sizes, dtype):
    net_input, weights, biases, y = given_for(layer_sizes, 70, dtype)
    workspace, (name, fixed) = fb.Workspace(layer_sizes, dtype), CALLS[call]
    lists = called(call, (net_input, weights, biases, y))
    assert_same_bits(flat(getattr(workspace, name)(net_input, weights, biases, y, **fixed)), flat(lists))
    packed = getattr(workspace, name)(net_input, fb.pack(weights, biases), None, y, **fixed)
    pack = packed_samples if call == "gradients" else fb.pack
    parts = iter(lists)
    expected = [pack(part, next(parts)) if isinstance(part, list) else part for part in parts]
    assert_same_bits(list(packed), expected)


def packed_samples(all_dl_dweights, all_dl_dbiases):
    """The gradient of each sample as a row."""
    pairs = zip(all_dl_dweights, all_dl_dbiases, strict=True)
    return np.hstack([array.reshape(len(array), -1) for pair in pairs for array in pair])


@every_call
def test_the_same_bits_for_any_number_of_threads(call, dtype, monkeypatch):
    monkeypatch.setattr(cpus, "processors", lambda: 64)
    monkeypatch.setattr(plan, "CHUNK_FLOPS", 2**12)
    monkeypatch.setattr(engine, "pauses", lambda _flops: 2**18)
    threads, make = [], Call.__init__

    def counted(made, *arguments):
        make(made, *arguments)
        run = made.run_call
        made.run_call = lambda *passed: threads.append(run(*passed))

    monkeypatch.setattr(Call, "__init__", counted)
    given = given_for((8, 32, 40, 3), 2500, dtype)
    pool._free.clear()
    alone = flat(called(call, given, num_threads=1))
    for count in 2, 3, 5, 8:
        pool._free.clear()
        threads.clear()
        for _ in range(100):
            assert_same_bits(flat(called(call, given, num_threads=count)), alone)
            if max(threads) == count:  # on a busy machine, not all workers come to every call
                break
        assert max(threads) == count
    pool._free.clear()


@every_call
@pytest.mark.parametrize("layer_sizes", [(3, 2), (4, 24, 30, 2)], ids=str)
def test_no_samples(call, layer_sizes, dtype):
    given = np.empty((layer_sizes[0], 0), dtype), *network(layer_sizes, dtype), np.empty((layer_sizes[-1], 0), dtype)
    if call == "clipped mean":
        with pytest.raises(ValueError, match="there are no samples"):
            called(call, given)
    else:
        assert_same_bits(flat(called(call, given)), flat(called(call, given, reference)))


def test_the_gradient_of_each_sample_is_the_derivative_of_its_loss():
    """Central differences of each parameter, of all samples at once."""
    weights, biases = network((3, 5, 4, 2), np.float64)
    net_input, y = smooth_batch((3, 5, 4, 2), 9, weights, biases, np.float64)
    losses, *gradients = fb.per_sample_gradients(net_input, weights, biases, y)
    for parameters, derivatives in zip((weights, biases), gradients, strict=True):
        for array, derivative in zip(parameters, derivatives, strict=True):
            for place in np.ndindex(array.shape):
                at, found = array[place], []
                for step in 1e-6, -1e-6:
                    array[place] = at + step
                    found.append(reference.squared_errors(reference.predict(net_input, weights, biases), y))
                array[place] = at
                difference = (found[0] - found[1]) / 2e-6
                np.testing.assert_allclose(derivative[(slice(None), *place)], difference, rtol=1e-5, atol=1e-7)
    assert_close(losses, reference.squared_errors(reference.predict(net_input, weights, biases), y))


def norms_of(gradients):
    """Norms of gradients that were stored, in extended precision, whose exponents have more bits."""
    rows = [np.reshape(array, (len(array), -1)).astype(np.longdouble) for array in gradients]
    return np.sqrt(sum(np.sum(row * row, axis=1) for row in rows))


@of_networks
def test_norms_are_those_of_the_gradients(layer_sizes, dtype):
    given = given_for(layer_sizes, 200, dtype)
    _, *gradients = fb.per_sample_gradients(*given)
    _, norms = fb.per_sample_gradient_norms(*given)
    _, layers = fb.per_sample_gradient_norms(*given, per_layer=True)
    tolerance = 1e-6 if dtype == np.float32 else 1e-14
    np.testing.assert_allclose(norms, norms_of(itertools.chain(*gradients)).astype(np.float64), rtol=tolerance)
    for k, pair in enumerate(zip(*gradients, strict=True)):
        np.testing.assert_allclose(layers[k], norms_of(pair).astype(np.float64), rtol=tolerance)
    assert_close(fb.clipped_gradients(*given, max_norm=1.0)[3], norms, 1e-15)


@of_networks
def test_float32_agrees_with_float64(layer_sizes):
    given = given_for(layer_sizes, 500, np.float32)
    wide = [[part.astype(np.float64) for part in given[k]] if k in (1, 2) else given[k].astype(float) for k in range(4)]
    norms, expected = fb.per_sample_gradient_norms(*given)[1], fb.per_sample_gradient_norms(*wide)[1]
    assert np.linalg.norm(norms - expected) <= 1e-6 * np.linalg.norm(expected)


def oracle_norms(given, **options):
    with np.errstate(all="ignore"):
        return reference.per_sample_gradient_norms(*given, **options)[1]


EXTREMES = {
    "float32": [(1e25, 1.0), (1e-30, 1e-8), (1e25, 1e-30), (1e-22, 1e-22)],
    "float64": [(1e180, 1.0), (1e-180, 1e-100), (1e200, 1e-280), (1e-170, 1e-170), (1e300, 1e-300)],
}


@pytest.mark.parametrize("number", range(5))
def test_no_square_is_too_large_or_too_small(dtype, number):
    """Inputs and slopes whose squares leave the range, though the norms do not."""
    if number == len(EXTREMES[dtype.name]):
        pytest.skip("there are four cases of float32")
    size, slope = EXTREMES[dtype.name][number]
    rng = np.random.default_rng(0)
    # The output is 0 exactly, so the slopes are those of y; and h_1 = 1.
    weights = [np.zeros((24, 30), dtype), np.tile(np.array([1, -1], dtype), (2, 12))]
    biases = [np.ones((24, 1), dtype), np.zeros((2, 1), dtype)]
    net_input = (size * rng.normal(size=(30, 100))).astype(dtype)
    y = (slope * rng.normal(size=(2, 100))).astype(dtype)
    given = net_input, weights, biases, y
    with np.errstate(all="ignore"):
        _, *gradients = fb.per_sample_gradients(*given)
        expected = norms_of(itertools.chain(*gradients)).astype(dtype)
    assert np.isfinite(expected).all()
    assert (expected > 0).all()
    tolerance = 1e-6 if dtype == np.float32 else 1e-14
    np.testing.assert_allclose(fb.per_sample_gradient_norms(*given)[1], expected, rtol=tolerance)
    np.testing.assert_allclose(oracle_norms(given), expected, rtol=tolerance)
    layers = fb.per_sample_gradient_norms(*given, per_layer=True)[1]
    np.testing.assert_allclose(layers, oracle_norms(given, per_layer=True), rtol=tolerance)
    layers = layers.astype(np.longdouble)
    np.testing.assert_allclose(np.sqrt(np.sum(layers * layers, axis=0)).astype(dtype), expected, rtol=tolerance)


def test_clipped_norms_are_at_most_the_bound(dtype):
    given = given_for((8, 32, 5), 64, dtype)
    net_input, *parameters, y = given
    norms = fb.per_sample_gradient_norms(*given)[1]
    for bound in 1e-3, float(np.median(norms)), 1e6, np.inf:
        *_, found = fb.clipped_gradients(*given, max_norm=bound)
        assert_close(found, norms, 1e-7)
        for n in range(0, 64, 7):
            sample = net_input[:, n : n + 1], *parameters, y[:, n : n + 1]
            _, *clipped, norm = fb.clipped_gradients(*sample, max_norm=bound)
            _, *whole = fb.loss_and_gradients(*sample)
            length = float(norms_of([array[None] for array in flat(clipped)])[0])
            assert length == pytest.approx(min(bound, norm[0]), rel=1e-5)
            assert_close(clipped, [[array * min(1, bound / norm[0]) for array in part] for part in whole], 1e-5)


def test_without_a_bound_it_is_the_gradient(dtype):
    given = given_for((8, 32, 40, 5), 300, dtype)
    weight = np.linspace(-1, 3, 300)
    loss, *gradients, _ = fb.clipped_gradients(*given, max_norm=np.inf, sample_weight=weight)
    expected = fb.loss_and_gradients(*given, sample_weight=weight)
    assert loss == pytest.approx(expected[0], rel=1e-6)
    assert_close(gradients, list(expected[1:]))


def test_weights_multiply_what_was_clipped(dtype):
    given = given_for((8, 32, 5), 200, dtype)
    weight = np.random.default_rng(3).uniform(-1, 5, 200)
    for reduction in "sum", "mean":
        options = {"sample_weight": weight, "reduction": reduction}
        got, expected = (where.clipped_gradients(*given, 0.5, **options) for where in (fb, reference))
        assert got[0] == pytest.approx(expected[0], rel=1e-5)
        assert_close(flat(got[1:]), flat(expected[1:]))
    by_mean = fb.clipped_gradients(*given, 0.5, sample_weight=np.zeros(200), reduction="mean")
    assert by_mean[0] == 0
    assert not by_mean[1][0].any()


@every_call
def test_what_is_no_number_stays_where_numpy_has_it(call, dtype):
    """NaN and infinities in the input, in a target and in a weight of the network."""
    net_input, weights, biases, y = given_for((4, 24, 30, 3), 60, dtype)
    net_input[1, 3], net_input[2, 17], y[0, 40] = np.nan, np.inf, -np.inf
    with np.errstate(all="ignore"):
        expected = flat(called(call, (net_input, weights, biases, y), reference))
    got = flat(called(call, (net_input, weights, biases, y)))
    for found, wanted in zip(got, expected, strict=True):
        np.testing.assert_array_equal(np.isnan(found), np.isnan(wanted))
        np.testing.assert_array_equal(np.isinf(found), np.isinf(wanted))
    if call in ("gradients", "norms", "layer norms"):  # other samples are as if alone
        fine = np.setdiff1d(np.arange(60), [3, 17, 40])
        sample = net_input[:, fine], weights, biases, y[:, fine]
        alone = called(call, sample)
        assert_same_bits([np.take(array, fine, -1 if "norms" in call else 0) for array in got], flat(alone))


def test_a_sample_of_infinite_norm_counts_0_times():
    """dl/df_k is multiplied by 0."""
    weights, biases = [np.array([[1.0, 1e-300]])], [np.zeros((1, 1))]
    _, (dl_dweights,), (dl_dbiases,), norms = fb.clipped_gradients(
        np.array([[1e-9], [1e300]]), weights, biases, -1e9, 1.0
    )
    np.testing.assert_array_equal(norms, [np.inf])
    np.testing.assert_array_equal(dl_dweights, [[0.0, 0.0]])
    np.testing.assert_array_equal(dl_dbiases, [[0.0]])


@pytest.mark.parametrize(
    ("net_input", "weight", "y", "max_norm"),
    [(1e20, 1.0, -1e24, 0.16), (1e20, 1.0, -1e20, 1.0), (1e25, 1e-25, -1.0, 1e-20)],
)
def test_the_bound_holds_for_factors_that_float32_hardly_has(net_input, weight, y, max_norm):
    given = [np.array([[value]], np.float32) for value in (net_input, weight, 0.0, y)]
    with np.errstate(over="ignore"):
        results = [
            where.clipped_gradients(given[0], [given[1]], [given[2]], given[3], max_norm) for where in (fb, reference)
        ]
    for _, *gradients, norms in results:
        assert norms[0] > 1e25
        assert norms_of([array[None] for array in flat(gradients)])[0] <= max_norm * (1 + 1e-6)


def test_without_a_bound_an_infinite_norm_clips_nothing():
    given = np.ones((1, 1)), [np.eye(1)], [np.zeros((1, 1))], np.array([[-0.75e308]])
    with np.errstate(over="ignore"):
        results = [where.clipped_gradients(*given, np.inf) for where in (fb, reference)]
    for _, *gradients, norms in results:
        assert np.isinf(norms[0])
        assert_same_bits(gradients, list(fb.loss_and_gradients(*given)[1:]))


def test_arrays_of_the_caller(dtype, tmp_path):
    """Written where they stand: arrays of a file, rows far apart; or copied to: other orders and dtypes."""
    given = given_for((6, 24, 3), 50, dtype)
    _, *expected = fb.per_sample_gradients(*given)
    shapes = [[array.shape for array in part] for part in expected]

    def mapped(shape):
        return np.memmap(tmp_path / f"{len(list(tmp_path.iterdir()))}", dtype, "w+", shape=shape)

    makers = [
        mapped,
        lambda shape: np.full((2 * shape[0], *shape[1:]), np.nan, dtype)[::2],
        lambda shape: np.full((shape[0], *shape[1:]), np.nan, dtype)[::-1],
        lambda shape: np.full(shape, np.nan, dtype, order="F"),
        np.zeros,
    ]
    for make in makers:
        out = tuple([make(shape) for shape in part] for part in shapes)
        _, *got = fb.per_sample_gradients(*given, out=out)
        assert all(array is target for array, target in zip(flat(got), flat(out), strict=True))
        for array, wanted in zip(flat(got), flat(expected), strict=True):
            np.testing.assert_array_equal(array, wanted)
    out = np.full((50, 6 * 24 + 24 + 24 * 3 + 3), np.nan, dtype)
    workspace, vector = fb.Workspace((6, 24, 3), dtype), fb.pack(*given[1:3])
    _, got = workspace.per_sample_gradients(given[0], vector, None, given[3], out=out)
    assert got is out
    assert_same_bits(out, workspace.per_sample_gradients(given[0], vector, None, given[3])[1])


def test_arrays_that_are_read_as_well(dtype):
    """out where the input stands: the result is as if they were apart."""
    net_input, weights, biases, y = given_for((24, 1), 40, dtype)
    memory_of_both = np.empty(24 * 40, dtype)
    shared = memory_of_both.reshape(24, 40)
    shared[...] = net_input
    out = [memory_of_both.reshape(40, 1, 24)], [np.empty((40, 1, 1), dtype)]
    expected = flat(fb.per_sample_gradients(net_input, weights, biases, y))
    assert_same_bits(flat(fb.per_sample_gradients(shared, weights, biases, y, out=out)), expected)


def test_clipped_gradients_into_arrays_of_the_caller(dtype):
    given = given_for((6, 24, 3), 50, dtype)
    expected = fb.clipped_gradients(*given, 1.0)
    out = tuple([np.full_like(array, np.nan) for array in part] for part in expected[1:3])
    got = fb.clipped_gradients(*given, 1.0, out=out)
    assert got[1] is out[0]
    assert_same_bits(flat(got), flat(expected))


def test_a_result_larger_than_memory():
    weights, biases = network((10, 1000, 10), np.float32)
    net_input = np.broadcast_to(np.float32(1), (10, 10_000_000))
    with pytest.raises(MemoryError, match=r"the gradients of 10000000 samples take 782\.7 GiB, and there are .*: pass"):
        fb.per_sample_gradients(net_input, weights, biases, 0.0)
    memory.check_size(2**20, "a megabyte", "")


def test_memory_does_not_grow_with_the_batch(dtype):
    """But for the norms themselves."""
    sizes = (8, 32, 32, 32, 1)
    weights, biases = network(sizes, dtype)
    for call in "clipped", "norms", "squares":
        held = []
        for samples in 1_000_000, 2_000_000:
            workspace, (name, fixed) = fb.Workspace(sizes, dtype, num_threads=2), CALLS[call]
            net_input = np.broadcast_to(np.ones((8, 1), dtype), (8, samples))
            getattr(workspace, name)(net_input, weights, biases, 0.0, **fixed)
            held.append(workspace._engine.nbytes)
        assert held[1] < held[0] + 2**21 < 64e6


@pytest.mark.parametrize("loss", LOSSES)
def test_as_pytorch(loss, dtype):
    """vmap(grad) of the loss of one sample."""
    torch = pytest.importorskip("torch", reason="the extra peers brings it")
    of_one = {
        "least_squares": lambda output, y: torch.sum((output - y) ** 2),
        "half_least_squares": lambda output, y: torch.sum((output - y) ** 2) / 2,
        "softmax_cross_entropy": torch.nn.functional.cross_entropy,
        "binary_cross_entropy": lambda output, y: torch.nn.functional.binary_cross_entropy_with_logits(
            output, y, reduction="sum"
        ),
    }[loss]
    given = given_for((6, 24, 30, 4), 40, dtype, loss)
    net_input, weights, biases, y = [
        [torch.from_numpy(array.copy()) for array in part] if isinstance(part, list) else torch.from_numpy(part.copy())
        for part in given
    ]

    def loss_of_one(parameters, x, target):
        h = x
        for k, (matrix, bias) in enumerate(zip(*parameters, strict=True)):
            h = matrix @ h + bias[:, 0]
            h = torch.relu(h) if k < len(weights) - 1 else h
        return of_one(h, target)

    every = torch.func.vmap(torch.func.grad(loss_of_one), in_dims=(None, 0, 0))
    expected = every((weights, biases), net_input.T, y.T)
    _, *got = fb.per_sample_gradients(*given, loss=loss)
    assert_close(got, [[array.numpy() for array in part] for part in expected])


NUMBER = "expected a positive number"
REFUSED = {
    "max_norm 0": ({"max_norm": 0}, ValueError, f"max_norm is 0; {NUMBER}"),
    "max_norm below 0": ({"max_norm": -1.0}, ValueError, f"max_norm is -1.0; {NUMBER}"),
    "max_norm NaN": ({"max_norm": np.nan}, ValueError, f"max_norm is nan; {NUMBER}"),
    "max_norm a string": ({"max_norm": "1"}, TypeError, f"max_norm is '1'; {NUMBER}"),
    "max_norm an array": ({"max_norm": np.ones(2)}, TypeError, f"max_norm is array([1., 1.]); {NUMBER}"),
    "max_norm true": ({"max_norm": True}, TypeError, f"max_norm is True; {NUMBER}"),
    "max_norm None": ({"max_norm": None}, TypeError, f"max_norm is None; {NUMBER}"),
    "reduction": ({"reduction": "max"}, ValueError, "reduction is 'max'; expected 'sum' or 'mean'"),
    "weight": (
        {"sample_weight": [1.0]},
        ValueError,
        "sample_weight has shape (1,); expected (5,): one for each sample",
    ),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_clipping_refuses(name):
    options, error, message = REFUSED[name]
    given = given_for((2, 3, 1), 5, np.float64)
    with pytest.raises(error, match=re.escape(message)):
        fb.clipped_gradients(*given, **{"max_norm": 1.0, **options})
    assert fb.clipped_gradients(*given, max_norm=10**400)[0] > 0  # beyond all doubles: nothing is clipped


@every_call
def test_losses_have_names(call):
    given, pair = given_for((2, 3, 1), 5, np.float64), (np.subtract, np.subtract)
    for loss, error in (pair, TypeError), (None, TypeError), ("mse", ValueError):
        with pytest.raises(
            error, match=r"loss is .*; expected one of 'binary_cross_entropy', .*, 'softmax_cross_entropy'"
        ):
            called(call, given, loss=loss)


def test_out_that_cannot_hold_a_gradient():
    workspace, given = fb.Workspace((1, 1)), (np.ones((1, 2)), np.ones(2), None, 0.0)
    with pytest.raises(TypeError, match="out is a masked array; expected a plain one"):
        workspace.per_sample_gradients(*given, out=np.ma.masked_all((2, 2)))
    shared = np.lib.stride_tricks.as_strided(np.empty(2), (2, 2), (0, 8))
    with pytest.raises(ValueError, match=re.escape("out has entries that share memory (strides (0, 8)); expected")):
        workspace.per_sample_gradients(*given, out=shared)


def test_out_of_other_shapes():
    given = given_for((2, 3, 1), 5, np.float64)
    out = [np.empty((5, 3, 2)), np.empty((1, 3))], [np.empty((5, 3, 1)), np.empty((5, 1, 1))]
    with pytest.raises(
        ValueError, match=re.escape("out[0][1] has shape (1, 3); expected (5, 1, 3), a gradient for each")
    ):
        fb.per_sample_gradients(*given, out=out)
    workspace, vector = fb.Workspace((2, 3, 1)), fb.pack(*given[1:3])
    for wrong, error, message in (
        (np.empty((4, 13)), ValueError, "out has shape (4, 13); expected (5, 13), a gradient for each sample"),
        ([], TypeError, "out has type list; expected an array (N, P), as the parameters are one vector"),
    ):
        with pytest.raises(error, match=re.escape(message)):
            workspace.per_sample_gradients(given[0], vector, None, given[3], out=wrong)


def test_a_wide_network(dtype):
    """A gradient that would be shared if it were not of each sample: it is summed in chunks all the same."""
    given = given_for((50, 900, 1100, 3), 140, dtype)
    assert plan.plan_gradient((50, 900, 1100, 3), dtype.itemsize, 140).scheme == "shared"
    for call in CALLS:
        if call != "gradients":
            assert_alike(called(call, given), called(call, given, reference))


@every_call
def test_random_batches(call, dtype):
    """Every number of samples up to a few vectors, so that no lane of a partial vector is lost or counted."""
    for samples in range(1, 40):
        given = batch((5, 24, 2), samples, dtype, seed=samples)
        given = given[0], *network((5, 24, 2), dtype), given[1]
        assert_close(
            flat(called(call, given)), flat(called(call, given, reference)), 1e-4 if dtype == np.float32 else None
        )
