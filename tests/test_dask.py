"""The dask adapter beside the oracle on the whole batch, on every scheduler and on clusters of processes."""

import contextlib
import functools
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import fastbackprop as fb
from benchmarks.cases import batch, network
from fastbackprop import reference
from tests.conftest import assert_close, assert_same_bits, smooth_batch, target_of
from tests.test_gradients import FAR

dask = pytest.importorskip("dask", reason="see the extra `dask`")
pytest.importorskip("distributed", reason="see the extra `dask`")

import dask.array as da  # noqa: E402
from dask.distributed import Client, LocalCluster  # noqa: E402

import fastbackprop.dask as fd  # noqa: E402

SIZES = (3, 8, 5, 4)
SAMPLES = (70, 1, 33, 0, 64)  # of each chunk
WHOLE = sum(SAMPLES)


@pytest.fixture(autouse=True)
def _one_thread():
    """Unless a test says otherwise: tasks that run one after the other are the easiest to debug."""
    with dask.config.set(scheduler="synchronous"):
        yield


@pytest.fixture
def parameters(dtype):
    return network(SIZES, dtype)


@pytest.fixture
def columns(parameters, dtype):
    return smooth_batch(SIZES, WHOLE, *parameters, dtype)


def chunked(array, samples=SAMPLES):
    """A dask array of whole columns."""
    array = np.asarray(array)
    return da.from_array(array, chunks=(*array.shape[:-1], samples))


def cluster(workers, **options):
    """Processes of one thread each, and a client of them."""
    options = {"threads_per_worker": 1, "dashboard_address": ":0"} | options
    return LocalCluster(n_workers=workers, **options)


@pytest.fixture(scope="module")
def client():
    """Of a cluster that tests share."""
    with cluster(2) as two, Client(two, set_as_default=False) as client:
        yield client


@pytest.mark.parametrize("scheduler", ["threads", "processes", "distributed"])
def test_every_scheduler(scheduler, client, columns, parameters):
    x, y = columns
    expected = reference.loss_and_gradients(x, *parameters, y)
    alone = list(fd.loss_and_gradients(chunked(x), *parameters, chunked(y)))
    current = client.as_current() if scheduler == "distributed" else contextlib.nullcontext()
    with current, dask.config.set(scheduler=scheduler, num_workers=2):
        got = list(fd.loss_and_gradients(chunked(x), *parameters, chunked(y)))
        output = fd.predict(chunked(x), *parameters).compute()
    assert type(got[0]) is float
    assert got[0] == pytest.approx(expected[0], rel=1e-5)
    assert_close(got[1:], expected[1:])
    assert_same_bits(got, alone)
    assert all(array.flags.writeable for arrays in got[1:] for array in arrays)
    assert_close(output, reference.predict(x, *parameters))


CLASSES = np.arange(WHOLE) % SIZES[-1]
TARGETS = {
    "numbers": ("least_squares", lambda y: y, True),
    "half": ("half_least_squares", lambda y: y, True),
    "one for all": ("least_squares", lambda y: y[:, :1], False),
    "one number": ("half_least_squares", lambda _: 3, False),
    "probabilities": ("softmax_cross_entropy", functools.partial(target_of, "softmax_cross_entropy"), True),
    "classes": ("softmax_cross_entropy", lambda _: CLASSES, True),
    "classes in a row": ("softmax_cross_entropy", lambda _: CLASSES[np.newaxis], True),
    "one class": ("softmax_cross_entropy", lambda _: 2, False),
    "labels": ("binary_cross_entropy", functools.partial(target_of, "binary_cross_entropy"), True),
}


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("target", TARGETS)
def test_losses(target, weighted, reduction, columns, parameters, dtype):
    x, y = columns
    loss, make, in_chunks = TARGETS[target]
    y = make(y)
    weight = np.linspace(0, 2, WHOLE).astype(dtype) if weighted else None
    options = {"loss": loss, "reduction": reduction, "input_gradient": True}
    expected = reference.loss_and_gradients(x, *parameters, y, sample_weight=weight, **options)
    if weighted:
        options["sample_weight"] = chunked(weight)
    got = fd.loss_and_gradients(chunked(x), *parameters, chunked(y) if in_chunks else y, **options)
    assert got[0] == pytest.approx(expected[0], rel=1e-5)
    assert_close(got[1:3], expected[1:3])
    assert isinstance(got[3], da.Array)
    assert got[3].dtype == dtype
    assert got[3].chunks == ((SIZES[0],), SAMPLES)
    assert_close(got[3].compute(), expected[3])


@pytest.mark.parametrize("factor", [*FAR, "of each chunk"])
def test_a_mean_does_not_depend_on_the_scale_of_its_weights(factor, columns, parameters):
    x, y = columns
    weight = np.random.default_rng(0).uniform(0.5, 1.5, WHOLE)
    weight[1] *= -0.25
    weight[sum(SAMPLES[:2]) : sum(SAMPLES[:3])] = 0  # a whole chunk
    if factor == "of each chunk":
        weight *= np.repeat([1e39, 1e300, 1.0, 1.0, 1e299], SAMPLES)
        factor = 1e-300
    expected = reference.loss_and_gradients(
        x, *parameters, y, reduction="mean", sample_weight=weight / np.max(weight), input_gradient=True
    )
    options = {"reduction": "mean", "sample_weight": chunked(weight * factor), "input_gradient": True}
    got = fd.loss_and_gradients(chunked(x), *parameters, chunked(y), **options)
    assert got[0] == pytest.approx(expected[0], rel=1e-5)
    assert type(got[0]) is float
    assert_close([*got[1:3], got[3].compute()], expected[1:])


def test_sums_that_overflow_warn_of_nothing(columns, parameters):
    x, y = columns
    seed = np.full_like(y, np.finfo(x.dtype).max / 100)  # the sum of one chunk is finite, that of all is not
    _, all_dl_dbiases = fd.vjp(chunked(x), *parameters, chunked(seed))
    assert np.isinf(all_dl_dbiases[-1]).all()


def test_vjp(columns, parameters):
    x, seed = columns
    *expected, dl_dinput = reference.vjp(x, *parameters, seed, input_gradient=True)
    assert_close(fd.vjp(chunked(x), *parameters, chunked(seed)), expected)
    *got, lazy = fd.vjp(chunked(x), *parameters, chunked(seed), input_gradient=True)
    assert_close(got, expected)
    assert_close(lazy.compute(), dl_dinput)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("max_norm", [1.5, np.inf])
def test_clipped_gradients(max_norm, weighted, reduction, columns, parameters, dtype):
    x, y = columns
    weight = np.linspace(0, 2, WHOLE).astype(dtype) if weighted else None
    options = {"max_norm": max_norm, "reduction": reduction}
    expected = reference.clipped_gradients(x, *parameters, y, sample_weight=weight, **options)
    if weighted:
        options["sample_weight"] = chunked(weight)
    *got, norms = fd.clipped_gradients(chunked(x), *parameters, chunked(y), **options)
    assert got[0] == pytest.approx(expected[0], rel=1e-5)
    assert_close(got[1:], expected[1:3])
    assert norms.chunks == (SAMPLES,)
    assert norms.dtype == dtype
    assert_close(norms.compute(), expected[3])


@pytest.mark.parametrize("per_layer", [False, True])
def test_norms_of_samples(per_layer, columns, parameters, dtype):
    """Losses and norms of a chunk are computed in one pass."""
    x, y = columns
    reads = []
    counted = chunked(x).map_blocks(lambda block: reads.append(block.shape[1]) or block, meta=x[:, :0])
    lazy = fd.per_sample_gradient_norms(counted, *parameters, chunked(y), per_layer=per_layer)
    assert not reads
    expected = reference.per_sample_gradient_norms(x, *parameters, y, per_layer=per_layer)
    assert [array.shape for array in lazy] == [array.shape for array in expected]
    assert_close(list(dask.compute(*lazy)), [array.astype(dtype) for array in expected])
    assert sorted(reads) == sorted(SAMPLES)


def test_sums_of_squares(columns, parameters):
    x, y = columns
    expected = reference.squared_gradient_sums(x, *parameters, y)
    got = list(fd.squared_gradient_sums(chunked(x), *parameters, chunked(y)))
    assert got[0] == pytest.approx(expected[0], rel=1e-5)
    assert_close(got[1:], expected[1:])
    lazy = fd.squared_gradient_sums(chunked(x), *parameters, chunked(y), compute=False)
    assert_same_bits(list(dask.compute(*lazy)), got)


def test_per_sample_functions_give_the_same_bits_on_a_cluster(client, columns, parameters):
    """And one vector of parameters gives vectors."""
    x, y = map(chunked, columns)
    vector, options = fb.pack(*parameters), {"layer_sizes": SIZES, "loss": "half_least_squares"}

    def results():
        *clipped, norms = fd.clipped_gradients(x, vector, None, y, 1.0, **options)
        losses = fd.per_sample_gradient_norms(x, vector, None, y, **options)
        squares = fd.squared_gradient_sums(x, vector, None, y, **options)
        return [*clipped, *squares, *dask.compute(norms, *losses)]

    expected = results()
    assert [np.shape(part) for part in expected[:5]] == [(), vector.shape, (), vector.shape, vector.shape]
    with client.as_current(), dask.config.set(scheduler="distributed"):
        assert_same_bits(results(), expected)


def test_one_output_and_a_target_of_one_dimension(dtype):
    parameters = network((3, 8, 1), dtype)
    x, y = smooth_batch((3, 8, 1), WHOLE, *parameters, dtype)
    expected = reference.loss_and_gradients(x, *parameters, y)
    assert_close(fd.loss_and_gradients(chunked(x), *parameters, chunked(y[0]))[1:], expected[1:])


def test_one_vector_of_parameters(columns, parameters):
    """It gives a vector, and lists give the parameters' shapes."""
    x, y = map(chunked, columns)
    weights, biases = parameters
    loss, *lists = fd.loss_and_gradients(x, weights, [b.ravel() for b in biases], y)
    assert [b.shape for b in lists[1]] == [(units,) for units in SIZES[1:]]
    vector, options = fb.pack(weights, biases), {"layer_sizes": SIZES}
    assert_same_bits(list(fd.loss_and_gradients(x, vector, None, y, **options)), [loss, fb.pack(*lists)])
    gradient = fd.vjp(x, vector, None, y, **options)
    assert_same_bits(gradient, fb.pack(*fd.vjp(x, *parameters, y)))
    both = fd.vjp(x, vector, None, y, input_gradient=True, **options)
    assert_same_bits(both[0], gradient)
    assert both[1].shape == x.shape
    assert_same_bits(fd.predict(x, vector, None, **options).compute(), fd.predict(x, *parameters).compute())


def test_lazy_results(columns, parameters):
    """Nothing is read until they are computed, from the parameters as they were."""
    x, y = columns
    reads = []
    counted = chunked(x).map_blocks(lambda block: reads.append(block.shape[1]) or block, meta=x[:, :0])
    expected = list(fd.loss_and_gradients(chunked(x), *parameters, chunked(y)))
    lazy = fd.loss_and_gradients(counted, *parameters, chunked(y), compute=False)
    gradients = fd.vjp(counted, *parameters, chunked(y), compute=False)
    output = fd.predict(counted, *parameters)
    assert not reads
    for array in parameters[0] + parameters[1]:
        array *= 2
    assert_same_bits(list(dask.compute(*lazy)), expected)
    assert sorted(reads) == sorted(SAMPLES)  # each chunk once, for the loss and all gradients
    for array in parameters[0] + parameters[1]:
        array /= 2
    assert_same_bits(list(dask.compute(*gradients)), list(fd.vjp(chunked(x), *parameters, chunked(y))))
    assert_same_bits(output.compute(), fd.predict(chunked(x), *parameters).compute())


def test_no_samples(parameters, dtype):
    x, y = chunked(np.empty((3, 0), dtype), (0,)), chunked(np.empty((4, 0), dtype), (0,))
    loss, *gradients = fd.loss_and_gradients(x, *parameters, y)
    assert loss == 0
    assert not any(array.any() for arrays in gradients for array in arrays)
    with pytest.raises(ValueError, match="reduction is 'mean' and there are no samples"):
        fd.loss_and_gradients(x, *parameters, y, reduction="mean")


@pytest.mark.parametrize("stored", ["zarr", "hdf5", "memory map"])
def test_data_on_disk_with_samples_in_rows(stored, tmp_path, columns, parameters):
    """A chunk is read as it lies in the store, and passed on transposed without a copy."""
    on_disk = []
    for name, array in zip("xy", columns, strict=True):
        rows, file = np.ascontiguousarray(array.T), str(tmp_path / name)
        if stored == "zarr":
            pytest.importorskip("zarr", reason="see the extra `examples`")
            da.to_zarr(da.from_array(rows, chunks=(50, -1)), file)
            on_disk.append(da.from_zarr(file).T)
        elif stored == "hdf5":
            dataset = pytest.importorskip("h5py").File(file, "w").create_dataset(name, data=rows)
            on_disk.append(da.from_array(dataset, chunks=(50, -1)).T)
        else:
            np.save(f"{file}.npy", rows)
            on_disk.append(da.from_array(np.load(f"{file}.npy", mmap_mode="r"), chunks=(50, -1)).T)
    expected = reference.loss_and_gradients(columns[0], *parameters, columns[1])
    assert_close(fd.loss_and_gradients(on_disk[0], *parameters, on_disk[1])[1:], expected[1:])
    seen = on_disk[0].map_blocks(lambda block: np.full_like(block, block.T.flags.c_contiguous), dtype=bool)
    assert seen.compute().all()


W, B = network(SIZES, "float64")
X, Y = (chunked(array) for array in batch(SIZES, WHOLE, "float64"))
OTHER = (WHOLE - 1, 1)
UNKNOWN = X[:, X[0] > 0]
ONE_WRONG = np.where(np.arange(WHOLE) == sum(SAMPLES[:2]) + 4, 9, CLASSES)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda: fd.loss_and_gradients(X.compute(), W, B, Y),
            TypeError,
            "net_input has type ndarray; expected a dask array: "
            "pass dask.array.from_array(net_input, chunks=(-1, 'auto'))",
        ),
        (
            lambda: fd.loss_and_gradients(X, W, B, Y.compute()),
            TypeError,
            "y has type ndarray; expected a dask array: "
            "pass dask.array.from_array(y, chunks=(-1, net_input.chunks[1]))",
        ),
        (
            lambda: fd.loss_and_gradients(X, W, B, CLASSES.tolist(), loss="softmax_cross_entropy"),
            TypeError,
            "y has type list; expected a dask array: pass dask.array.from_array(y, chunks=(net_input.chunks[1],))",
        ),
        (
            lambda: fd.predict(X.rechunk({0: 2}), W, B),
            ValueError,
            "net_input has 2 chunks along its rows; expected one, as a chunk holds whole samples: "
            "pass net_input.rechunk({0: -1})",
        ),
        (
            lambda: fd.vjp(X, W, B, Y.rechunk({0: 3})),
            ValueError,
            "dl_doutput has 2 chunks along its rows; expected one, as a chunk holds whole samples: "
            "pass dl_doutput.rechunk({0: -1})",
        ),
        (
            lambda: fd.predict(UNKNOWN, W, B),
            ValueError,
            "net_input has chunks of unknown size; expected known sizes: call net_input.compute_chunk_sizes() first",
        ),
        (
            lambda: fd.loss_and_gradients(X, W, B, Y.rechunk({1: OTHER})),
            ValueError,
            f"y has chunks {OTHER} along the samples; expected {SAMPLES}, those of net_input: "
            "pass y.rechunk({1: net_input.chunks[1]})",
        ),
        (
            lambda: fd.loss_and_gradients(X, W, B, Y, sample_weight=Y[0].rechunk({0: OTHER})),
            ValueError,
            f"sample_weight has chunks {OTHER} along the samples; expected {SAMPLES}, those of net_input: "
            "pass sample_weight.rechunk({0: net_input.chunks[1]})",
        ),
        (
            lambda: fd.loss_and_gradients(X, W, B, Y, sample_weight=Y[:1]),
            ValueError,
            f"sample_weight has shape (1, {WHOLE}); expected ({WHOLE},), for the samples of net_input",
        ),
        (
            lambda: fd.predict(X.T.rechunk(WHOLE), W, B),
            ValueError,
            f"net_input has shape ({WHOLE}, 3); expected (3, N): its rows must match the columns of all_weights[0], "
            "one column for each sample (samples are columns: transpose net_input)",
        ),
        (
            lambda: fd.vjp(X, W, B, Y.T.rechunk(WHOLE)),
            ValueError,
            f"dl_doutput has shape ({WHOLE}, 4); expected (4, {WHOLE}), for the samples of net_input "
            "(samples are columns: transpose dl_doutput)",
        ),
        (
            lambda: fd.loss_and_gradients(X, W, B, Y, loss=(reference.least_squares_loss, reference.d_loss_d_output)),
            TypeError,
            "expected the name of a loss: for a loss of your own, pass its derivative by predict(...) to vjp, "
            "as a dask array",
        ),
        (lambda: fd.loss_and_gradients(X, W, B, Y, loss="hinge"), ValueError, "loss is 'hinge'; expected one of "),
        (lambda: fd.loss_and_gradients(X, W, B, Y, reduction="max"), ValueError, "reduction is 'max'; expected 'sum' "),
        (lambda: fd.clipped_gradients(X, W, B, Y, -1.0), ValueError, "max_norm is -1.0; expected a positive number"),
        (
            lambda: fd.squared_gradient_sums(X, W, B, Y, loss=(reference.least_squares_loss, reference.ReLU)),
            TypeError,
            "loss is a pair of callables; expected a name: callables see the whole batch, not each sample",
        ),
        (
            lambda: fd.per_sample_gradient_norms(X, W, B, Y.rechunk({1: OTHER})),
            ValueError,
            "pass y.rechunk({1: net_input.chunks[1]})",
        ),
        (lambda: fd.predict(X.astype(complex), W, B), TypeError, "net_input has dtype complex128; expected float32 or"),
        (lambda: fd.predict(X, W, B[:1]), ValueError, "all_biases has 1 entries; expected 3"),
        (
            lambda: fd.predict(X, fb.pack(W, B), None),
            ValueError,
            "all_weights is one vector and layer_sizes is None; expected sizes such as (784, 100, 10)",
        ),
        (
            lambda: fd.predict(X, W, B, layer_sizes=SIZES),
            ValueError,
            f"layer_sizes is {SIZES}; expected None beside lists of parameters, which have shapes",
        ),
        (
            lambda: fd.predict(X, fb.pack(W, B), None, layer_sizes=(3, 4)),
            ValueError,
            "vector has shape (101,); expected (16,)",
        ),
        (
            lambda: fd.loss_and_gradients(X, W, B, chunked(ONE_WRONG), loss="softmax_cross_entropy"),
            ValueError,
            "chunk 2 of the samples: y[4] is 9; expected class numbers in 0 .. 3",
        ),
        (
            lambda: fd.loss_and_gradients(X, W, B, Y, reduction="mean", sample_weight=da.zeros_like(Y[0])),
            ValueError,
            "reduction is 'mean' and the sum of sample_weight is 0; expected something to divide by",
        ),
    ],
)
def test_errors(call, error, text):
    with pytest.raises(error) as raised:
        call()
    assert text in str(raised.value)


def test_the_call_that_an_error_names_mends_it():
    mended = UNKNOWN.compute_chunk_sizes()
    assert fd.predict(mended, W, B).shape == (4, mended.shape[1])
    other = X.rechunk({0: 1}).rechunk({0: -1})
    target = Y.rechunk({1: OTHER}).rechunk({1: X.chunks[1]})
    assert_same_bits(list(fd.loss_and_gradients(other, W, B, target)), list(fd.loss_and_gradients(X, W, B, Y)))
    target = da.from_array(Y.compute(), chunks=(-1, X.chunks[1]))
    assert target.chunks == Y.chunks


def test_parameters_are_in_the_graph_once():
    sizes = 20, 100, 1
    x = da.zeros((20, 4000), chunks=(20, 100))
    loss, *_ = fd.loss_and_gradients(x, *network(sizes, "float64"), 0.0, compute=False)
    (loss,) = dask.optimize(loss)
    tasks = [len(pickle.dumps(task)) for task in dict(loss.dask).values()]
    assert len(tasks) < 40 * 1.5  # a task for each chunk, and the tree
    assert sum(size > 8 * 20 * 100 for size in tasks) == 1


def test_the_same_bits_for_any_number_of_workers():
    x, y, parameters = drawn(samples=100, chunks=37)
    expected = list(fd.loss_and_gradients(x, *parameters, y))
    with cluster(1) as growing, Client(growing) as client, dask.config.set(scheduler="distributed"):
        for workers in 1, 2, 3:
            growing.scale(workers)
            client.wait_for_workers(workers)
            for _ in range(2):
                assert_same_bits(list(fd.loss_and_gradients(x, *parameters, y)), expected)


def drawn(samples, chunks, pause=0.0):
    """A batch whose chunks are drawn where they are needed, after a pause, and a network."""

    def draw(block_id):
        time.sleep(pause)
        return np.random.default_rng(block_id[1]).normal(size=(8, samples))

    x = da.map_blocks(draw, chunks=((8,), chunks * (samples,)), dtype=np.float64, meta=np.empty((0, 0)))
    return x, x[:1] * x[1:2], network((8, 16, 1), "float64")


def test_a_killed_worker():
    """In the middle of a call: what it had computed is computed again, and gives the same bits."""
    x, y, parameters = drawn(samples=100, chunks=60)
    expected = list(fd.loss_and_gradients(x, *parameters, y))
    x, y, parameters = drawn(samples=100, chunks=60, pause=0.05)
    with cluster(2, silence_logs="CRITICAL") as two, Client(two) as client:
        futures = client.compute(fd.loss_and_gradients(x, *parameters, y, compute=False))
        held = {}
        while min(map(len, held.values()), default=0) < 3 and not any(future.done() for future in futures):
            time.sleep(0.01)
            held = client.has_what()  # the parameters, and gradients of chunks
        assert not any(future.done() for future in futures)
        pid = next(iter(client.run(os.getpid).values()))
        os.kill(pid, signal.SIGTERM if sys.platform == "win32" else signal.SIGKILL)
        assert_same_bits(client.gather(list(futures)), expected)
        assert pid not in client.run(os.getpid).values()


@pytest.mark.skipif(len(getattr(os, "sched_getaffinity", lambda _: ())(0)) < 2, reason="needs two processors")
def test_tasks_use_one_thread_unless_told_otherwise(client):
    def helpers():
        return [thread.name for thread in threading.enumerate()].count("fastbackprop")

    x, y, parameters = drawn(samples=200_000, chunks=2)
    with client.as_current(), dask.config.set(scheduler="distributed"):
        expected = list(fd.loss_and_gradients(x, *parameters, y))
        assert sum(client.run(helpers).values()) == 0
        assert_same_bits(list(fd.loss_and_gradients(x, *parameters, y, num_threads=2)), expected)
        assert sum(client.run(helpers).values()) > 0


LARGE = pytest.param(4000, 1000, marks=pytest.mark.large)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not tell the peak")
@pytest.mark.parametrize(("megabytes", "limit"), [(500, 500), LARGE])
def test_memory_stays_below_a_limit(megabytes, limit, tmp_path):
    """While more than a worker may hold is read from a zarr store."""
    zarr = pytest.importorskip("zarr", reason="see the extra `examples`")
    samples = megabytes * 10**6 // 32
    block = np.random.default_rng(0).normal(size=(250_000, 8)).astype(np.float32)
    stored = zarr.create_array(tmp_path / "x", shape=(samples, 8), chunks=block.shape, dtype="f4", compressors=None)
    for first in range(0, samples, len(block)):
        stored[first : first + len(block)] = block[: samples - first] + np.float32(first / samples)
    x, parameters = da.from_zarr(tmp_path / "x").T, network((8, 16, 1), "float32")
    fb.warmup("float32")  # to compile takes a worker hundreds of megabytes

    def peak():
        """Megabytes. Linux counts in ru_maxrss what the process was forked from, and this one may be large."""
        if sys.platform == "linux":
            return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1e3
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6

    with cluster(1, memory_limit=f"{limit}MB") as one, Client(one) as client, dask.config.set(scheduler="distributed"):
        fd.loss_and_gradients(x[:, : len(block)], *parameters, 1.0)
        (before,), pids = client.run(peak).values(), client.run(os.getpid)
        loss, *_ = fd.loss_and_gradients(x, *parameters, 1.0)
        (after,) = client.run(peak).values()
        assert client.run(os.getpid) == pids
    print(
        f"{megabytes} MB through a worker of {limit} MB: peak {before:.0f} MB after a chunk, {after:.0f} MB at the end"
    )
    assert after < limit
    assert after - before < 5 * block.nbytes / 1e6
    assert loss > 0


def test_without_dask():
    """The package does without it, and the module says what to install."""
    code = """
import sys
import fastbackprop
assert not {"dask", "fastbackprop.dask"} & set(sys.modules)
sys.modules["dask"] = None
try:
    import fastbackprop.dask
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "fastbackprop.dask needs the library Dask: pip install 'fastbackprop[dask]'"
