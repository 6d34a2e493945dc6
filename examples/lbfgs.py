"""
A regression with L-BFGS
========================

SciPy's optimiser fits a network to noisy samples of a curve. The optimiser needs one vector of parameters, which `pack`
makes and `unpack` reads. The picture shows the samples, the curve without noise, and the network's output.
"""

from itertools import pairwise

import numpy as np
from matplotlib import pyplot as plt
from scipy.optimize import minimize

from fastbackprop import Workspace, pack, predict, unpack

LAYER_SIZES = [1, 20, 20, 1]
SAMPLES, NOISE = 2000, 0.3


def truth(x):
    return np.sin(6 * x) + x


rng = np.random.default_rng(0)
x = rng.uniform(-1, 1, (1, SAMPLES))
y = truth(x) + rng.normal(0, NOISE, x.shape)
weights = [rng.normal(0, np.sqrt(2 / n), (m, n)) for n, m in pairwise(LAYER_SIZES)]
biases = [rng.uniform(-0.5, 0.5, (m, 1)) for m in LAYER_SIZES[1:]]

workspace, history = Workspace(LAYER_SIZES), []
result = minimize(
    lambda vector: workspace.loss_and_gradients(x, vector, None, y, reduction="mean"),
    pack(weights, biases),
    method="L-BFGS-B",
    jac=True,  # the gradient is returned too, as a vector like the parameters
    options={"maxiter": 300},
    callback=lambda intermediate_result: history.append(intermediate_result.fun),
)
for iteration in 1, 10, 100, len(history):
    print(f"after {iteration:3d} iterations: mean squared error {history[iteration - 1]:.4f}")
grid = np.linspace(-1, 1, 500)[np.newaxis]
fitted = predict(grid, *unpack(result.x, LAYER_SIZES))
distance = np.sqrt(np.mean((fitted - truth(grid)) ** 2))
print(f"variance of the noise: {NOISE**2:.4f}; distance to the truth: {distance:.4f}")

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
axes.plot(x[0], y[0], ".", color="0.8", markersize=3, label="samples")
axes.plot(grid[0], truth(grid[0]), color="C0", label="truth")
axes.plot(grid[0], fitted[0], color="C1", linestyle="--", label=f"network after {result.nit} iterations")
axes.set(xlabel="input", ylabel="output", title="A network fitted with L-BFGS")
axes.legend()
figure.savefig("lbfgs.png", dpi=150)
