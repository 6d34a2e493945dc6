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
from fastbackprop.kernels.sweep import padded, transposed_stride
from fastbackprop.pool import make_engine

from benchmarks import machine, peak
from benchmarks.cases import DTYPES
from fastbackprop.engine import aligned
from fastbackprop.kernels.layers import backward_layer, forward_layer, row_stride, transpose, weight_gradient
from fastbackprop.kernels.simd import advance, pointer

WIDTHS = [64, 100, 128, 200, 256, 333, 512, 700, 1024]
PRODUCTS = ["forward", "backward", "weight gradient"]


@numba.njit(nogil=True, error_model="numpy")
def product(which, times, rows, weights, gradient, transposed, width, samples):
    """Take one of the products that many times over a tile: rows of h, of f or dl/df, and of dl/dh.

    The backward product reads transposed weights, as those of networks with many parameters do.
    """
    itemsize, zero = rows.itemsize, rows.dtype.type(0.0)
    stride, row, t_stride = row_stride(rows, samples), padded(width) * itemsize, transposed_stride(width, itemsize)
    h = pointer(rows)
    f, dl_dh = advance(h, width * stride), advance(h, 2 * width * stride)
    w, copy = pointer(weights), pointer(transposed)
    biases = advance(w, width * row)
    for _ in range(times):
        if which == 0:
            forward_layer(f, stride, w, row, itemsize, biases, itemsize, h, stride, width, width, samples, zero)
        elif which == 1:
            backward_layer(dl_dh, h, stride, w, itemsize, row, f, stride, width, width, samples, 1)
        else:
            transpose(copy, t_stride, h, stride, width, samples)
            weight_gradient(
                pointer(gradient), row, pointer(gradient), row, f, stride, copy, t_stride, width, width, samples, 1
            )


def speeds(width, dtype, rounds):
    """The best flops per second of each product over some rounds, and of the FMA peak between them."""
    dtype = np.dtype(dtype)
    samples = make_engine((width,) * 4, dtype).tile_samples
    stride = samples + 64 // dtype.itemsize
    rng = np.random.default_rng(0)
    rows = aligned(3 * width * stride, dtype)
    rows[:] = rng.standard_normal(rows.size)
    weights = (rng.standard_normal((width + 1) * padded(width)) * np.sqrt(2 / width)).astype(dtype)
    gradient = aligned(width * padded(width), dtype)
    transposed = aligned(samples * (width + 64), dtype)
    flops = 2 * width * width * samples
    times = max(1, int(1e8 // flops))
    found = dict.fromkeys([*PRODUCTS, "peak"], 0.0)
    for _ in range(rounds):
        found["peak"] = max(found["peak"], peak.flops(dtype.name, 1))
        for which, name in enumerate(PRODUCTS):
            gradient[:] = 0.0
            product(which, 1, rows, weights, gradient, transposed, width, samples)
            start = time.perf_counter()
            product(which, times, rows, weights, gradient, transposed, width, samples)
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
