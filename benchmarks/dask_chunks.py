"""fastbackprop.dask on clusters of this machine: what a chunk costs, and what a second worker gains.

    python -m benchmarks.dask_chunks [--rounds 9] [--samples 10000000]

Workers are processes of one thread each, and hold their chunks. The first table has the time of a call on chunks of one
sample, the rest of a task then being overhead: of a call with one chunk, and of each of 100 more chunks. The second has
the time of a gradient on one worker and on two, in turns.
"""

import argparse
import contextlib
import dataclasses
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks import cases, machine, timing
from benchmarks.cases import Case

NETWORKS = [Case(8, 32, 1, 3, 1), Case(784, 512, 10, 3, 1)]
SPEEDUP = Case(8, 32, 1, 3, 10_000_000)
CHUNKS = 40
MORE_CHUNKS = 100
CLOCKS = ["seconds", "client and scheduler", "workers"]


@contextlib.contextmanager
def client_of(workers):
    """A client of a cluster of that many processes, of one thread each."""
    from dask.distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def call(client, x, parameters):
    """The clocks of a gradient: seconds, and those of processor time in this process and in the workers."""
    from fastbackprop.dask import loss_and_gradients

    def clocks():
        workers = sum(client.run(time.process_time).values())
        return np.array([time.perf_counter(), time.process_time(), workers])

    start = clocks()
    loss, *_ = loss_and_gradients(x, *parameters, 1.0, compute=False)
    client.compute(loss).result()
    return clocks() - start


def overhead(client, case, rounds):
    """The clocks of a call with one chunk of one sample, and of each chunk more; the least of some rounds."""
    import dask.array as da

    parameters, found = cases.network(case.layer_sizes, "float32"), []
    for chunks in 1, 1 + MORE_CHUNKS:
        x = da.zeros((case.inputs, chunks), chunks=(-1, 1), dtype="float32")
        found.append(np.min([call(client, x, parameters) for _ in range(rounds + 1)][1:], axis=0))
    return found[0], (found[1] - found[0]) / MORE_CHUNKS


def two_workers(case, dtype, rounds):
    """Seconds of a gradient on one worker and on two, the least of some turns."""
    import dask.array as da

    parameters = cases.network(case.layer_sizes, dtype)
    samples = max(case.samples // CHUNKS, 1)
    drawn = da.random.default_rng(0).normal(size=(case.inputs, samples * CHUNKS), chunks=(-1, samples)).astype(dtype)
    with client_of(1) as one, client_of(2) as two:
        turns = [(client, client.persist(drawn), parameters) for client in (one, two)]
        times = [[call(*turn)[0] for turn in turns] for _ in range(rounds + 1)]
    return np.min(times[1:], axis=0).tolist()  # the first has workers load the kernels


def main(arguments):
    """Print both tables, and write a file of results where one is asked for."""
    parser = argparse.ArgumentParser(prog="benchmarks.dask_chunks", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=timing.ROUNDS)
    parser.add_argument("--samples", type=int, default=SPEEDUP.samples, help="for one worker and two")
    parser.add_argument("--json", type=Path, help="write results to this file")
    options = parser.parse_args(arguments)
    results = []
    print(f"{'milliseconds':16}{'a call':>10}{'a chunk':>10}{'of client and scheduler':>28}{'of workers':>14}")
    with client_of(2) as client:
        for case in NETWORKS:
            one, more = overhead(client, case, options.rounds)
            print(f"{case!r:16}{1e3 * one[0]:10.1f}{1e3 * more[0]:10.2f}{1e3 * more[1]:28.2f}{1e3 * more[2]:14.2f}")
            clocks = dict(zip(CLOCKS, more.tolist(), strict=True))
            results.append({"case": dataclasses.astuple(case), "call": one[0].item(), "chunk": clocks})
    one, two = two_workers(dataclasses.replace(SPEEDUP, samples=options.samples), "float32", options.rounds)
    print(f"{options.samples:,} samples: {one:.3f} s on one worker, {two:.3f} s on two, {one / two:.2f} times as fast")
    if options.json:
        measured = {"samples": options.samples, "one_worker": one, "two_workers": two}
        machine.save(options.json, ["benchmarks.dask_chunks", *arguments], results, **measured)


if __name__ == "__main__":
    main(sys.argv[1:])
