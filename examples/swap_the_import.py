"""
Swap the import
===============

Gradient descent on the notebooks' network, three times: in plain NumPy, with the import swapped, and with fused calls.
All three end with the same weights. The table and the bars show the time of each version.
"""

import time
from itertools import pairwise

import numpy as np
from matplotlib import pyplot as plt

import fastbackprop

LAYER_SIZES = [1, 6, 6, 6, 6, 6, 1]
SAMPLES, STEPS, LEARNING_RATE = 20_000, 100, 0.1


def compute_network_output(net_input, all_weights, all_biases):
    all_f, all_h = [], [net_input]
    for weights, biases in zip(all_weights, all_biases, strict=True):
        all_f.append(weights @ all_h[-1] + biases)
        all_h.append(np.maximum(all_f[-1], 0))
    return all_f[-1], all_f, all_h[:-1]


def backward_pass(all_weights, all_biases, all_f, all_h, y):
    all_dl_dweights, all_dl_dbiases = [None] * len(all_weights), [None] * len(all_biases)
    dl_df = 2 * (all_f[-1] - y)
    for k in reversed(range(len(all_weights))):
        all_dl_dweights[k], all_dl_dbiases[k] = dl_df @ all_h[k].T, dl_df.sum(axis=1, keepdims=True)
        if k > 0:
            dl_df = (all_weights[k].T @ dl_df) * (all_f[k - 1] > 0)
    return all_dl_dweights, all_dl_dbiases


def in_two_passes(forward, backward):
    return lambda x, weights, biases, y: backward(weights, biases, *forward(x, weights, biases)[1:], y)


def train(gradients):
    rng = np.random.default_rng(0)
    weights = [rng.normal(0, np.sqrt(2 / n), (m, n)) for n, m in pairwise(LAYER_SIZES)]
    biases = [np.zeros((m, 1)) for m in LAYER_SIZES[1:]]
    x = rng.uniform(-1, 1, (1, SAMPLES))
    y = np.sin(3 * x)
    gradients(x, weights, biases, y)  # the very first call compiles, which is not what is timed here
    start = time.perf_counter()
    for _ in range(STEPS):
        all_dl_dweights, all_dl_dbiases = gradients(x, weights, biases, y)
        for parameter, derivative in zip(weights + biases, all_dl_dweights + all_dl_dbiases, strict=True):
            parameter -= LEARNING_RATE / SAMPLES * derivative
    return weights + biases, np.mean((fastbackprop.predict(x, weights, biases) - y) ** 2), time.perf_counter() - start


plain = train(in_two_passes(compute_network_output, backward_pass))
swapped = train(in_two_passes(fastbackprop.compute_network_output, fastbackprop.backward_pass))
fused = train(lambda *arguments: fastbackprop.loss_and_gradients(*arguments)[1:])
results = {"NumPy": plain, "import swapped": swapped, "fused calls": fused}
print(f"{STEPS} steps on {SAMPLES:,} samples      mean squared error      time    ratio")
for name, (parameters, error, seconds) in results.items():
    assert all(np.allclose(a, b, rtol=1e-6, atol=1e-9) for a, b in zip(parameters, plain[0], strict=True))
    print(f"{name:30} {error:16.12f} {seconds:10.2f} s {plain[2] / seconds:7.1f}x")

figure, axes = plt.subplots(figsize=(7, 2.2), layout="constrained")
axes.bar_label(axes.barh(list(results), [seconds for *_, seconds in results.values()]), fmt="%.2f s", padding=4)
axes.set(title=f"{STEPS} steps of gradient descent on {SAMPLES:,} samples", xlabel="seconds", ylim=(2.5, -0.5))
figure.savefig("swap_the_import.png", dpi=150)
