"""Arrays as scripts have them: any memory order, strides, alignment, byte order; results do not depend on it."""

import tracemalloc

import numpy as np
import pytest

import fastbackprop as fb
from benchmarks.cases import batch, network
from fastbackprop import reference
from tests.conftest import assert_close, assert_same_bits, smooth_batch

LAYER_SIZES = (3, 6, 5, 2)


def fortran(array, _path):
    return np.asfortranarray(array)


def transposed_rows(array, _path):
    return np.ascontiguousarray(array.T).T


def every_second(array, _path):
    unused = np.nan if array.dtype.kind == "f" else 99
    storage = np.full(tuple(2 * size for size in array.shape), unused, array.dtype)
    view = storage[tuple(slice(0, None, 2) for _ in array.shape)]
    view[...] = array
    return view


def negative_strides(array, _path):
    flip = tuple(slice(None, None, -1) for _ in array.shape)
    return array[flip].copy()[flip]


def unaligned(array, _path):
    storage = np.zeros(array.nbytes + 1, np.uint8)
    view = storage[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    assert not view.flags.aligned or array.size == 0
    return view


def field_of_a_record(array, _path):
    storage = np.zeros(array.shape, [("tag", "u1"), ("value", array.dtype)])
    storage["value"] = array
    return storage["value"]


def read_only(array, _path):
    view = array.view()
    view.flags.writeable = False
    return view


def byte_swapped(array, _path):
    return array.astype(array.dtype.newbyteorder())


def memory_mapped(array, path):
    file = path / f"{np.random.default_rng().integers(2**62)}.npy"
    np.save(file, array)
    return np.load(file, mmap_mode="r")


ZOO = [
    fortran,
    transposed_rows,
    every_second,
    negative_strides,
    unaligned,
    field_of_a_record,
    read_only,
    byte_swapped,
    memory_mapped,
]


@pytest.mark.parametrize("samples", [1, 7, 257, 70_000])
@pytest.mark.parametrize("animal", ZOO, ids=lambda animal: animal.__name__)
def test_every_layout_gives_the_same_bits(animal, samples, dtype, tmp_path):
    all_weights, all_biases = network(LAYER_SIZES, dtype)
    net_input, y = batch(LAYER_SIZES, samples, dtype)
    weight = np.linspace(1, 2, samples).astype(dtype)
    plain = [net_input, all_weights, all_biases, y, weight]
    caged = [
        [animal(array, tmp_path) for array in part] if isinstance(part, list) else animal(part, tmp_path)
        for part in plain
    ]
    copies = [[np.array(array) for array in part] if isinstance(part, list) else np.array(part) for part in caged]

    def everything(net_input, all_weights, all_biases, y, weight):
        fused = fb.loss_and_gradients(net_input, all_weights, all_biases, y, sample_weight=weight, input_gradient=True)
        seeded = fb.vjp(net_input, all_weights, all_biases, y, input_gradient=True)
        output, all_f, all_h = fb.compute_network_output(net_input, all_weights, all_biases)
        caged_f = [animal(f, tmp_path) for f in all_f] if net_input is caged[0] else all_f
        caged_h = [animal(h, tmp_path) for h in all_h] if net_input is caged[0] else all_h
        back = fb.backward_pass(all_weights, all_biases, caged_f, caged_h, y, intermediates=True)
        predicted = fb.predict(net_input, all_weights, all_biases)
        return [*fused[1:], *seeded, output, all_f, all_h[1:], *back, predicted, fused[0]]

    assert_same_bits(everything(*caged), everything(*plain))
    assert_same_bits(caged, copies)


def test_the_mean_over_weights_has_the_same_bits():
    all_weights, all_biases = network((2, 3, 1))
    net_input, y = batch((2, 3, 1), 20_000)
    for seed in range(20):
        weight = np.random.default_rng(seed).uniform(size=20_000)
        options = {"reduction": "mean", "input_gradient": True}
        expected = fb.loss_and_gradients(net_input, all_weights, all_biases, y, sample_weight=weight, **options)
        for animal in unaligned, byte_swapped, negative_strides, every_second:
            caged = animal(weight, None)
            got = fb.loss_and_gradients(net_input, all_weights, all_biases, y, sample_weight=caged, **options)
            assert_same_bits(list(got), list(expected))


def test_zero_strides(dtype):
    """The same sample many times, and parameters that are one number."""
    net_input = np.broadcast_to(np.array([[0.5], [1.0], [-2.0]], dtype), (3, 100))
    all_weights = [np.broadcast_to(dtype.type(0.25), (4, 3)), np.broadcast_to(dtype.type(-1.5), (2, 4))]
    all_biases = [np.broadcast_to(dtype.type(1), (4, 1)), np.broadcast_to(dtype.type(0), (2,))]
    got = fb.loss_and_gradients(net_input, all_weights, all_biases, 1.0)
    expected = reference.loss_and_gradients(net_input, all_weights, all_biases, np.ones((2, 100), dtype))
    assert_close(got[1:], expected[1:])
    _, all_f, all_h = fb.compute_network_output(net_input, all_weights, all_biases)
    assert_close(all_f, reference.compute_network_output(net_input, all_weights, all_biases)[1])
    assert_close(fb.backward_pass(all_weights, all_biases, all_f, all_h, 1.0), expected[1:])


def test_batches_cut_as_scripts_cut_them(dtype):
    rows = np.random.default_rng(0).standard_normal((50, 3)).astype(dtype)
    order = np.random.default_rng(1).permutation(50)
    all_weights, all_biases = network(LAYER_SIZES, dtype)
    for net_input in rows.T, rows.T[:, order], rows[order[:20]].T, rows.T[:, 10:30], np.asfortranarray(rows.T)[:, ::3]:
        got = fb.loss_and_gradients(net_input, all_weights, all_biases, 1.0)
        target = np.ones((2, net_input.shape[1]), dtype)
        assert_close(got[1:], reference.loss_and_gradients(net_input, all_weights, all_biases, target)[1:])


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.int16, np.bool_])
def test_integer_inputs_count_as_float64(kind):
    all_weights, all_biases = network(LAYER_SIZES, np.float32)
    net_input = np.random.default_rng(0).integers(0, 2, (3, 90_000)).astype(kind)
    got = fb.loss_and_gradients(net_input, all_weights, all_biases, 1)
    wide = [[array.astype(np.float64) for array in arrays] for arrays in (all_weights, all_biases)]
    expected = reference.loss_and_gradients(net_input.astype(np.float64), *wide, np.ones((2, 90_000)))
    assert_close(got[1:], expected[1:], 1e-11)


def test_what_makes_a_result_float64():
    all_weights, all_biases = network((2, 3, 1), np.float32)
    net_input, y = batch((2, 3, 1), 4, np.float32)

    def kind(x=net_input, w=all_weights, b=all_biases, t=y, **options):
        return fb.loss_and_gradients(x, w, b, t, **options)[1][0].dtype

    assert kind() == np.float32
    for target in 1, 1.5, y.astype(np.int64), np.int32(3), True:
        assert kind(t=target) == np.float32
    assert kind(sample_weight=np.ones(4)) == np.float32
    for wide in (
        {"x": net_input.astype(np.float64)},
        {"w": [all_weights[0], all_weights[1].astype(np.float64)]},
        {"b": [all_biases[0].astype(np.float64), all_biases[1]]},
        {"t": y.astype(np.float64)},
        {"t": np.float64(1)},
    ):
        assert kind(**wide) == np.float64
    assert fb.vjp(net_input, all_weights, all_biases, y.astype(np.float64))[0][0].dtype == np.float64
    assert fb.predict(net_input, all_weights, all_biases).dtype == np.float32


@pytest.mark.parametrize("kind", ["float64", "float32", ">f8", "int16"])
def test_nothing_of_the_size_of_the_batch_is_allocated(kind):
    """Neither for large batches nor for their conversion: two million samples would be 16 MB in each row."""
    all_weights, all_biases = network((2, 6, 6, 1))
    net_input = np.broadcast_to(np.ones((2, 1), kind), (2, 2_000_000))
    fb.loss_and_gradients(net_input[:, :100_000], all_weights, all_biases, 1.0)
    tracemalloc.start()
    try:
        fb.loss_and_gradients(net_input, all_weights, all_biases, 1.0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8_000_000


def test_rows_are_not_copied(dtype):
    """Samples in rows, and weights (in, out), come as transposed views."""
    layer_sizes = (8, 16, 4)
    all_weights, all_biases = network(layer_sizes, dtype)
    all_weights = [np.ascontiguousarray(weights.T).T for weights in all_weights]
    rows, targets = np.ones((300_000, 8), dtype), np.ones((300_000, 4), dtype)
    expected = fb.loss_and_gradients(rows[:1000].T, all_weights, all_biases, targets[:1000].T)[1]
    tracemalloc.start()
    try:
        got = fb.loss_and_gradients(rows.T, all_weights, all_biases, targets.T)[1]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < targets.nbytes / 2
    assert_close(got, [300 * gradient for gradient in expected])


def test_nested_lists_are_arrays():
    loss, all_dl_dweights, _ = fb.loss_and_gradients(
        [[1.0, -3.0]], [[[2.0], [1.0]], [[1.0, -1.0]]], [[0, 0], [0]], [[3, 3]]
    )
    assert loss == 13
    np.testing.assert_array_equal(all_dl_dweights[0], [[-4], [4]])


@pytest.mark.parametrize(
    "layer_sizes", [(5, 7, 2), (300, 110, 30, 3), (600, 250, 30, 3)], ids=["dots", "units", "wide"]
)
@pytest.mark.parametrize("samples", [16, 24, 64, 100, 128, 256, 1500])
def test_rows_of_a_small_batch_in_a_larger_one(layer_sizes, samples, dtype, shared_from):
    """Such an input may be read where it is: not what is behind its rows, and with the bits of any other order."""
    shared_from(2**19)
    all_weights, all_biases = network(layer_sizes, dtype)
    x, y = smooth_batch(layer_sizes, samples, all_weights, all_biases, dtype)
    storage = np.full((layer_sizes[0], samples + 9), np.nan, dtype)
    storage[:, 3:-6] = x
    results = []
    for net_input in x, storage[:, 3:-6], np.asfortranarray(x):
        output, all_f, all_h = fb.compute_network_output(net_input, all_weights, all_biases)
        gradients = [
            fb.loss_and_gradients(net_input, all_weights, all_biases, y, input_gradient=True, num_threads=threads)
            for threads in (1, 2)
        ]
        backward = fb.backward_pass(all_weights, all_biases, all_f, all_h, y)
        results.append([output, fb.predict(net_input, all_weights, all_biases), list(backward), *map(list, gradients)])
    output, all_f, all_h = reference.compute_network_output(x, all_weights, all_biases)
    expected = reference.backward_pass(all_weights, all_biases, all_f, all_h, y)
    assert_close(results[0][:3], [output, output, list(expected)])
    for result in results:
        assert_close(result[3][1:3], list(expected))
        assert_same_bits(result[4], result[3])
        assert_same_bits(result, results[0])


@pytest.mark.parametrize("layer_sizes", [(4, 20, 600, 3), (4, 600, 200, 3), (4, 256, 129, 257, 3)])
def test_lists_of_the_forward_pass_in_other_orders(layer_sizes, dtype):
    """Where sums of derivatives are cut into parts, and where they are not: the same bits for lists that are copied."""
    all_weights, all_biases = network(layer_sizes, dtype)
    x, y = smooth_batch(layer_sizes, 300, all_weights, all_biases, dtype)
    _, all_f, all_h = fb.compute_network_output(x, all_weights, all_biases)
    passed = all_weights, all_biases, all_f, all_h, y
    expected = list(fb.backward_pass(*passed, intermediates=True))
    lists = [[np.asfortranarray(array) for array in arrays] for arrays in (all_f, all_h)]
    got = fb.backward_pass(all_weights, all_biases, *lists, y, intermediates=True)
    assert_same_bits(list(got), expected)
    assert_same_bits(list(fb.backward_pass(*passed)), expected[:2])
    assert_close(list(reference.backward_pass(*passed, intermediates=True)), expected)
    *gradients, dl_dinput = fb.loss_and_gradients(x, all_weights, all_biases, y, input_gradient=True)[1:]
    assert_close([*gradients, dl_dinput], [*expected[:2], expected[2][0]])


def test_a_matrix_is_an_array(dtype):
    """np.matrix multiplies matrices with `*`, and keeps two dimensions: nothing of that is seen."""
    layer_sizes = (2, 3, 2)
    all_weights, all_biases = network(layer_sizes, dtype)
    net_input, y = batch(layer_sizes, 2, dtype)
    plain = net_input, all_weights, all_biases, y
    matrices = net_input.view(np.matrix), *[[a.view(np.matrix) for a in b] for b in plain[1:3]], y.view(np.matrix)
    weight = {"sample_weight": np.array([0.5, 2.0]), "reduction": "mean"}
    problems = zip(each_call(plain, weight), each_call(matrices, weight), strict=True)
    for number, (expected, got) in enumerate(problems):
        assert_plain(got, f"call {number}")
        assert_same_bits(got, expected)


def each_call(problem, options):
    """What every public function returns, as lists."""
    for source in fb, reference:
        net_input, all_weights, all_biases, y = problem
        net_output, all_f, all_h = source.compute_network_output(net_input, all_weights, all_biases)
        yield [net_output, *all_f, *all_h[1:]]
        f, h = all_f, all_h
        if isinstance(y, np.matrix):
            f, h = ([array.view(np.matrix) for array in arrays] for arrays in (all_f, all_h))
        for name in reference.LOSSES:
            target = np.abs(y) / np.sum(np.abs(np.asarray(y)), axis=0)
            yield list(source.backward_pass(all_weights, all_biases, f, h, target, loss=name))
            yield list(source.loss_and_gradients(net_input, all_weights, all_biases, target, loss=name, **options))
        yield list(source.backward_pass(all_weights, all_biases, f, h, y, intermediates=True))[:2]
        yield list(source.vjp(net_input, all_weights, all_biases, y, input_gradient=True))
        yield source.predict(net_input, all_weights, all_biases)
        problem_ = net_input, all_weights, all_biases, y
        yield list(source.clipped_gradients(*problem_, 1.0))[1:]
        yield list(source.squared_gradient_sums(*problem_))[1:]
        yield list(source.per_sample_gradient_norms(*problem_))
        yield list(source.per_sample_gradients(*problem_))
        yield [source.ReLU(y), source.indicator_function(y)]
        yield [source.least_squares_loss(f[-1], y), source.d_loss_d_output(f[-1], y)]
    workspace = fb.Workspace([2, 3, 2], all_f[0].dtype)
    yield list(workspace.loss_and_gradients(*problem, **options))
    yield list(workspace.vjp(*problem))
    vector = fb.pack(all_weights, all_biases)
    yield vector
    yield [len(fb.check_gradients(*problem, gradients=workspace.vjp(*problem)).entries)]
    yield list(fb.loss_and_gradients(*problem, out=([0 * a for a in all_weights], [0 * a for a in all_biases])))[:1]


def assert_plain(result, label):
    if isinstance(result, (list, tuple)):
        for entry in result:
            assert_plain(entry, label)
    else:
        assert not isinstance(result, np.matrix), label
