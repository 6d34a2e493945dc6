"""How a gradient would scale to many threads: a simulation of its schedule from pieces timed on one thread.

    python -m benchmarks.schedule [--dtype float32] [--json FILE]

The pieces that threads share (chunks and blocks, or strips and blocks) are timed on one thread, at the plan's own
sizes. Each simulated thread takes the next piece when it is done with its last, as in the passes, and all wait for each
other where they meet. A meeting costs MEETING seconds for each doubling of threads, and a slice SLICE seconds. All
threads together read no more bytes a second than THREADS_OF_BANDWIDTH threads of this machine. The machines that this
project is measured on have two processors: these figures are a prediction.
"""

import argparse
import functools
import heapq
import math
import sys
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np

import fastbackprop
from benchmarks import machine, peak, timing
from benchmarks.cases import DTYPES, SCHEDULE, arguments
from fastbackprop.engine import plan

THREADS = [1, 2, 4, 8, 16, 32, 64]
MEETING = 1e-6
"""Seconds that a meeting costs for each doubling of threads: 0.3 us from thread to thread and back, three times."""

SLICE = 15e-6
"""Seconds of Python, and of calling the workers, for each slice: measured as a call of 9 samples."""

THREADS_OF_BANDWIDTH = 8
"""Threads of this machine whose memory traffic a machine of many processors has bandwidth for."""


def piece_seconds(case, dtype, samples):
    """Seconds of one thread for the gradient of so many samples, without Python's share."""
    workspace = fastbackprop.Workspace(case.layer_sizes, dtype, num_threads=1)
    given = arguments(replace(case, samples=samples), dtype)
    call = functools.partial(workspace.loss_and_gradients, *given)
    return max(min(timing.turn(call) for _ in range(5)) - SLICE, 1e-6)


def work(case, dtype):
    """What threads share, as a list of meetings: the seconds of each piece before each of them, for one slice."""
    itemsize = np.dtype(dtype).itemsize
    made = plan.plan_gradient(case.layer_sizes, itemsize, case.samples)
    if made.scheme == "chunks":
        chunk = piece_seconds(case, dtype, min(made.longest, case.samples))
        added = made.layout.partial_bytes / peak.bandwidth(1, 16)
        return made, chunk, added / len(made.layout.blocks)
    group = piece_seconds(case, dtype, made.longest)
    return made, 2 / 3 * group, group / 3 / len(made.layout.blocks)


def seconds(made, first, second, threads):
    """Seconds of the whole gradient on so many threads."""
    meetings = 2 * MEETING * math.log2(threads) if threads > 1 else 0.0
    total = 0.0
    for begin, end in made.slices(threads):
        chunks = end - begin
        if made.scheme == "chunks":
            total += spread([first] * chunks, threads) + spread([second * chunks] * len(made.layout.blocks), threads)
        else:
            strips = -(-made.longest // made.tile_samples) * (-(-made.tile_samples * threads // made.longest))
            blocks = [second] * len(made.layout.blocks)
            total += chunks * (spread([first / strips] * strips, threads) + spread(blocks, threads))
        total += SLICE + meetings
    return total


def spread(pieces, threads):
    """When the last of so many threads is done, each of which takes the next piece when it has none."""
    done = [0.0] * min(threads, max(len(pieces), 1))
    for piece in pieces:
        heapq.heapreplace(done, done[0] + piece)
    return max(done)


def simulate(case, dtype, roof):
    """The predicted efficiency for each number of threads: the share of the time that an even split would take."""
    made, first, second = work(case, dtype)
    alone = seconds(made, first, second, 1)
    traffic = case.samples * (case.layer_sizes[0] + case.layer_sizes[-1]) * np.dtype(dtype).itemsize / roof
    return [alone / threads / max(seconds(made, first, second, threads), traffic) for threads in THREADS]


def predict(dtypes):
    """Print the efficiency of every case; one result for each."""
    roof = THREADS_OF_BANDWIDTH * peak.bandwidth(1)
    print(f"{'predicted efficiency, threads:':38}" + "".join(f"{threads:>7}" for threads in THREADS))
    results = []
    for case in SCHEDULE:
        for dtype in dtypes:
            found = simulate(case, dtype, roof)
            print(f"{case!r:30}{dtype:8}" + "".join(f"{share:7.0%}" for share in found), flush=True)
            results.append({"case": astuple(case), "dtype": dtype, "threads": THREADS, "efficiency": found})
    return results


def main(arguments):
    """Print the efficiencies, and write a file of results where one is asked for."""
    parser = argparse.ArgumentParser(prog="benchmarks.schedule", description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument("--json", type=Path, help="write results to this file")
    options = parser.parse_args(arguments)
    results = predict(options.dtype)
    if options.json:
        machine.save(options.json, ["benchmarks.schedule", *arguments], results)


if __name__ == "__main__":
    main(sys.argv[1:])
