"""Networks whose gradient threads share: strips of tiles forward and back, then blocks of the gradient."""

import numpy as np
import pytest

import fastbackprop as fb
from benchmarks.cases import batch, network
from fastbackprop import reference
from fastbackprop.engine import plan
from tests.conftest import assert_close, assert_same_bits, smooth_batch
from tests.test_layouts import ZOO

PRIVATE_BYTES = plan.PRIVATE_BYTES
SHAPES = [(300, 500, 2), (20, 400, 330, 3), (400, 400), (130, 1030, 1), (2000, 100)]


@pytest.fixture(autouse=True)
def _shared_from_less(shared_from):
    """The same pass for smaller networks, so that these are fast."""
    shared_from(2**17)


def test_the_scheme_follows_the_shape(shared_from, dtype):
    for layer_sizes in SHAPES:
        assert plan.plan_gradient(layer_sizes, dtype.itemsize, 1000).scheme == "shared"
        assert plan.plan_gradient(layer_sizes, dtype.itemsize, 8).scheme == "few"
    shared_from(PRIVATE_BYTES)
    for layer_sizes in SHAPES:
        assert plan.plan_gradient(layer_sizes, dtype.itemsize, 1000).scheme == "chunks"
    assert plan.plan_gradient((784, 100, 10), dtype.itemsize, 64).scheme == "shared"  # one chunk with much work
    assert plan.plan_gradient((784, 1024, 1024, 10), dtype.itemsize, 1000).scheme == "shared"


@pytest.mark.parametrize("samples", [0, 1, 127, 128, 129, 700])
@pytest.mark.parametrize("layer_sizes", SHAPES, ids=str)
def test_against_the_oracle(layer_sizes, samples, dtype):
    all_weights, all_biases = network(layer_sizes, dtype)
    net_input, y = smooth_batch(layer_sizes, samples, all_weights, all_biases, dtype)
    weight = np.linspace(0.5, 2, samples)
    for options in {}, {"input_gradient": True, "sample_weight": weight, "loss": "half_least_squares"}:
        got = fb.loss_and_gradients(net_input, all_weights, all_biases, y, **options)
        expected = reference.loss_and_gradients(net_input, all_weights, all_biases, y, **options)
        assert got[0] == pytest.approx(expected[0], rel=1e-4 if dtype == np.float32 else 1e-12)
        assert_close(got[1:], expected[1:])
    got = fb.vjp(net_input, all_weights, all_biases, y, input_gradient=True)
    assert_close(got, reference.vjp(net_input, all_weights, all_biases, y, input_gradient=True))
    assert_close(fb.predict(net_input, all_weights, all_biases), reference.predict(net_input, all_weights, all_biases))


@pytest.mark.parametrize("group_bytes", [1, 2**25])
def test_groups(group_bytes, dtype, monkeypatch):
    """Several groups, whose sums go on in double precision, and a last one that is not full."""
    monkeypatch.setattr(plan, "GROUP_BYTES", group_bytes)
    layer_sizes = SHAPES[1]
    all_weights, all_biases = network(layer_sizes, dtype)
    net_input, y = smooth_batch(layer_sizes, 128 * 17 + 5, all_weights, all_biases, dtype)
    groups = plan.plan_gradient(layer_sizes, dtype.itemsize, net_input.shape[1]).chunks
    assert groups >= (9 if group_bytes == 1 else 3)
    workspace, reported = fb.Workspace(layer_sizes, dtype), []
    got = workspace.loss_and_gradients(
        net_input, all_weights, all_biases, y, input_gradient=True, progress=lambda *done: reported.append(done)
    )
    expected = reference.loss_and_gradients(net_input, all_weights, all_biases, y, input_gradient=True)
    assert got[0] == pytest.approx(expected[0], rel=1e-4 if dtype == np.float32 else 1e-12)
    assert_close(got[1:], expected[1:])
    assert len(reported) == groups
    assert reported[-1] == (net_input.shape[1], net_input.shape[1])
    assert reported == sorted(set(reported))


def test_the_notebooks_passes(dtype):
    for layer_sizes in SHAPES:
        all_weights, all_biases = network(layer_sizes, dtype)
        net_input, y = smooth_batch(layer_sizes, 300, all_weights, all_biases, dtype)
        expected = reference.compute_network_output(net_input, all_weights, all_biases)
        assert_close(fb.compute_network_output(net_input, all_weights, all_biases), expected)
        got = fb.backward_pass(all_weights, all_biases, *expected[1:], y, intermediates=True)
        assert_close(got, reference.backward_pass(all_weights, all_biases, *expected[1:], y, intermediates=True))


@pytest.mark.parametrize("samples", [100, 1500])  # one tile, and two groups of many
def test_same_bits_for_any_number_of_threads_and_any_layout(samples, dtype):
    layer_sizes = SHAPES[1]
    all_weights, all_biases = network(layer_sizes, dtype)
    net_input, y = smooth_batch(layer_sizes, samples, all_weights, all_biases, dtype)
    expected = list(fb.loss_and_gradients(net_input, all_weights, all_biases, y, input_gradient=True, num_threads=1))
    swapped = [array.astype(dtype.newbyteorder()) for array in all_weights]
    for count in 2, 3, 8:
        for weights, x in (all_weights, net_input), (swapped, np.asfortranarray(net_input)):
            got = fb.loss_and_gradients(x, weights, all_biases, y, input_gradient=True, num_threads=count)
            assert_same_bits(list(got), expected)


def test_memory_does_not_grow_with_the_batch():
    layer_sizes = SHAPES[0]
    all_weights, all_biases = network(layer_sizes, np.float32)
    workspace = fb.Workspace(layer_sizes, np.float32)
    sizes = []
    for samples in 20_000, 40_000:
        net_input = np.broadcast_to(np.float32(0.5), (300, samples))
        workspace.loss_and_gradients(net_input, all_weights, all_biases, 1.0)
        sizes.append(workspace._engine.nbytes)
    assert sizes[0] == sizes[1]
    assert sizes[0] < plan.GROUP_BYTES + 2**22


@pytest.mark.parametrize("samples", [5, 100, 300])
@pytest.mark.parametrize("animal", ZOO, ids=lambda animal: animal.__name__)
def test_parameters_are_read_where_they_are(animal, samples, dtype, tmp_path, shared_from):
    """Of any layout, as lists or as one vector."""
    shared_from(100)
    layer_sizes = (9, 30, 40, 5)
    all_weights, all_biases = network(layer_sizes, dtype)
    net_input, y = batch(layer_sizes, samples, dtype)
    expected = fb.Workspace(layer_sizes, dtype).loss_and_gradients(net_input, all_weights, all_biases, y)
    caged = [[animal(array, tmp_path) for array in arrays] for arrays in (all_weights, all_biases)]
    workspace = fb.Workspace(layer_sizes, dtype)
    got = workspace.loss_and_gradients(net_input, *caged, y)
    assert_same_bits(list(got), list(expected))
    assert_same_bits(workspace.predict(net_input, *caged), fb.predict(net_input, all_weights, all_biases))
    vector = animal(fb.pack(all_weights, all_biases), tmp_path)
    _, gradient = workspace.loss_and_gradients(net_input, vector, None, y)
    assert_same_bits(gradient, fb.pack(*expected[1:]))
