"""
Training that protects each sample
==================================

A network learns to read digits by DP-SGD: each gradient is clipped, and noise is added to their sum. The picture shows
the norms before clipping, and the accuracy on digits that the network never saw, with and without clipping and noise.
The script does not compute how much privacy the noise gives, see docs/per_sample.md.
"""

from itertools import pairwise

import numpy as np
from matplotlib import pyplot as plt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from fastbackprop import Workspace, pack

LAYER_SIZES = [64, 64, 10]
STEPS, SHOWN, EXPECTED, LEARNING_RATE = 600, 20, 128, 0.5
MAX_NORM, NOISE = 1.0, 1.0  # the standard deviation of the noise is NOISE * MAX_NORM

pixels, labels = load_digits(return_X_y=True)
train_x, test_x, train_y, test_y = train_test_split(pixels / 16, labels, stratify=labels, random_state=0)
workspace = Workspace(LAYER_SIZES)


def train(max_norm, noise):
    """The accuracy after every SHOWN steps, and the norms of the first and the last SHOWN steps."""
    rng = np.random.default_rng(0)
    weights = [rng.normal(0, np.sqrt(2 / n), (m, n)) for n, m in pairwise(LAYER_SIZES)]
    parameters = pack(weights, [np.zeros((m, 1)) for m in LAYER_SIZES[1:]])
    accuracies, all_norms = [], []
    for step in range(1, STEPS + 1):
        # Every digit is taken or left by itself (Poisson sampling), and the sum is divided by the expected number.
        rows = rng.random(len(train_x)) < EXPECTED / len(train_x)
        _, gradient, norms = workspace.clipped_gradients(
            train_x[rows].T, parameters, None, train_y[rows], max_norm, loss="softmax_cross_entropy"
        )
        parameters -= LEARNING_RATE / EXPECTED * (gradient + rng.normal(0, noise, gradient.shape))
        all_norms.append(norms)
        if step % SHOWN == 0:
            accuracies.append(np.mean(np.argmax(workspace.predict(test_x.T, parameters, None), axis=0) == test_y))
    return accuracies, np.concatenate(all_norms[:SHOWN]), np.concatenate(all_norms[-SHOWN:])


accuracies, early, late = train(MAX_NORM, NOISE * MAX_NORM)
plain, *_ = train(np.inf, 0.0)
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
bins = np.geomspace(1e-3, 1.1 * max(early.max(), late.max()), 60)
left.hist([early, late], bins, histtype="stepfilled", alpha=0.6, label=[f"first {SHOWN} steps", f"last {SHOWN} steps"])
left.axvline(MAX_NORM, color="black", linestyle="--", label="clipped to")
left.set(xscale="log", xlabel="norm of a sample's gradient", ylabel="samples", title="Norms before clipping")
for values, label in (plain, "plain gradient"), (accuracies, "clipped, with noise"):
    right.plot(np.arange(SHOWN, STEPS + 1, SHOWN), 100 * np.array(values), label=label)
right.set(xlabel="step", ylabel="accuracy in %", title=f"Held-out digits: {accuracies[-1]:.1%} at the end")
for axes in left, right:
    axes.legend()
figure.savefig("private_digits.png", dpi=150)
print(f"accuracy on {len(test_y)} held-out digits: {accuracies[-1]:.1%}, {plain[-1]:.1%} without; see the picture")
