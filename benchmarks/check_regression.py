"""Two commits, round by round: fails where the later one is slower.

    python -m benchmarks.check_regression [BASE [HEAD]] [--limit 1.15] [--rounds 3]

Every round starts a process of either commit. These two take turns of a few milliseconds, A B B A A B ..., so that
whatever else the machine does falls on both; what counts is the median of HEAD / BASE over all pairs of turns, and of
these the median over the rounds. What is over the limit is measured for twice as many rounds again: only what stays
over it is a slowdown. By default this is on one thread, for which a neighbour leaves a processor most often.

Both commits are measured by the benchmarks of this checkout, each with its own copy of the package and its own folder
of compiled kernels. The exit status is 1 for a slowdown.
"""

import argparse
import contextlib
import functools
import os
import subprocess
import sys
import tarfile
import tempfile
from io import BytesIO
from pathlib import Path

import numpy as np

import fastbackprop
from benchmarks import timing
from benchmarks.cases import DTYPES, REGRESSION_FUSED, REGRESSION_PASSES, arguments

ROOT = Path(__file__).resolve().parents[1]
PAIRS = 41
TURN = 0.002  # seconds
PACKAGE = Path(fastbackprop.__file__).resolve().parents[1]


def passes(net_input, all_weights, all_biases, y):
    """The notebooks' two passes."""
    _, *passed = fastbackprop.compute_network_output(net_input, all_weights, all_biases)
    fastbackprop.backward_pass(all_weights, all_biases, *passed, y)


CALLS = {"fused": (fastbackprop.loss_and_gradients, REGRESSION_FUSED), "passes": (passes, REGRESSION_PASSES)}
MEASUREMENTS = {
    f"{name} {case} {dtype}": (function, case, dtype)
    for name, (function, cases) in CALLS.items()
    for case in cases
    for dtype in DTYPES
}


def serve():
    """Take turns, in this process and with the package that it has imported: a name on a line in, seconds out."""

    @functools.cache
    def call_of(name):
        function, case, dtype = MEASUREMENTS[name]
        return functools.partial(function, *arguments(case, dtype))

    print(PACKAGE, flush=True)
    for line in sys.stdin:
        print(timing.turn(call_of(line.strip()), TURN), flush=True)


def export(revision, folder):
    """The package as it is in a commit."""
    archive = subprocess.run(["git", "archive", revision, "fastbackprop"], cwd=ROOT, check=True, capture_output=True)
    with tarfile.open(fileobj=BytesIO(archive.stdout)) as files:
        files.extractall(folder, filter="data")


@contextlib.contextmanager
def server(folder, threads):
    """A process that measures the package in that folder, as a function from a name to seconds."""
    environment = {
        "PYTHONPATH": str(ROOT),
        "NUMBA_CACHE_DIR": str(folder / "kernels"),
        "FASTBACKPROP_NUM_THREADS": str(threads),
    }
    command = [sys.executable, "-m", "benchmarks.check_regression", "--serve"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    # Python looks for packages in the folder that it starts in first.
    with subprocess.Popen(command, cwd=folder, env=os.environ | environment, **pipes) as process:

        def answer():
            line = process.stdout.readline().strip()
            if not line:
                raise RuntimeError(f"the process that measures {folder.name} has ended; its error is above")
            return line

        def turn(name):
            print(name, file=process.stdin, flush=True)
            return float(answer())

        if (package := answer()) != str(folder):
            raise RuntimeError(f"the package in {package} was measured; expected {folder}")
        yield turn


def paired(base, head, pairs=PAIRS):
    """The median of head / base over pairs of turns; which goes first changes from pair to pair."""
    ratios = []
    for k in range(pairs):
        turns = [base, head] if k % 2 == 0 else [head, base]
        seconds = {turn: turn() for turn in turns}
        ratios.append(seconds[head] / seconds[base])
    return float(np.median(ratios))


def measure_rounds(folders, threads, names, rounds):
    """The ratio head / base of each name, for each round: a pair of processes."""
    found = []
    for _ in range(rounds):
        with server(folders[0], threads) as base, server(folders[1], threads) as head:
            found.append({name: paired(*(functools.partial(turn, name) for turn in (base, head))) for name in names})
        print(f"round {len(found)} of {rounds}", file=sys.stderr, flush=True)
    return found


def medians(found):
    """The median over the rounds of each name."""
    return {name: float(np.median([ratios[name] for ratios in found])) for name in found[0]}


def slowdowns(measure, names, rounds, limit):
    """What is slower, {name: ratio}: over the limit in the first rounds, and in twice as many that are its own.

    measure(names, rounds) gives what measure_rounds does.
    """
    found = medians(measure(names, rounds))
    for name, ratio in found.items():
        print(f"{ratio:6.3f}  {name}")
    suspects = [name for name, ratio in found.items() if ratio > limit]
    if not suspects:
        return {}
    print(f"over {limit}, measured again: {', '.join(suspects)}")
    return {name: ratio for name, ratio in medians(measure(suspects, 2 * rounds)).items() if ratio > limit}


def main(arguments=None):
    """Compare two commits; returns the exit status."""
    parser = argparse.ArgumentParser(prog="benchmarks.check_regression", description=__doc__.splitlines()[0])
    parser.add_argument("base", nargs="?", default="HEAD~1")
    parser.add_argument("head", nargs="?", default="HEAD")
    parser.add_argument("--limit", type=float, default=1.15, help="of head / base (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="", help="measurements whose name contains this")
    options = parser.parse_args(arguments)
    names = [name for name in MEASUREMENTS if options.only in name]
    if not names:
        parser.error(f"no measurement has {options.only!r} in its name; there are: {', '.join(MEASUREMENTS)}")
    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(scratch).resolve() / side for side in ("base", "head")]
        for folder, revision in zip(folders, (options.base, options.head), strict=True):
            try:
                export(revision, folder)
            except subprocess.CalledProcessError as error:
                parser.error(f"git has no {revision!r}: {error.stderr.decode().strip()}")
        measure = functools.partial(measure_rounds, folders, options.threads)
        slower = slowdowns(measure, names, options.rounds, options.limit)
    for name, ratio in slower.items():
        print(f"SLOWER by {ratio - 1:.0%}: {name}")
    if not slower:
        print(f"Nothing in {options.head} is slower than in {options.base} by more than {options.limit - 1:.0%}.")
    return 1 if slower else 0


if __name__ == "__main__":
    if sys.argv[1:] == ["--serve"]:
        serve()
    else:
        sys.exit(main())
