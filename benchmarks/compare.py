"""Side by side with other libraries: one gradient of a sum of squared errors, on the same threads, round by round.

    python -m benchmarks.compare [--case 16,64,4,4,100000 ...] [--dtype float32] [--threads 2] [--json FILE]

A case is inputs, width, outputs, hidden layers, samples; a name stands for a group of them. Libraries that are not
installed are left out (the extra `peers` brings all of them). Results are compared to the oracle's before anything is
timed. For each library and case it prints the median time and the share of the FMA peak of the same threads (flops
over the lower quartile of the times, over the best peak seen meanwhile), and for each case the fastest other library's
median over this package's: above 1, this package is faster. Libraries take turns, with pauses, because the workers of
the one before still spin.

At the end a chart shows the same. It is a window, or a file where there is no display, and beside the file of --json.
"""

import argparse
import dataclasses
import importlib.util
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks import machine, memory, peak, timing
from benchmarks.cases import DTYPES, GROUPS, TABLE, Case, arguments
from benchmarks.libraries import LIBRARIES, installed, notebook_gradient
from fastbackprop.parallel.cpus import available_threads

ROUNDS = 3  # at least
TOLERANCE = {"float32": 2e-3, "float64": 1e-9}
"""Relative norm of a difference; a sample at a ReLU's kink may count for one library and not for the other."""


def agrees(got, expected, dtype):
    """Whether two gradients are the same up to rounding."""
    pairs = [pair for k in (0, 1) for pair in zip(got[k], expected[k], strict=True)]
    distance = sum(np.sum((np.asarray(a, np.float64).ravel() - np.ravel(b)) ** 2) for a, b in pairs)
    return distance <= TOLERANCE[dtype] ** 2 * sum(np.sum(np.asarray(b, np.float64) ** 2) for _, b in pairs)


def checked_calls(case, dtype, names, threads):
    """The call of each library that can do this case, its gradient compared to the oracle's."""
    passed = arguments(case, dtype)
    expected = notebook_gradient(case, dtype, passed, threads)()
    calls = {}
    for name in names:
        library = LIBRARIES[name]
        try:
            call = library.gradient(case, dtype, passed, threads)
            found = call()
        except Exception as error:  # a peer that cannot do this case is left out of it, and that is told
            print(f"  {name} left out: {type(error).__name__}: {str(error).splitlines()[0][:100]}", file=sys.stderr)
            continue
        scaled = [[library.divisor(case) * np.asarray(array, np.float64) for array in part] for part in found]
        if not agrees(scaled, expected, dtype):
            raise SystemExit(f"{name} gives another gradient than the oracle for {case} in {dtype}")
        calls[name] = call
    return calls


def compare(case, dtype, names, threads, seconds):
    """The times of each library in each round, and the best FMA peak seen."""
    calls = checked_calls(case, dtype, names, threads)
    times = {name: [] for name in calls}
    best, end = 0.0, time.perf_counter() + seconds
    while len(times["fastbackprop"]) < ROUNDS or time.perf_counter() < end:
        timing.settle()
        best = max(best, peak.flops(dtype, threads))
        for name, call in calls.items():
            times[name].append(timing.settled_turn(call))
    return times, best


def summary(case, dtype, times, best):
    """What a file of results says of one case and dtype."""
    libraries = {}
    for name, seconds in times.items():
        lower, median, upper = np.quantile(seconds, [0.25, 0.5, 0.75])
        share = case.flops / lower / best
        libraries[name] = {"median": median, "quartiles": [lower, upper], "share": share, "rounds": len(seconds)}
    return {"case": dataclasses.astuple(case), "dtype": dtype, "peak": best, "libraries": libraries}


def rounded(seconds):
    """A time as three digits show it."""
    return float(f"{seconds:.3g}")


def best_other(found):
    """The fastest other library, and its median time over that of this package, both as three digits show them."""
    times = {name: rounded(library["median"]) for name, library in found["libraries"].items()}
    ours = times.pop("fastbackprop")
    name = min(times, key=times.get)
    return name, times[name] / ours


def over_best_peak(results):
    """Let all shares be of the best peak of their dtype that was seen in the whole run."""
    for dtype in DTYPES:
        same = [found for found in results if found["dtype"] == dtype]
        best = max((found["peak"] for found in same), default=0.0)
        for found in same:
            for library in found["libraries"].values():
                library["share"] *= found["peak"] / best
            found["peak"] = best


def show(found, threads):
    """Print a summary."""
    print(f"{Case(*found['case'])}, {found['dtype']}, {threads} threads, FMA peak {found['peak'] / 1e9:.0f} GFLOP/s")
    for name, library in found["libraries"].items():
        grown = library.get("memory")
        told = "" if grown is None else f"  {grown:8.1f} MB"
        print(f"    {name:18} {1e3 * library['median']:10.3f} ms  {library['share']:6.1%} of the peak{told}")
    if len(found["libraries"]) > 1:
        name, ratio = best_other(found)
        print(f"    {name} / fastbackprop: {ratio:.2f}", flush=True)


def with_progress(items):
    """The items, counted on a terminal where tqdm is installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        return items
    return tqdm(items, disable=None)  # None: off where there is no terminal


def parse_cases(text):
    """A group by name, or one case."""
    if text in GROUPS:
        return GROUPS[text]
    numbers = [int(number) for number in text.split(",") if number.isdecimal()]
    if text != ",".join(map(str, numbers)) or len(numbers) != 5 or 0 in numbers:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not five whole numbers from 1 up, as in 16,64,4,4,100000, nor one of {', '.join(GROUPS)}"
        )
    return [Case(*numbers)]


def show_chart(results, options):
    """Draw the times of all cases, where matplotlib is installed."""
    if importlib.util.find_spec("matplotlib") is None:
        print("no chart: matplotlib is not installed, see the extra `bench`")
        return
    from benchmarks import charts

    file = options.json and options.json.with_suffix(".png")
    charts.show(charts.others({"threads": options.threads}, results), file)


def main(arguments):
    """Print the table, and write a file of results where one is asked for."""
    parser = argparse.ArgumentParser(prog="benchmarks.compare", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--case",
        type=parse_cases,
        nargs="+",
        action="extend",
        help=f"inputs,width,outputs,hidden,samples, or {', '.join(GROUPS)} (default: table)",
    )
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument("--libraries", nargs="+", choices=installed(), default=installed())
    parser.add_argument("--threads", type=int, default=available_threads())
    parser.add_argument("--seconds", type=float, default=3.0, help="at least, for each case and dtype")
    parser.add_argument("--memory", action="store_true", help="measure the growth of peak memory, too")
    parser.add_argument("--json", type=Path, help="write results to this file")
    options = parser.parse_args(arguments)
    names = list(dict.fromkeys(["fastbackprop", *options.libraries]))
    cases = dict.fromkeys(case for group in options.case or [TABLE] for case in group)
    results = []
    for case, dtype in with_progress([(case, dtype) for case in cases for dtype in options.dtype]):
        found = summary(case, dtype, *compare(case, dtype, names, options.threads, options.seconds))
        if options.memory:
            for name, library in found["libraries"].items():
                library["memory"] = memory.growth(name, case, dtype, options.threads)
        show(found, options.threads)
        results.append(found)
    over_best_peak(results)
    if options.json:
        measured = {"threads": options.threads, "bandwidth": peak.bandwidth(options.threads)}
        machine.save(options.json, ["benchmarks.compare", *arguments], results, **measured)
    show_chart(results, options)


if __name__ == "__main__":
    main(sys.argv[1:])
