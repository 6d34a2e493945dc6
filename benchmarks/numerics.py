"""How exact gradients are, beside those of `fastbackprop.reference` in NumPy: errors against extended precision.

    python -m benchmarks.numerics [--dtype float32] [--quick] [--json FILE]

A result in float32 is compared with float64, one in float64 with the long double, and left out where that is not wider.
The error of an array is the norm of its difference over the norm of the exact array; that of a list is the root of the
mean of squares over its arrays; that of a case, and its ratio to NumPy's, are medians over several networks and
batches. Weights are scaled so that activations keep their size through all layers. Samples near a kink are left out:
rounding decides there between two right gradients.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

import fastbackprop
from benchmarks import machine
from benchmarks.cases import DTYPES, NUMERICS, batch, network
from fastbackprop import reference

WIDER = {"float32": np.float64, "float64": np.longdouble}
CHUNK_BYTES = 2**26
"""Bytes of the activations of a chunk, of which extended precision takes one after the other."""

MARGIN = 30.0
"""Least distance of a preactivation from its kink, in roundings of the layers before it, relative to its layer."""

MOST_ROUNDS, ROUNDS_FLOPS = 60, 8 * 10**9
"""Networks and batches of a case, of different seeds, at most; and the floating-point operations of all of them, unless
a single one has more.

With 8 to 12 networks of 1000 layers, median ratios were anything from 0.6 to 3.0; with 60, from 0.8 to 1.4.
"""

RESULTS = ["output", "weights", "biases", "input"]
"""The output, and the gradients by the weights, the biases and the input."""


def balanced_network(case, dtype, seed):
    """A network whose activations have a root mean square of about 1 in every layer."""
    all_weights, all_biases = network(case.layer_sizes, np.float64, seed)
    h, _ = batch(case.layer_sizes, 200, np.float64, seed)
    for k, (weights, biases) in enumerate(zip(all_weights, all_biases, strict=True)):
        f = weights @ h + biases
        h = reference.ReLU(f)
        scale = 1 / np.sqrt(np.mean(np.square(h if k < case.hidden else f)))
        for array in weights, biases, h:
            array *= scale
    return [[array.astype(dtype) for array in arrays] for arrays in (all_weights, all_biases)]


def chunk_samples(case):
    """Samples of a chunk."""
    return min(max(CHUNK_BYTES // (16 * sum(case.layer_sizes)), 1), 2 * case.samples)


def problem(case, dtype, seed):
    """A network and a batch without samples near a kink."""
    margin = MARGIN * np.finfo(dtype).eps * max(case.hidden, 1) ** 0.5
    for turn in range(100):
        parameters = balanced_network(case, dtype, 1000 * seed + turn)
        wide = [[array.astype(np.float64) for array in arrays] for arrays in parameters]
        kept, missing, most = [], case.samples, chunk_samples(case)
        for part in range(16 + 2 * case.samples // most):
            net_input, y = batch(case.layer_sizes, most, dtype, (seed, turn, part))
            _, all_f, _ = reference.compute_network_output(net_input.astype(np.float64), *wide)
            far = np.ones(most, bool)
            for f in all_f[:-1]:
                far &= np.min(np.abs(f), axis=0) > margin * np.sqrt(np.mean(np.square(f)))
            columns = np.flatnonzero(far)[:missing]
            kept.append((net_input[:, columns], y[:, columns]))
            missing -= columns.size
            if missing == 0:
                net_input, y = (np.concatenate(arrays, axis=1) for arrays in zip(*kept, strict=True))
                return net_input, *parameters, y
    raise RuntimeError(f"{case!r}: too many samples lie at kinks")


def squares(case, dtype, seed):
    """Squares of norms for the output, the gradient of each array of weights and of biases, and that of the input.

    Of the differences to the exact result, (2, 2 layers + 2) of this package and of NumPy, and of the exact result.
    """
    net_input, *parameters, y = data = problem(case, dtype, seed)
    got = []
    for module in fastbackprop, reference:
        _, *gradients, dl_dinput = module.loss_and_gradients(*data, input_gradient=True)
        got.append(([*gradients[0], *gradients[1]], module.predict(net_input, *parameters), dl_dinput))
    wide = [[array.astype(WIDER[dtype]) for array in arrays] for arrays in parameters]
    totals = [np.zeros_like(array) for arrays in wide for array in arrays]
    of_columns, exact_columns = np.zeros((2, 2)), np.zeros(2)
    step = chunk_samples(case)
    for first in range(0, case.samples, step):
        part = slice(first, first + step)
        x, target = net_input[:, part].astype(WIDER[dtype]), y[:, part].astype(WIDER[dtype])
        output, all_f, all_h = reference.compute_network_output(x, *wide)
        *gradients, all_dl_dh, _ = reference.backward_pass(*wide, all_f, all_h, target, intermediates=True)
        for total, array in zip(totals, [*gradients[0], *gradients[1]], strict=True):
            total += array
        for k, exact in enumerate((output, all_dl_dh[0])):
            exact_columns[k] += np.sum(np.square(exact))
            of_columns[:, k] += [np.sum(np.square(columns[k][:, part] - exact)) for _, *columns in got]
    of_sums = [[np.sum(np.square(a - e)) for a, e in zip(arrays, totals, strict=True)] for arrays, *_ in got]
    differences = np.column_stack([of_columns[:, 0], np.array(of_sums, np.float64), of_columns[:, 1]])
    return differences, np.array([exact_columns[0], *[np.sum(np.square(e)) for e in totals], exact_columns[1]], float)


def measure(name, case, dtype):
    """One result: the error of this package, and how many times NumPy's it is."""
    rounds = int(min(max(ROUNDS_FLOPS // case.flops, 1), MOST_ROUNDS))
    layers, found = case.hidden + 1, []
    for seed in range(rounds):
        differences, exact = squares(case, dtype, seed)
        ratios = np.divide(differences, exact, out=np.zeros_like(differences), where=exact > 0)  # no unit may be on
        parts = np.split(ratios, [1, 1 + layers, 1 + 2 * layers], axis=1)
        own, numpys = np.array([np.sqrt(np.mean(part, axis=1)) for part in parts]).T
        with np.errstate(divide="ignore"):
            ratio = np.divide(own, numpys, out=np.ones_like(own), where=own != numpys)  # both may be 0
        found.append(np.column_stack([own, ratio]))
    errors = dict(zip(RESULTS, np.median(found, axis=0).tolist(), strict=True))
    case = [case.inputs, case.width, case.outputs, case.hidden, case.samples]
    return {"sweep": name, "case": case, "dtype": dtype, "rounds": rounds, "errors": errors}


def main(arguments):
    """Print the errors, and write a file of results where one is asked for."""
    parser = argparse.ArgumentParser(prog="benchmarks.numerics", description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument("--quick", action="store_true", help="few samples and layers, whose figures say little")
    parser.add_argument("--json", type=Path, help="write results to this file")
    options = parser.parse_args(arguments)
    dtypes = [dtype for dtype in options.dtype if np.finfo(WIDER[dtype]).eps < np.finfo(dtype).eps]
    results = []
    for name, cases in NUMERICS.items():
        for case in cases:
            if options.quick:
                case = replace(case, samples=min(case.samples, 50), hidden=min(case.hidden, 20))
            for dtype in dtypes:
                found = measure(name, case, dtype)
                errors = "  ".join(f"{key} {error:.1e} {ratio:4.2f}" for key, (error, ratio) in found["errors"].items())
                print(f"{case!r:24} {dtype}: {errors}", flush=True)
                results.append(found)
    if options.json:
        machine.save(options.json, ["benchmarks.numerics", *arguments], results)


if __name__ == "__main__":
    main(sys.argv[1:])
