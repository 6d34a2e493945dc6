"""Batches in dask arrays, beside the package's own call: what a chunk costs, and what a second worker gains.

Nothing is measured where Dask is not installed.
"""

import contextlib
import importlib.util
import time

from benchmarks import cases, timing
from benchmarks.suite import base

CHUNKS = 40


def _wall(_client):
    return time.perf_counter()


def _cpu_here(_client):
    return time.process_time()


def _cpu_of_workers(client):
    return sum(client.run(time.process_time).values())


def _seconds(client, x, parameters, clock=_wall):
    """Seconds of a gradient on a cluster."""
    from fastbackprop.dask import loss_and_gradients

    start = clock(client)
    loss, *_ = loss_and_gradients(x, *parameters, 1.0, compute=False)
    client.compute(loss).result()
    return clock(client) - start


@contextlib.contextmanager
def _client(workers):
    """A client of a cluster of that many processes, of one thread each."""
    from dask.distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


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
            parameters = cases.network(case.layer_sizes, dtype)
            with _client(1) as one, _client(2) as two:
                turns = [(client, client.persist(_drawn(case, dtype, CHUNKS)), parameters) for client in (one, two)]
                times = [[_seconds(*turn) for turn in turns] for _ in range(timing.ROUNDS + 1)]
            best = [min(of_one) for of_one in zip(*times[1:], strict=True)]  # the first has workers load the kernels
            return best[1] / best[0]

        track_time_over_one_worker.unit = "of one worker's time"

    class Overhead:
        """Chunks of one sample on two workers: what is left is a task's overhead, and the way of its gradient.

        Processor time changes little with what else runs on the machine.
        """

        params = ([cases.Case(8, 32, 1, 3, 1), cases.Case(784, 512, 10, 3, 1)], ["float32"], [1, 101])
        param_names = ("case", "dtype", "chunks")
        timeout = 600

        def measured(self, case, dtype, chunks, clock):
            import dask.array as da

            x = da.zeros((case.inputs, chunks), chunks=(-1, 1), dtype=dtype)
            parameters = cases.network(case.layer_sizes, dtype)
            with _client(2) as client:
                return min(_seconds(client, x, parameters, clock) for _ in range(timing.ROUNDS + 1))

        def track_seconds(self, *arguments):
            return self.measured(*arguments, _wall)

        def track_cpu_seconds_of_client_and_scheduler(self, *arguments):
            return self.measured(*arguments, _cpu_here)

        def track_cpu_seconds_of_workers(self, *arguments):
            return self.measured(*arguments, _cpu_of_workers)
