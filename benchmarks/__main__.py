"""Measure everything that the documents show, then write it into them.

    python -m benchmarks [--quick]

Needs the extras `bench`, `peers` and those of the adapters, and a quiet machine for twenty minutes; --quick is for
seeing that it works.
"""

import argparse
import sys
import time

from benchmarks import (
    compare,
    dask_chunks,
    document,
    growth,
    numerics,
    per_sample,
    products,
    pytorch,
    schedule,
    sklearn_fit,
)

RUNS = {
    "table": (compare, ["--case", "table"]),
    "curve": (compare, ["--case", "curve"]),
    "batches": (compare, ["--case", "batches", "--dtype", "float32", "--memory"]),
    "per_sample": (per_sample, []),
    "growth": (growth, []),
    "products": (products, []),
    "schedule": (schedule, []),
    "numerics": (numerics, []),
    "sklearn": (sklearn_fit, []),
    "sklearn_widths": (sklearn_fit, ["--widths"]),
    "pytorch": (pytorch, []),
    "pytorch_widths": (pytorch, ["--widths"]),
    "dask": (dask_chunks, []),
}
QUICK = {
    compare: ["--seconds", "0"],
    per_sample: ["--seconds", "0"],
    growth: ["--rounds", "2"],
    products: ["--rounds", "2"],
    schedule: ["--dtype", "float32"],
    numerics: ["--quick"],
    sklearn_fit: ["--rounds", "1"],
    pytorch: ["--seconds", "0"],
    dask_chunks: ["--rounds", "1", "--samples", "1000"],
}


def main(arguments):
    """Run all of it."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few rounds, whose figures say little")
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS), help="measure only these again")
    options = parser.parse_args(arguments)
    for name in options.only:
        script, chosen = RUNS[name]
        start = time.perf_counter()
        script.main([*chosen, *QUICK[script] * options.quick, "--json", str(document.FOLDER / f"{name}.json")])
        print(f"{name} took {time.perf_counter() - start:.0f} s", flush=True)
    document.main()


if __name__ == "__main__":
    main(sys.argv[1:])
