"""
More data than memory
=====================

SciPy's L-BFGS fits a network to 4 GB of samples in a zarr store. The workers of a local cluster may use 1 GB each.
Every step is one pass over the store. The bars show the progress of each pass, and the dashboard shows each worker.
The picture shows the error after each pass. Pass another number of gigabytes as an argument:
``python bigger_than_memory.py 0.5``
"""
# sphinx_gallery_thumbnail_path = "_static/bigger_than_memory.png"

import sys
import tempfile
from itertools import pairwise

import dask.array as da
import numpy as np
from dask.distributed import Client, LocalCluster, progress
from matplotlib import pyplot as plt
from scipy.optimize import minimize

from fastbackprop import pack
from fastbackprop.dask import loss_and_gradients

LAYER_SIZES = [8, 32, 32, 1]
CHUNK = 250_000  # samples, of 9 MB


def write_samples(gigabytes, folder):
    """Two arrays with samples in rows, as most stores have them."""
    samples = round(gigabytes * 1e9 / (4 * 9))
    X = da.random.default_rng(0).uniform(-1, 1, (samples, 8), chunks=(CHUNK, -1)).astype(np.float32)
    Y = X[:, :1] * X[:, 1:2] + np.sin(3 * X[:, 2:3])
    da.to_zarr(X, f"{folder}/X.zarr")
    da.to_zarr(Y, f"{folder}/Y.zarr")
    print(f"{samples:,} samples in {X.numblocks[0]} chunks")


def fit(folder, client, losses):
    x, y = (da.from_zarr(f"{folder}/{name}.zarr").T for name in "XY")
    options = {"layer_sizes": LAYER_SIZES, "reduction": "mean", "compute": False}

    def objective(vector):
        futures = client.compute(loss_and_gradients(x, vector.astype(np.float32), None, y, **options))
        progress(futures)
        loss, gradient = client.gather(list(futures))
        print(f"  mean squared error {loss:.4f}")
        losses.append(loss)
        return loss, gradient.astype(np.float64)

    rng = np.random.default_rng(1)
    weights = [rng.normal(0, np.sqrt(2 / n), (m, n)) for n, m in pairwise(LAYER_SIZES)]
    start = pack(weights, [np.zeros((m, 1)) for m in LAYER_SIZES[1:]])
    return minimize(objective, start, method="L-BFGS-B", jac=True, options={"maxiter": 15})


if __name__ == "__main__":  # workers are processes, which import this file
    gigabytes, losses = float(sys.argv[1]) if len(sys.argv) > 1 else 4.0, []
    with LocalCluster(memory_limit="1GB", dashboard_address=":0") as cluster, Client(cluster) as client:
        print(f"dashboard: {cluster.dashboard_link}")
        with tempfile.TemporaryDirectory(dir=".") as folder:
            write_samples(gigabytes, folder)
            result = fit(folder, client, losses)
    print(f"after {result.nit} iterations: mean squared error {result.fun:.4f}")
    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    axes.semilogy(range(1, len(losses) + 1), losses, marker="o")
    axes.set(
        xlabel="pass over the store", ylabel="mean squared error", title=f"L-BFGS over {gigabytes:g} GB of samples"
    )
    figure.savefig("bigger_than_memory.png", dpi=150)

# %%
# The picture of a run with ``1`` as its argument:
#
# .. image:: /_static/bigger_than_memory.png
