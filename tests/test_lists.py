"""What is read of the arrays in a list, and that nothing a caller does to the list meanwhile is felt."""

import copy
import gc
import pickle

import numpy as np
import pytest

import fastbackprop as fb
from benchmarks.cases import batch, network
from fastbackprop import reference
from fastbackprop.arguments import addresses as lists
from fastbackprop.arguments.batch import Batch
from fastbackprop.kernels import object_memory as compiled
from tests.conftest import assert_close, assert_same_bits
from tests.test_layouts import ZOO

LAYER_SIZES = (3, 6, 5, 2)


class Subclass(np.ndarray):
    pass


def arrays(path):
    plain = np.random.default_rng(0).standard_normal((6, 10))
    for dtype in np.float32, np.float64:
        yield from (animal(plain.astype(dtype), path) for animal in ZOO)
        yield from (plain.astype(dtype)[shape] for shape in (0, np.s_[:0], np.s_[:, :0], np.s_[:1], np.s_[:, :1]))
        yield pickle.loads(pickle.dumps(plain.astype(dtype)))
        yield copy.deepcopy(plain.astype(dtype))
    yield from (plain.astype(dtype) for dtype in (np.float16, np.longdouble, np.complex64, np.int64, np.int32, object))
    yield from (plain[None], np.float64(1.0), plain[0, 0], np.array(1.0), plain.view(Subclass), plain.tolist(), None, 3)


def test_the_compiled_reader_finds_what_numpy_says(tmp_path):
    assert lists.reader() is not lists.read_slowly
    known = list(arrays(tmp_path))
    trials = [[], *([array] for array in known), *([one, other] for one in known for other in known)]
    taken = 0
    for trial in trials:
        for contiguous in range(len(trial) + 1):
            found = []
            for reader in lists.reader(), lists.read_slowly:
                shapes, places = np.zeros(2 * len(trial), np.int64), np.zeros((len(trial), 3), np.int64)
                itemsize = reader(shapes, places, id(trial), contiguous, *lists._TYPES)
                found.append((itemsize, shapes.tolist(), places.tolist()) if itemsize else (0,))
            assert found[0] == found[1], trial
            taken += found[0][0] != 0
    assert taken > 100


@pytest.fixture
def misled_reader(monkeypatch):
    """A compiled reader that finds nothing, and says it did: it is tried first, and NumPy is asked instead."""

    monkeypatch.setattr(compiled, "read_arrays", lambda: lambda *_: 8)
    lists.reader.cache_clear()
    yield
    lists.reader.cache_clear()


def everything(dtype):
    parameters = network(LAYER_SIZES, dtype)
    net_input, y = batch(LAYER_SIZES, 70, dtype)
    _, all_f, all_h = fb.compute_network_output(net_input, *parameters)
    passes = fb.backward_pass(*parameters, all_f, all_h, y, intermediates=True)
    return [*all_f, *all_h, *passes, *fb.loss_and_gradients(net_input, *parameters, y)[1:]]


def test_a_reader_that_finds_something_else_is_not_used(dtype, request):
    expected = everything(dtype)
    request.getfixturevalue("misled_reader")
    assert lists.reader() is lists.read_slowly
    assert_same_bits(everything(dtype), expected)


@pytest.mark.parametrize("samples", [3, 70, 150_000])
def test_lists_that_change_during_a_call(samples, dtype):
    """What is called back empties the lists, and with them goes what held their arrays."""
    all_weights, all_biases = network(LAYER_SIZES, dtype)
    net_input, y = batch(LAYER_SIZES, samples, dtype)
    _, all_f, all_h = reference.compute_network_output(net_input, all_weights, all_biases)
    expected = reference.backward_pass(all_weights, all_biases, all_f, all_h, y)

    def emptied(call):
        lists = [[array.copy() for array in arrays] for arrays in (all_weights, all_biases, all_f, all_h)]

        def empty(*_):
            for arrays in lists:
                arrays.clear()
            gc.collect()
            return [np.full((6, 6), np.nan, dtype) for _ in range(100)] and 2 * (all_f[-1] - y)

        return call(lists, empty)

    got = emptied(lambda lists, empty: fb.backward_pass(*lists, y, loss=empty))
    assert_close(got, expected, 1e-4 if dtype == np.float32 else None)
    got = emptied(lambda lists, empty: fb.loss_and_gradients(net_input, *lists[:2], y, progress=empty))
    assert_close(got[1:], expected, 1e-4 if dtype == np.float32 else None)


@pytest.mark.parametrize("samples", [5, 70, 70_000])
def test_lists_of_several_dtypes(samples):
    """Each in turn is of float32, or of integers, or of NumPy's other types, among those of float64."""
    parameters = network(LAYER_SIZES)
    net_input, y = batch(LAYER_SIZES, samples)
    _, all_f, all_h = reference.compute_network_output(net_input, *parameters)
    for place in range(4):
        for kind in (
            lambda array: array.astype(np.float32),
            lambda array: np.rint(array).astype(np.int64),
            lambda array: array.view(Subclass),
        ):
            given = [list(arrays) for arrays in (*parameters, all_f, all_h)]
            given[place][1] = kind(given[place][1])
            wide = [[np.asarray(array, np.float64) for array in arrays] for arrays in given]
            got = fb.backward_pass(*given, y, intermediates=True)
            assert_close(got, reference.backward_pass(*wide, y, intermediates=True))
            if place < 2:
                got = fb.compute_network_output(net_input, *given[:2])
                assert_close(got[:2], reference.compute_network_output(net_input, *wide[:2])[:2])
                got = fb.loss_and_gradients(net_input, *given[:2], y)
                assert_close(got[1:], reference.loss_and_gradients(net_input, *wide[:2], y)[1:])


def test_float32_passes_of_a_float64_network(dtype):
    parameters = network(LAYER_SIZES, dtype)
    net_input, y = batch(LAYER_SIZES, 70_000, np.float32)
    _, all_f, all_h = reference.compute_network_output(net_input, *network(LAYER_SIZES, np.float32))
    got = fb.backward_pass(*parameters, all_f, all_h, y.astype(dtype))
    wide = [[array.astype(dtype) for array in arrays] for arrays in (all_f, all_h)]
    assert_same_bits(got, fb.backward_pass(*parameters, *wide, y.astype(dtype)))


@pytest.mark.parametrize("kept", [1, 2, 5])
def test_lists_that_shrink_while_they_are_looked_at(kept):
    """An entry that is asked for its values takes others away."""
    sizes = (3, 4, 4, 4, 4, 4, 4, 2)
    parameters = network(sizes)
    net_input, y = batch(sizes, 20)
    _, all_f, all_h = reference.compute_network_output(net_input, *parameters)
    expected = fb.backward_pass(*parameters, all_f, all_h, y)
    for place in range(4):
        given = [list(arrays) for arrays in (*parameters, all_f, all_h)]

        class Thief:
            def __init__(self, arrays):
                self.arrays, self.values = arrays, arrays[1]

            def __array__(self, dtype=None, copy=None):
                del self.arrays[kept:]
                return self.values

        given[place][1] = Thief(given[place])
        try:
            got = fb.backward_pass(*given, y)
        except ValueError:
            assert place < 2  # as the parameters are taken entry by entry
        else:
            assert_same_bits(got, expected)


def test_pickled_arrays_are_taken_as_they_are(dtype):
    """Their dtype is an object of its own: nothing is converted for that."""
    parameters = network(LAYER_SIZES, dtype)
    arguments = batch(LAYER_SIZES, 70, dtype)[0], *parameters
    pickled = pickle.loads(pickle.dumps(arguments))
    assert pickled[0].dtype is not dtype
    _, all_f, all_h = fb.compute_network_output(*pickled)
    assert all_h[0] is pickled[0]
    assert_same_bits(all_f, fb.compute_network_output(*arguments)[1])
    whole = Batch(*pickled)
    whole.convert(dtype)
    assert all(array is given for array, given in zip(whole.arrays, [*pickled[1], *pickled[2]], strict=True))
