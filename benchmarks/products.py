"""The three products of one layer alone, over one tile on one thread, as a share of the FMA peak.

    python -m benchmarks.products [--dtype float32] [--rounds 7] [--json FILE]

These are the package's kernels below everything else: no network around them, no copying, no threads. A layer is as
wide as it is deep, the tile is that of an engine for three such layers, and everything is in cache as far as it fits.
"""

import argparse
import sys
import time
from pathlib import Path

import numba
import numpy as np

from benchmarks import machine, peak
from benchmarks.cases import DTYPES
from fastbackprop.engine.layout import chunk_layout, most_terms, padded
from fastbackprop.engine.memory import aligned
from fastbackprop.kernels.layers import backward_layer, forward_layer, transpose, weight_gradient
from fastbackprop.kernels.simd import advance, pointer

WIDTHS = [64, 100, 128, 200, 256, 333, 512, 700, 1024]
PRODUCTS = ["forward", "backward", "weight gradient"]


@numba.njit(nogil=True, error_model="numpy")
def product(which, times, rows, weights, gradient, transposed, width, samples, stride, row, t_row, terms):
    """Take one of the products that many times over a tile: rows of h, of f or dl/df, and of dl/dh."""
    h, w, copy = pointer(rows), pointer(weights), pointer(transposed)
    f, dl_dh = advance(h, width * stride), advance(h, 2 * width * stride)
    biases = advance(w, width * width * rows.itemsize)
    for _ in range(times):
        if which == 0:
            forward_layer(f, stride, w, biases, h, stride, width, width, samples, 1)
        elif which == 1:
            backward_layer(dl_dh, stride, h, stride, w, f, stride, width, width, samples, 1, terms)
        else:
            transpose(copy, t_row, h, stride, width, samples)
            weight_gradient(pointer(gradient), row, f, stride, copy, t_row, width, width, samples, 1)


def speeds(width, dtype, rounds):
    """The best flops per second of each product over some rounds, and of the FMA peak between them."""
    dtype = np.dtype(dtype)
    layout = chunk_layout((width,) * 4, dtype.itemsize)
    samples, stride = layout.tile_samples, layout.call["row_bytes"]
    rng = np.random.default_rng(0)
    rows = aligned(3 * width * stride // dtype.itemsize, dtype)
    rows[:] = rng.standard_normal(rows.size)
    weights = (rng.standard_normal((width + 1) * width) * np.sqrt(2 / width)).astype(dtype)
    gradient = aligned(width * padded(width), dtype)
    t_row = padded(width) * dtype.itemsize
    transposed = aligned(samples * t_row // dtype.itemsize, dtype)
    sizes = width, samples, stride, padded(width) * dtype.itemsize, t_row, most_terms(width, dtype.itemsize)
    flops = 2 * width * width * samples
    times = max(1, int(1e8 // flops))
    found = dict.fromkeys([*PRODUCTS, "peak"], 0.0)
    for _ in range(rounds):
        found["peak"] = max(found["peak"], peak.flops(dtype.name, 1))
        for which, name in enumerate(PRODUCTS):
            gradient[:] = 0.0
            product(which, 1, rows, weights, gradient, transposed, *sizes)
            start = time.perf_counter()
            product(which, times, rows, weights, gradient, transposed, *sizes)
            found[name] = max(found[name], times * flops / (time.perf_counter() - start))
    return found


def main(arguments):
    """Print the shares, and write a file of results where one is asked for."""
    parser = argparse.ArgumentParser(prog="benchmarks.products", description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument("--width", nargs="+", type=int, default=WIDTHS)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write results to this file")
    options = parser.parse_args(arguments)
    results = []
    for dtype in options.dtype:
        found = {width: speeds(width, dtype, options.rounds) for width in options.width}
        best = max(speed["peak"] for speed in found.values())
        print(f"{dtype:8}" + "".join(f"{name:>17}" for name in PRODUCTS))
        for width, speed in found.items():
            shares = {name: speed[name] / best for name in PRODUCTS}
            print(f"{width:8}" + "".join(f"{share:17.0%}" for share in shares.values()), flush=True)
            results.append({"width": width, "dtype": dtype, "peak": best, "shares": shares})
    if options.json:
        machine.save(options.json, ["benchmarks.products", *arguments], results)


if __name__ == "__main__":
    main(sys.argv[1:])
