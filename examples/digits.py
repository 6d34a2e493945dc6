"""
Handwritten digits
==================

A network learns to read digits with softmax cross-entropy and Adam. It reaches 98 % accuracy after some seconds. A bar
shows the progress. The picture shows the loss on the training set, and the accuracy on other digits.
"""

from itertools import pairwise

import numpy as np
from matplotlib import pyplot as plt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import trange

from fastbackprop import Workspace, pack

LAYER_SIZES = [64, 128, 128, 10]
EPOCHS, BATCH, LEARNING_RATE = 30, 64, 1e-3

pixels, labels = load_digits(return_X_y=True)
pixels = (pixels / 8 - 1).astype(np.float32)
train_x, test_x, train_y, test_y = train_test_split(pixels, labels, stratify=labels, random_state=0)

rng = np.random.default_rng(0)
weights = [rng.normal(0, np.sqrt(2 / n), (m, n)).astype(np.float32) for n, m in pairwise(LAYER_SIZES)]
parameters = pack(weights, [np.zeros((m, 1), np.float32) for m in LAYER_SIZES[1:]])
mean, square = np.zeros_like(parameters), np.zeros_like(parameters)
workspace = Workspace(LAYER_SIZES, np.float32)

losses, accuracies, step = [], [], 0
for _ in (epochs := trange(EPOCHS, unit="epoch")):
    order = rng.permutation(len(train_x))
    total = 0.0
    for first in range(0, len(order), BATCH):
        rows = order[first : first + BATCH]
        loss, gradient = workspace.loss_and_gradients(
            train_x[rows].T, parameters, None, train_y[rows], loss="softmax_cross_entropy", reduction="mean"
        )
        total += loss * len(rows)
        step += 1
        mean += 0.1 * (gradient - mean)
        square += 0.001 * (gradient**2 - square)
        parameters -= LEARNING_RATE * mean / (1 - 0.9**step) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
    losses.append(total / len(order))
    accuracies.append(np.mean(np.argmax(workspace.predict(test_x.T, parameters, None), axis=0) == test_y))
    epochs.set_postfix(loss=f"{losses[-1]:.4f}", accuracy=f"{accuracies[-1]:.1%}")

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
left.semilogy(range(1, EPOCHS + 1), losses)
left.set(xlabel="epoch", ylabel="cross-entropy, mean over the epoch", title="Training digits")
right.plot(range(1, EPOCHS + 1), 100 * np.array(accuracies), color="C1")
right.set(xlabel="epoch", ylabel="accuracy in %", title=f"Held-out digits: {accuracies[-1]:.1%} at the end")
for axes in left, right:
    axes.grid(alpha=0.3)
figure.savefig("digits.png", dpi=150)
print(f"accuracy on {len(test_y)} held-out digits: {accuracies[-1]:.1%}; see digits.png")
