"""How the time of a gradient grows with samples, width, depth and threads: measured, with the powers fitted.

Without --json, it prints at the end how the time would shrink with up to 64 threads: a prediction, see
benchmarks.schedule.

    python -m benchmarks.growth [--dtype float32] [--rounds 7] [--json FILE]

All sizes of a sweep are measured in every round, so that a slow moment falls on all of them. A power is the slope
of log time against log size, by least squares over the larger half of the sizes: in the smaller half it is partly the
call itself that takes the time.
"""

import argparse
import functools
import sys
from pathlib import Path

import numpy as np

import fastbackprop
from benchmarks import machine, peak, schedule, timing
from benchmarks.cases import DTYPES, GROWTH, GROWTH_OF_THREADS, arguments
from fastbackprop.parallel.cpus import available_threads


def larger_half(sizes):
    """From which size on a power is fitted; few sizes, as those of threads, are all taken."""
    return len(sizes) // 2 if len(sizes) > 3 else 0


def power(sizes, seconds):
    """The slope of log seconds against log sizes over the larger half; None for a single size."""
    start = larger_half(sizes)
    if len(sizes) - start < 2:
        return None
    return float(np.polyfit(np.log(sizes[start:]), np.log(seconds[start:]), 1)[0])


def measure(cases, dtype, threads, rounds):
    """The median seconds of the gradient of each case, on the number of threads that stands beside it."""
    calls = []
    for case, number in zip(cases, threads, strict=True):
        workspace = fastbackprop.Workspace(case.layer_sizes, dtype, num_threads=number)
        calls.append(functools.partial(workspace.loss_and_gradients, *arguments(case, dtype)))
    return np.median([[timing.turn(call) for call in calls] for _ in range(rounds)], axis=0).tolist()


def sweeps(dtype, rounds):
    """One result for each thing that grows."""
    most = available_threads()
    peaks = [max(peak.flops(dtype, number) for _ in range(rounds)) for number in range(1, most + 1)]
    on_threads = list(range(1, most + 1)), lambda _: GROWTH_OF_THREADS
    for name, (sizes, case_of) in (GROWTH | {"threads": on_threads}).items():
        threads = sizes if name == "threads" else [most] * len(sizes)
        cases = [case_of(size) for size in sizes]
        seconds = measure(cases, dtype, threads, rounds)
        shares = [
            case.flops / time / peaks[number - 1] for case, time, number in zip(cases, seconds, threads, strict=True)
        ]
        yield {
            "sweep": name,
            "dtype": dtype,
            "largest": repr(cases[-1]),
            "sizes": sizes,
            "seconds": seconds,
            "shares": shares,
            "power": power(sizes, seconds),
            "power_of_flops": power(sizes, [case.flops / n for case, n in zip(cases, threads, strict=True)]),
        }


def main(arguments):
    """Print the times and the powers, and write a file of results where one is asked for."""
    parser = argparse.ArgumentParser(prog="benchmarks.growth", description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write results to this file")
    options = parser.parse_args(arguments)
    results = []
    for dtype in options.dtype:
        for found in sweeps(dtype, options.rounds):
            print(f"{found['sweep']}, {dtype}, up to {found['largest']}")
            for size, seconds, share in zip(found["sizes"], found["seconds"], found["shares"], strict=True):
                print(f"    {size:9,} {1e3 * seconds:11.3f} ms  {share:6.1%} of the peak")
            if found["power"] is not None:
                print(f"    power {found['power']:.2f}, of the flops {found['power_of_flops']:.2f}", flush=True)
            results.append(found)
    if options.json:
        machine.save(options.json, ["benchmarks.growth", *arguments], results)
    else:
        schedule.predict(options.dtype)


if __name__ == "__main__":
    main(sys.argv[1:])
