"""
Shattered gradients
===================

The deeper a ReLU network, the more its derivative by the input looks like noise. The picture shows this derivative for
one random network of each depth, and the autocorrelation of the derivative, averaged over many networks. See Balduzzi
et al. (2017), "The shattered gradients problem".
"""

from itertools import pairwise

import numpy as np
from matplotlib import pyplot as plt

from fastbackprop import vjp

DEPTHS, WIDTH, NETWORKS = (1, 10, 50), 200, 40
POINTS, LAGS = 256, 64
x = np.linspace(-2, 2, POINTS)[np.newaxis]
distance = (x[0] - x[0, 0])[:LAGS]


def derivative(depth, rng):
    """d output / d input at each x, for a random network with that many hidden layers."""
    layer_sizes = [1, *[WIDTH] * depth, 1]
    weights = [rng.normal(0, np.sqrt(2 / n), (m, n)) for n, m in pairwise(layer_sizes)]
    biases = [rng.normal(size=(m, 1)) for m in layer_sizes[1:]]
    *_, doutput_dinput = vjp(x, weights, biases, np.ones_like(x), input_gradient=True)
    return doutput_dinput[0]


def autocorrelation(values):
    """The correlation of the values with themselves, 0, 1, ... points further on."""
    centred = values - values.mean()
    return np.array([np.mean(centred[: POINTS - k] * centred[k:]) for k in range(LAGS)]) / np.mean(centred**2)


figure = plt.figure(figsize=(9, 4.5), layout="constrained")
grid = figure.add_gridspec(len(DEPTHS), 2)
right = figure.add_subplot(grid[:, 1])
print(f"autocorrelation at a distance of {distance[4]:.2f}  {distance[16]:.2f}  {distance[32]:.2f}")
for row, depth in enumerate(DEPTHS):
    rng = np.random.default_rng(0)
    derivatives = [derivative(depth, rng) for _ in range(NETWORKS)]
    mean = np.mean([autocorrelation(values) for values in derivatives], axis=0)
    label = f"{depth} hidden layer{'s' if depth > 1 else ''}"
    print(f"{label:>31}  {mean[4]:.2f}  {mean[16]:.2f}  {mean[32]:.2f}")
    left = figure.add_subplot(grid[row, 0])
    left.plot(x[0], derivatives[0], color=f"C{row}", linewidth=1)
    left.set_title(label, fontsize="medium")
    left.tick_params(labelbottom=row == len(DEPTHS) - 1)
    right.plot(distance, mean, color=f"C{row}", label=label)
left.set_xlabel("input")
figure.supylabel("d output / d input", fontsize="medium")
right.axhline(0, color="0.7", linewidth=0.8)
right.set(xlabel="distance of two inputs", title=f"Autocorrelation (mean of {NETWORKS} networks)")
right.legend()
figure.savefig("shattered_gradients.png", dpi=150)
