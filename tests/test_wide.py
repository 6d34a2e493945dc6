"""Networks whose gradient is too large for a copy in each thread: tiles in groups, blocks of the gradient as tasks."""

import threading

import numpy as np
import pytest

import fastbackprop as fb
from benchmarks.cases import batch, network
from fastbackprop import engine, pool, reference, wide
from fastbackprop.kernels import STRIP
from tests.conftest import assert_close, assert_same_bits, smooth_batch
from tests.test_layouts import ZOO

CHUNK_BYTES = pool.CHUNK_BYTES
SHAPES = [(300, 500, 2), (20, 400, 330, 3), (400, 400), (130, 1030, 1)]


def engine_of(layer_sizes, dtype):
    return type(pool.make_engine(layer_sizes, np.dtype(dtype)))


@pytest.fixture(autouse=True)
def _wide_from_less(wide_from):
    """The same engine for smaller networks, so that these are fast."""
    wide_from(2**19)


def test_the_engine_follows_the_shape(wide_from):
    for layer_sizes in SHAPES:
        assert engine_of(layer_sizes, np.float32) is wide.WideEngine
    wide_from(CHUNK_BYTES)
    for layer_sizes in (511, 1024), (10, 512, 1000):
        assert engine_of(layer_sizes, np.float64) is not wide.WideEngine
        assert engine_of((*layer_sizes, 100), np.float64) is wide.WideEngine
        assert engine_of((*layer_sizes, 100), np.float32) is not wide.WideEngine
    assert engine_of((8, *[6] * 3000, 1), np.float32) is not wide.WideEngine
    assert engine_of((8, *[6] * 6000, 1), np.float32) is wide.WideEngine  # of 250,000 parameters, but with large tiles


@pytest.mark.parametrize(
    "layer_sizes", [(1, 6, 1), (64, 128, 10), (784, 256, 256, 10), (511, 1024), (8, *[64] * 90, 1)], ids=str
)
def test_the_sums_of_all_chunks_have_room(layer_sizes, dtype, wide_from):
    """With those of the lanes that work on them; and eight at least, which are as many threads."""
    wide_from(CHUNK_BYTES)
    made = pool.make_engine(layer_sizes, dtype)
    assert type(made) is engine.Engine
    for samples in 9, 1000, 5000, 100_000, 10**7:
        chunks = made.chunks(samples)
        assert [first for first, _ in chunks] == [0, *[last for _, last in chunks[:-1]]]
        assert chunks[-1][1] == samples
        assert len(chunks) in (1, *engine.CHUNK_SAMPLES)
        lengths = [last - first for first, last in chunks]
        assert max(lengths) - min(lengths) <= STRIP
        assert all(first % STRIP == 0 for first, _ in chunks)
        assert len(chunks) == 1 or len(chunks) * made.size * (8 + dtype.itemsize) <= engine.ACCUMULATOR_BYTES
    assert len(chunks) >= 8


@pytest.mark.parametrize(
    ("layer_sizes", "tile_samples", "two_chunks"),
    [
        ((16, 64, 64, 64, 64, 4), (192, 128), (96, 96)),  # with as few samples as there may be in any chunk
        ((784, 100, 10), (128, 128), (96, 154)),  # more for larger gradients
        ((784, 256, 256, 256, 10), (128, 64), (256, 256)),  # and shorter tiles beside large weights
    ],
    ids=str,
)
def test_tiles_and_chunks_follow_the_bytes(layer_sizes, tile_samples, two_chunks, dtype, wide_from):
    wide_from(CHUNK_BYTES)
    made = pool.make_engine(layer_sizes, dtype)
    wanted = dict(zip((4, 8), zip(tile_samples, two_chunks, strict=True), strict=True))
    least = wanted[dtype.itemsize][1]
    assert made.tile_samples == wanted[dtype.itemsize][0]
    assert [len(made.chunks(samples)) for samples in (0, 1, least - 1, least)] == [0, 1, 1, 2]


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
def test_groups_and_flushes(group_bytes, dtype, monkeypatch):
    """More groups than are summed in the element type, and a last one that is not full."""
    monkeypatch.setattr(wide, "GROUP_BYTES", group_bytes)
    layer_sizes = SHAPES[1]
    all_weights, all_biases = network(layer_sizes, dtype)
    net_input, y = smooth_batch(layer_sizes, 2 * 128 * 17 + 5, all_weights, all_biases, dtype)
    workspace = fb.Workspace(layer_sizes, dtype)
    assert workspace._engine.group_tiles == (2 if group_bytes == 1 else workspace._engine.group_tiles)
    told = []
    got = workspace.loss_and_gradients(
        net_input, all_weights, all_biases, y, input_gradient=True, progress=lambda *done: told.append(done)
    )
    expected = reference.loss_and_gradients(net_input, all_weights, all_biases, y, input_gradient=True)
    assert_close(got[1:], expected[1:])
    assert told[-1] == (net_input.shape[1], net_input.shape[1])
    assert told == sorted(set(told))


def test_groups_are_even_and_much_alike(dtype):
    engine = wide.WideEngine(SHAPES[1], dtype)
    assert engine.groups(0) == []
    for tiles in range(1, 41):
        for samples in (128 * tiles - 5, 128 * tiles):
            groups = engine.groups(samples)
            assert [first for first, _ in groups] + [samples] == [0] + [last for _, last in groups]
            sizes = [-(-(last - first) // 128) for first, last in groups]
            assert len(sizes) == -(-tiles // engine.group_tiles)
            assert all(size % 2 == 0 and size == sizes[0] for size in sizes[:-1])
            assert 0 < sizes[-1] <= sizes[0] <= engine.group_tiles


def test_the_notebooks_passes(dtype):
    for layer_sizes in SHAPES:
        all_weights, all_biases = network(layer_sizes, dtype)
        net_input, y = smooth_batch(layer_sizes, 300, all_weights, all_biases, dtype)
        expected = reference.compute_network_output(net_input, all_weights, all_biases)
        assert_close(fb.compute_network_output(net_input, all_weights, all_biases), expected)
        got = fb.backward_pass(all_weights, all_biases, *expected[1:], y, intermediates=True)
        assert_close(got, reference.backward_pass(all_weights, all_biases, *expected[1:], y, intermediates=True))


def test_same_bits_for_any_number_of_threads_and_any_layout(dtype):
    layer_sizes = SHAPES[1]
    all_weights, all_biases = network(layer_sizes, dtype)
    net_input, y = smooth_batch(layer_sizes, 1500, all_weights, all_biases, dtype)
    expected = list(fb.loss_and_gradients(net_input, all_weights, all_biases, y, input_gradient=True, num_threads=1))
    swapped = [array.astype(dtype.newbyteorder()) for array in all_weights]
    for count in 2, 3, 8:
        for weights, x in (all_weights, net_input), (swapped, np.asfortranarray(net_input)):
            got = fb.loss_and_gradients(x, weights, all_biases, y, input_gradient=True, num_threads=count)
            assert_same_bits(list(got), expected)


def test_buffers_are_made_by_the_calling_thread(monkeypatch):
    """Several threads that make one at the same time would add up in different ones."""
    made = []
    original = wide.aligned

    def noted(size, dtype):
        made.append((threading.get_ident(), size))
        return original(size, dtype)

    monkeypatch.setattr(wide, "aligned", noted)
    layer_sizes = SHAPES[1]
    all_weights, all_biases = network(layer_sizes)
    net_input, y = smooth_batch(layer_sizes, 700, all_weights, all_biases, np.dtype(np.float64))
    workspace = fb.Workspace(layer_sizes, num_threads=4)
    workspace.loss_and_gradients(net_input, all_weights, all_biases, y)
    own = wide.TILE_SAMPLES * (workspace._engine.task_columns + 16 + 1)
    assert {size for ident, size in made if ident != threading.get_ident()} <= {own}
    assert (threading.get_ident(), workspace._engine._partial_size) in made


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
    assert sizes[0] < wide.GROUP_BYTES + 2**22


@pytest.mark.parametrize("samples", [5, 100, 300])
@pytest.mark.parametrize("animal", ZOO, ids=lambda animal: animal.__name__)
def test_parameters_are_read_where_they_are(animal, samples, dtype, tmp_path, wide_from):
    """Of any layout, as lists or as one vector; as they come for few tiles, transposed for more."""
    wide_from(100)
    layer_sizes = (9, 30, 40, 5)
    all_weights, all_biases = network(layer_sizes, dtype)
    net_input, y = batch(layer_sizes, samples, dtype)
    expected = fb.Workspace(layer_sizes, dtype).loss_and_gradients(net_input, all_weights, all_biases, y)
    caged = [[animal(array, tmp_path) for array in arrays] for arrays in (all_weights, all_biases)]
    workspace = fb.Workspace(layer_sizes, dtype)
    assert isinstance(workspace._engine, wide.WideEngine)
    got = workspace.loss_and_gradients(net_input, *caged, y)
    assert_same_bits(list(got), list(expected))
    assert_same_bits(workspace.predict(net_input, *caged), fb.predict(net_input, all_weights, all_biases))
    vector = animal(fb.pack(all_weights, all_biases), tmp_path)
    _, gradient = workspace.loss_and_gradients(net_input, vector, None, y)
    assert_same_bits(gradient, fb.pack(*expected[1:]))
