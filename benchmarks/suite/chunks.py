"""Batches in dask arrays, beside the package's own call: what a chunk costs, and what a second worker gains.

Nothing is measured where Dask is not installed.
"""

import importlib.util
import time

from benchmarks import cases, timing
from benchmarks.suite import base

CHUNKS = 40


def _seconds(client, x, parameters):
    """Seconds of the quickest of some gradients on a cluster, as what else runs on the machine only ever adds."""
    from fastbackprop.dask import loss_and_gradients

    times = []
    for _ in range(timing.ROUNDS):
        start = time.perf_counter()
        loss, *_ = loss_and_gradients(x, *parameters, 1.0, compute=False)
        client.compute(loss).result()
        times.append(time.perf_counter() - start)
    return min(times)


def _cluster(workers):
    from dask.distributed import LocalCluster

    return LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0")


def _drawn(case, dtype, chunks):
    import dask.array as da

    samples = max(case.samples // chunks, 1)
    return da.random.default_rng(0).normal(size=(case.inputs, samples * chunks), chunks=(-1, samples)).astype(dtype)


if importlib.util.find_spec("dask") and importlib.util.find_spec("distributed"):

    class Threads:
        """Chunks in memory on Dask's threads, against one call on all samples and as many threads."""

        params = ([cases.Case(8, 32, 1, 3, 1_000_000)], cases.DTYPES)
        param_names = ("case", "dtype")
        timeout = 600

        def setup(self, case, dtype):
            import dask.array as da

            import fastbackprop.dask

            x, *parameters, y = base._arguments(case, dtype)
            samples = max(case.samples // CHUNKS, 1)
            chunked = [da.from_array(array, chunks=(-1, samples), name=False) for array in (x, y)]
            self.ours = lambda: fastbackprop.dask.loss_and_gradients(chunked[0], *parameters, chunked[1])
            self.own_call = lambda: fastbackprop.loss_and_gradients(x, *parameters, y)
            self.ours(), self.own_call()

        def time_dask(self, *_):
            self.ours()

        def time_own_call(self, *_):
            self.own_call()

        def track_time_over_own_call(self, *_):
            return timing.over(self.ours, self.own_call)

        track_time_over_own_call.unit = "of the own call's time"

    class Cluster:
        """Workers that are processes of one thread each and hold the chunks: two of them over one."""

        params = ([cases.Case(8, 32, 1, 3, 10_000_000)], ["float32"])
        param_names = ("case", "dtype")
        timeout = 600

        def track_time_over_one_worker(self, case, dtype):
            from dask.distributed import Client

            times, parameters = [], cases.network(case.layer_sizes, dtype)
            for workers in 1, 2:
                with _cluster(workers) as cluster, Client(cluster, set_as_default=False) as client:
                    x = client.persist(_drawn(case, dtype, CHUNKS))
                    times.append(_seconds(client, x, parameters))
            return times[1] / times[0]

        track_time_over_one_worker.unit = "of one worker's time"

    class Overhead:
        """Chunks of one sample on two workers: what is left is a task's overhead, and the way of its gradient."""

        params = ([cases.Case(8, 32, 1, 3, 1), cases.Case(784, 512, 10, 3, 1)], ["float32"], [1, 101])
        param_names = ("case", "dtype", "chunks")
        timeout = 600

        def track_seconds_of_a_call(self, case, dtype, chunks):
            from dask.distributed import Client

            with _cluster(2) as cluster, Client(cluster, set_as_default=False) as client:
                return _seconds(client, _drawn(case, dtype, chunks), cases.network(case.layer_sizes, dtype))

        track_seconds_of_a_call.unit = "seconds"
