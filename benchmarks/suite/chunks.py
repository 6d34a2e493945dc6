"""Batches in dask arrays, beside the package's own call: what a chunk costs, and what a second worker gains.

Nothing is measured where Dask is not installed.
"""

import contextlib
import importlib.util
import time

import numpy as np

from benchmarks import cases, timing
from benchmarks.suite import base

CHUNKS = 40


def _seconds(client, x, parameters):
    """Seconds of a gradient on a cluster, and of processor time in this process and in the workers."""
    from fastbackprop.dask import loss_and_gradients

    def clocks():
        workers = sum(client.run(time.process_time).values())
        return np.array([time.perf_counter(), time.process_time(), workers])

    start = clocks()
    loss, *_ = loss_and_gradients(x, *parameters, 1.0, compute=False)
    client.compute(loss).result()
    return clocks() - start


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
                times = [[_seconds(*turn)[0] for turn in turns] for _ in range(timing.ROUNDS + 1)]
            best = [min(of_one) for of_one in zip(*times[1:], strict=True)]  # the first has workers load the kernels
            return best[1] / best[0]

        track_time_over_one_worker.unit = "of one worker's time"

    class Overhead:
        """Chunks of one sample on two workers: what is left is a task's overhead, and the way of its gradient.

        Processor time changes little with what else runs on the machine; client and scheduler are this process.
        """

        params = (["8-32x3-1", "784-512x3-10"],)
        param_names = ("network",)
        timeout = 600

        def setup_cache(self):
            """For each network, the seconds of a call with one chunk, and of each of 100 more chunks."""
            import dask.array as da

            found = {}
            with _client(2) as client:
                for name, case in zip(
                    *self.params, (cases.Case(8, 32, 1, 3, 1), cases.Case(784, 512, 10, 3, 1)), strict=True
                ):
                    parameters, calls = cases.network(case.layer_sizes, "float32"), []
                    for chunks in 1, 101:
                        x = da.zeros((case.inputs, chunks), chunks=(-1, 1), dtype="float32")
                        rounds = [_seconds(client, x, parameters) for _ in range(timing.ROUNDS + 1)]
                        calls.append(np.min(rounds[1:], axis=0))
                    found[name] = calls[0].tolist(), ((calls[1] - calls[0]) / 100).tolist()
            return found

        def track_seconds_of_a_call(self, found, network):
            return found[network][0][0]

        def track_seconds_of_a_chunk(self, found, network):
            return found[network][1][0]

        def track_cpu_seconds_of_a_chunk_in_client_and_scheduler(self, found, network):
            return found[network][1][1]

        def track_cpu_seconds_of_a_chunk_in_workers(self, found, network):
            return found[network][1][2]
