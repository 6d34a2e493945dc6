"""Side by side with other libraries: one gradient of a sum of squared errors, on the same threads, round by round.

    python -m benchmarks.compare [--cases 16,64,4,4,100000 ...] [--dtypes float32] [--threads 2] [--seconds 3]

A case is inputs, width, outputs, hidden layers, samples. Libraries that are not installed are left out (the extra
`peers` brings all of them). Results are compared before anything is timed. For each library and case it prints the
median time, the share of the FMA peak of the same threads (flops over the lower quartile of the times, over the best
peak seen in the run), and for each case the median over the rounds of best peer / fastbackprop. Between two libraries
it pauses, because the workers of the one before still spin; each turn starts with one call that is not timed, because
after a pause the caches are cold.
"""

import argparse
import importlib.util
import os
import sys
import time

import numpy as np

from benchmarks import peak
from benchmarks.cases import CASES, Case, batch, network

PAUSE = 0.04  # seconds: OpenBLAS's workers spin for 2^26 cycles after their work, and take a processor each
TURN = 0.002  # seconds at least; a time is the mean over the calls of a turn
TOLERANCE = {"float32": 2e-3, "float64": 1e-9}
"""Relative norm of a difference; a sample at a ReLU's kink may count for one library and not for the other."""


def fastbackprop_gradient(case, dtype, data, threads):
    import fastbackprop

    workspace = fastbackprop.Workspace(case.layer_sizes, dtype, num_threads=threads)
    return lambda: workspace.loss_and_gradients(*data)[1:]


def numpy_gradient(_case, _dtype, data, _threads):
    from fastbackprop import reference

    return lambda: reference.loss_and_gradients(*data)[1:]


def torch_step(data, threads):
    import torch

    torch.set_num_threads(threads)
    net_input, all_weights, all_biases, y = data
    x, target = (torch.from_numpy(np.ascontiguousarray(array.T)) for array in (net_input, y))
    weights = [torch.from_numpy(array).requires_grad_() for array in all_weights]
    biases = [torch.from_numpy(array.ravel()).requires_grad_() for array in all_biases]

    def loss():
        h = x
        for layer_weights, layer_biases in zip(weights[:-1], biases[:-1], strict=True):
            h = torch.relu(torch.nn.functional.linear(h, layer_weights, layer_biases))
        return ((torch.nn.functional.linear(h, weights[-1], biases[-1]) - target) ** 2).sum()

    return torch, loss, weights, biases


def torch_gradient(_case, _dtype, data, threads, *, compiled=False):
    torch, loss, weights, biases = torch_step(data, threads)
    if compiled:
        torch.compiler.reset()  # it gives up on a function that it has compiled for too many shapes
        loss = torch.compile(loss)

    def gradient():
        found = torch.autograd.grad(loss(), [*weights, *biases])
        return [g.numpy() for g in found[: len(weights)]], [g.numpy() for g in found[len(weights) :]]

    return gradient


def torch_compiled_gradient(case, dtype, data, threads):
    return torch_gradient(case, dtype, data, threads, compiled=True)


def jax_gradient(_case, _dtype, data, _threads):
    import jax

    jax.config.update("jax_enable_x64", True)
    net_input, all_weights, all_biases, y = data

    def loss(weights, biases, x, target):
        h = x
        for layer_weights, layer_biases in zip(weights[:-1], biases[:-1], strict=True):
            h = jax.nn.relu(h @ layer_weights.T + layer_biases)
        return ((h @ weights[-1].T + biases[-1] - target) ** 2).sum()

    step = jax.jit(jax.grad(loss, argnums=(0, 1)))
    arguments = jax.device_put(
        (
            list(all_weights),
            [b.ravel() for b in all_biases],
            np.ascontiguousarray(net_input.T),
            np.ascontiguousarray(y.T),
        )
    )
    return lambda: jax.block_until_ready(step(*arguments))


def sklearn_gradient(case, dtype, data, _threads):
    """The backpropagation inside of MLPRegressor: rows, weights (in, out), half of the mean of squares."""
    from sklearn.neural_network import MLPRegressor

    net_input, all_weights, all_biases, y = data
    x, target = np.ascontiguousarray(net_input.T), np.ascontiguousarray(y.T)
    model = MLPRegressor(hidden_layer_sizes=[case.width] * case.hidden, alpha=0.0, max_iter=1)
    model._validate_params()
    model._random_state = np.random.RandomState(0)
    model.n_outputs_, model.n_layers_ = case.outputs, case.hidden + 2
    model._initialize(target, list(case.layer_sizes), np.dtype(dtype))
    model.coefs_ = [np.ascontiguousarray(w.T) for w in all_weights]
    model.intercepts_ = [b.ravel().copy() for b in all_biases]
    activations = [x] + [None] * (case.hidden + 1)
    deltas = [None] * (case.hidden + 1)
    coefs = [np.empty_like(w) for w in model.coefs_]
    intercepts = [np.empty_like(b) for b in model.intercepts_]
    factor = 2 * case.samples

    def gradient():
        model._backprop(x, target, None, activations, deltas, coefs, intercepts)
        return coefs, intercepts

    gradient.rescale = lambda found: ([factor * g.T for g in found[0]], [factor * g for g in found[1]])
    return gradient


LIBRARIES = {
    "fastbackprop": ("fastbackprop", fastbackprop_gradient),
    "NumPy": ("numpy", numpy_gradient),
    "PyTorch": ("torch", torch_gradient),
    "PyTorch compiled": ("torch", torch_compiled_gradient),
    "JAX": ("jax", jax_gradient),
    "scikit-learn": ("sklearn", sklearn_gradient),
}


def agrees(got, expected, dtype):
    """Whether two gradients are the same up to rounding."""
    pairs = [pair for k in (0, 1) for pair in zip(got[k], expected[k], strict=True)]
    distance = sum(np.sum((np.asarray(a, np.float64).ravel() - np.ravel(b)) ** 2) for a, b in pairs)
    return distance <= TOLERANCE[dtype] ** 2 * sum(np.sum(np.asarray(b, np.float64) ** 2) for _, b in pairs)


def compare(case, dtype, names, threads, seconds):
    """The times of each library in each round, and the best FMA peak seen."""
    data = (*batch(case.layer_sizes, case.samples, dtype)[:1], *network(case.layer_sizes, dtype))
    data = (*data, batch(case.layer_sizes, case.samples, dtype)[1])
    expected = numpy_gradient(case, dtype, data, threads)()
    calls = {}
    for name in names:
        try:
            calls[name] = LIBRARIES[name][1](case, dtype, data, threads)
            found = calls[name]()
        except Exception as error:  # a peer that cannot do this case is left out of it, and that is told
            print(f"  {name} left out: {type(error).__name__}: {str(error).splitlines()[0][:100]}", file=sys.stderr)
            calls.pop(name, None)
            continue
        if not agrees(getattr(calls[name], "rescale", lambda g: g)(found), expected, dtype):
            raise SystemExit(f"{name} gives another gradient than NumPy for {case} in {dtype}")
    times = {name: [] for name in calls}
    best, end = 0.0, time.perf_counter() + seconds
    while len(times["fastbackprop"]) < 5 or time.perf_counter() < end:
        time.sleep(PAUSE)
        best = max(best, peak.measure(dtype, threads, seconds=0.02))
        for name, call in calls.items():
            time.sleep(PAUSE)
            call()
            start, count = time.perf_counter(), 0
            while count == 0 or time.perf_counter() < start + TURN:
                call()
                count += 1
            times[name].append((time.perf_counter() - start) / count)
    return times, best


def parse_case(text):
    try:
        return Case(*map(int, text.split(",")))
    except (TypeError, ValueError):
        raise argparse.ArgumentTypeError(f"{text!r} is not five whole numbers, as in 16,64,4,4,100000") from None


def main(arguments=None):
    """Print the table."""
    installed = [name for name, (module, _) in LIBRARIES.items() if importlib.util.find_spec(module)]
    parser = argparse.ArgumentParser(prog="benchmarks.compare", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--cases", type=parse_case, nargs="+", default=CASES, help="inputs,width,outputs,hidden,samples"
    )
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "float64"], default=["float32", "float64"])
    parser.add_argument("--libraries", nargs="+", choices=installed, default=installed)
    parser.add_argument(
        "--threads",
        type=int,
        default=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="for each case and dtype")
    options = parser.parse_args(arguments)
    names = list(dict.fromkeys(["fastbackprop", *options.libraries]))
    for case in options.cases:
        for dtype in options.dtypes:
            times, best = compare(case, dtype, names, options.threads, options.seconds)
            print(f"{case}, {dtype}, {options.threads} threads, FMA peak {best / 1e9:.0f} GFLOP/s")
            for name, seconds in times.items():
                share = case.flops / np.quantile(seconds, 0.25) / best
                print(f"    {name:18} {1e3 * np.median(seconds):10.3f} ms  {share:6.1%} of the peak")
            peers = [times[name] for name in times if name != "fastbackprop"]
            if peers:
                ratio = np.median(np.min(peers, axis=0) / np.array(times["fastbackprop"]))
                print(f"    best peer / fastbackprop: {ratio:.2f}", flush=True)


if __name__ == "__main__":
    main()
