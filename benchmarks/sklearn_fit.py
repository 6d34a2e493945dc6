"""Time of `fit` in fastbackprop.sklearn and in scikit-learn: the same model, data and random_state, in turns.

    python -m benchmarks.sklearn_fit [--case "digits (100,) adam" ...] [--widths] [--rounds 9] [--cpu-time]

Each case prints the median times, the median over the rounds of scikit-learn's time over this package's, the quartiles
of this ratio, and the relative difference of the two final losses. Every fit waits until other threads sleep.
On a busy machine, --cpu-time with OPENBLAS_NUM_THREADS=1 and FASTBACKPROP_NUM_THREADS=1 compares one thread each.
"""

import argparse
import functools
import sys
import time
import warnings
from pathlib import Path

import numpy as np

from benchmarks import machine, timing

CASES = {
    "digits (100,) adam": ("MLPClassifier", "digits", {"hidden_layer_sizes": (100,), "max_iter": 30}),
    "digits (64,) lbfgs": (
        "MLPClassifier",
        "digits",
        {"hidden_layer_sizes": (64,), "solver": "lbfgs", "max_iter": 50},
    ),
    "digits (20, 10) sgd": (
        "MLPClassifier",
        "digits",
        {"hidden_layer_sizes": (20, 10), "solver": "sgd", "max_iter": 30},
    ),
    "20,000 x 8 (32, 32, 32) lbfgs": (
        "MLPRegressor",
        "waves",
        {"hidden_layer_sizes": (32, 32, 32), "solver": "lbfgs", "max_iter": 10},
    ),
    "20,000 x 8 (32, 32, 32) adam": ("MLPRegressor", "waves", {"hidden_layer_sizes": (32, 32, 32), "max_iter": 3}),
    "10,000 x 784 float32 (100,) adam": ("MLPClassifier", "wide", {"hidden_layer_sizes": (100,), "max_iter": 3}),
}
"""Name: class, data, parameters. A fit takes some 0.03 to 0.5 seconds in scikit-learn."""

WIDTHS = {
    f"digits ({width}, {width}) {solver}": (
        "MLPClassifier",
        "digits",
        {"hidden_layer_sizes": (width, width), "solver": solver, "max_iter": 3},
    )
    for width in (6, 16, 32, 64, 128, 256, 512)
    for solver in ("adam", "lbfgs")
}
"""The same for two hidden layers of 6 to 512 units."""


@functools.cache
def data(name):
    """X and y of a case."""
    rng = np.random.default_rng(0)
    if name == "waves":
        X = rng.normal(size=(20_000, 8))
        return X, np.sin(X).sum(axis=1)
    if name == "wide":
        X = rng.normal(size=(10_000, 784)).astype(np.float32)
        return X, np.argmax(X @ rng.normal(size=(784, 10)), axis=1)
    from sklearn.datasets import load_digits

    X, y = load_digits(return_X_y=True)
    return X / 16, y


def models(case):
    """The model of scikit-learn and that of this package, not fitted, and their data."""
    from sklearn import neural_network

    import fastbackprop.sklearn

    name, data_name, parameters = (CASES | WIDTHS)[case]
    libraries = neural_network, fastbackprop.sklearn
    return [getattr(library, name)(random_state=0, **parameters) for library in libraries], data(data_name)


def fit(model, X, y):
    """The fit without its warning that a few iterations are not enough."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.fit(X, y)


def measure(case, rounds, clock=time.perf_counter):
    """Seconds of both fits in each round, (rounds, 2), and the relative difference of the losses."""
    pair, (X, y) = models(case)
    losses = [fit(model, X, y).loss_ for model in pair]  # compiles the kernels too
    seconds = np.zeros((rounds, 2))
    for turn in seconds:
        for k, model in enumerate(pair):
            timing.settle()
            start = clock()
            fit(model, X, y)
            turn[k] = clock() - start
    return seconds, abs(losses[1] / losses[0] - 1)


def main(arguments):
    """Print the table."""
    parser = argparse.ArgumentParser(prog="benchmarks.sklearn_fit", description=__doc__.splitlines()[0])
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--widths", action="store_true", help="two hidden layers of 6 to 512 units instead")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--cpu-time", action="store_true", help="CPU seconds of the process, not wall-clock seconds")
    parser.add_argument("--json", type=Path, help="write results to this file")
    options = parser.parse_args(arguments)
    results, command = [], ["benchmarks.sklearn_fit", *arguments]
    clock = time.process_time if options.cpu_time else time.perf_counter
    print(f"{'fit':34} {'scikit-learn':>12} {'fastbackprop':>12}  ratio (quartiles)      losses differ by")
    for case in WIDTHS if options.widths else options.case:
        seconds, difference = measure(case, options.rounds, clock)
        theirs, ours = (1e3 * np.median(seconds, axis=0)).tolist()
        lower, ratio, upper = np.quantile(seconds[:, 0] / seconds[:, 1], [0.25, 0.5, 0.75]).tolist()
        ratios = f"{ratio:5.2f} ({lower:.2f} to {upper:.2f})"
        print(f"{case:34} {theirs:9.1f} ms {ours:9.1f} ms  {ratios:22} {difference:.0e}", flush=True)
        medians = {"scikit-learn": theirs / 1e3, "fastbackprop": ours / 1e3}
        results.append({"fit": case, "medians": medians, "ratio": ratio, "ratio_quartiles": [lower, upper]})
    print(machine.sentence(machine.describe(command)))
    if options.json:
        machine.save(options.json, command, results, cpu_time=options.cpu_time)


if __name__ == "__main__":
    main(sys.argv[1:])
