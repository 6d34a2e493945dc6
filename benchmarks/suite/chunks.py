"""Batches in dask arrays, beside the package's own call: what a chunk costs, and what a second worker gains.

Nothing is measured where Dask is not installed.
"""

import importlib.util

from benchmarks import cases, dask_chunks, timing
from benchmarks.suite import base

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
            samples = max(case.samples // dask_chunks.CHUNKS, 1)
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
            one, two = dask_chunks.two_workers(case, dtype, timing.ROUNDS)
            return two / one

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
            with dask_chunks.client_of(2) as client:
                found = [dask_chunks.overhead(client, case, timing.ROUNDS) for case in dask_chunks.NETWORKS]
            return dict(zip(*self.params, found, strict=True))

        def track_seconds_of_a_call(self, found, network):
            return found[network][0][0]

        def track_seconds_of_a_chunk(self, found, network):
            return found[network][1][0]

        def track_cpu_seconds_of_a_chunk_in_client_and_scheduler(self, found, network):
            return found[network][1][1]

        def track_cpu_seconds_of_a_chunk_in_workers(self, found, network):
            return found[network][1][2]
