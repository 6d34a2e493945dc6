"""fastbackprop.torch beside PyTorch's own modules: forward, loss and backward of one batch, in turns.

    python -m benchmarks.pytorch [--case 8,32,1,3,64 ...] [--widths] [--dtype float32] [--threads 2] [--seconds 3]

A case is inputs, width, outputs, hidden layers, samples. Networks of 10 outputs are classifiers with a softmax
cross-entropy, others have a squared error. Four steps take turns, with pauses until other threads sleep: the plain
module, the same under torch.compile, the accelerated module with PyTorch's own loss, and the fused loss. The table has
their median times, and the better of the first two over each of the others: above 1, this package is faster.
--widths takes other cases, without torch.compile: three hidden layers of 6 to 512 units.
"""

import argparse
import sys
import time
from dataclasses import astuple
from pathlib import Path

import numpy as np

from benchmarks import machine, timing
from benchmarks.cases import DTYPES, Case
from benchmarks.compare import parse_cases, with_progress

CASES = [
    Case(8, 32, 1, 3, 64),
    Case(8, 32, 1, 3, 100_000),
    Case(16, 64, 4, 4, 256),
    Case(784, 100, 10, 1, 64),
    Case(1, 6, 1, 5, 1_000_000),
]
WIDTHS = [Case(w, w, 1, 3, samples) for w in (6, 16, 32, 64, 128, 256, 512) for samples in (64, 4096)]
ROUNDS = 5  # at least
STEPS = ["eager", "compiled", "module", "fused"]
HEADER = "case                          eager   compiled     module      fused   module is   fused is"


def steps(case, dtype, *, compiled):
    """The calls of one training step without its update, by name; each returns the loss."""
    import torch
    from torch import nn
    from torch.nn import functional

    from fastbackprop.torch import accelerate

    torch.manual_seed(0)
    options = {"dtype": getattr(torch, dtype)}
    layers = []
    for k, units_in in enumerate(case.layer_sizes[:-1]):
        layers += [nn.Linear(units_in, case.layer_sizes[k + 1], **options), nn.ReLU()]
    module = nn.Sequential(*layers[:-1])
    accelerated, parameters = accelerate(module), list(module.parameters())
    x, name = torch.randn(case.samples, case.inputs, **options), "least_squares"
    y, loss = torch.randn(case.samples, case.outputs, **options), functional.mse_loss
    if case.outputs == 10:
        y, loss, name = torch.randint(10, (case.samples,)), functional.cross_entropy, "softmax_cross_entropy"

    def step(forward):
        def call():
            for parameter in parameters:
                parameter.grad = None
            total = forward()
            total.backward()
            return total.detach()

        return call

    def plain():
        return loss(module(x), y)

    calls = {"eager": step(plain)}
    if compiled:
        torch.compiler.reset()  # it gives up on a function that it has compiled for too many shapes
        calls["compiled"] = step(torch.compile(plain))
    calls["module"] = step(lambda: loss(accelerated(x), y))
    calls["fused"] = step(lambda: accelerated.loss(x, y, name))
    return calls


def compare(case, dtype, seconds, *, compiled):
    """The times of each step in each round."""
    calls = steps(case, dtype, compiled=compiled)
    losses = {name: float(call()) for name, call in calls.items()}
    losses["fused"] /= 1 if case.outputs == 10 else case.outputs  # mse_loss is a mean over the outputs, too
    if not np.allclose(list(losses.values()), losses["eager"], rtol=1e-3):
        raise SystemExit(f"the losses of {case} in {dtype} differ: {losses}")
    times, end = {name: [] for name in calls}, time.perf_counter() + seconds
    while len(times["fused"]) < ROUNDS or time.perf_counter() < end:
        for name, call in calls.items():
            times[name].append(timing.settled_turn(call))
    return times


def best(medians):
    """The time of the better of PyTorch's own."""
    return min(medians[name] for name in ("eager", "compiled") if name in medians)


def factors(medians):
    """How many times as long PyTorch's own takes as the accelerated module, and as the fused loss."""
    return [best(medians) / medians[name] for name in ("module", "fused")]


def row(case, medians):
    """A line of the table."""
    found = [f"{1e6 * medians[name]:8.1f} us" if name in medians else f"{'-':>11}" for name in STEPS]
    told = [f"{factor:10.2f}x" for factor in factors(medians)]
    return f"{case!r:24} {'  '.join(found)}{'  '.join(told)}"


def main(arguments):
    """Print the table."""
    parser = argparse.ArgumentParser(prog="benchmarks.pytorch", description=__doc__.splitlines()[0])
    parser.add_argument("--case", type=parse_cases, nargs="+", action="extend", help="default: the guide's cases")
    parser.add_argument("--widths", action="store_true", help="other cases, see above")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["float32"])
    parser.add_argument("--threads", type=int, help="default: as many as PyTorch takes")
    parser.add_argument("--seconds", type=float, default=3.0, help="at least, for each case and dtype")
    parser.add_argument("--json", type=Path, help="write results to this file")
    options = parser.parse_args(arguments)

    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    cases = WIDTHS if options.widths else CASES
    if options.case:
        cases = [case for group in options.case for case in group]
    results, command = [], ["benchmarks.pytorch", *arguments]
    for dtype in options.dtype:
        print(f"{dtype}, {torch.get_num_threads()} threads\n{HEADER}")
        for case in with_progress(cases):
            times = compare(case, dtype, options.seconds, compiled=not options.widths)
            medians = {name: float(np.median(seconds)) for name, seconds in times.items()}
            print(row(case, medians), flush=True)
            results.append({"case": astuple(case), "dtype": dtype, "medians": medians})
    print(machine.sentence(machine.describe(command)))
    if options.json:
        machine.save(options.json, command, results, threads=torch.get_num_threads())


if __name__ == "__main__":
    main(sys.argv[1:])
