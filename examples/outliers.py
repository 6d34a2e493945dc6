"""
Wrong labels by gradient norm
=============================

One digit in twenty gets a wrong label. After a short training, the digits with wrong labels have the gradients with the
largest norms, nearly without exception. The picture shows the norms for right and wrong labels, and the digits with the
largest norms.

The training is short so that the network learns what digits look like, but not yet the wrong labels.
"""

from itertools import pairwise

import numpy as np
from matplotlib import pyplot as plt
from sklearn.datasets import load_digits

from fastbackprop import Workspace, pack

LAYER_SIZES = [64, 32, 10]
STEPS, BATCH, LEARNING_RATE, SHARE = 1500, 64, 0.2, 0.05

rng = np.random.default_rng(0)
pixels, truth = load_digits(return_X_y=True)
wrong = rng.random(len(truth)) < SHARE
labels = np.where(wrong, (truth + rng.integers(1, 10, len(truth))) % 10, truth)

x = pixels.T / 16
weights = [rng.normal(0, np.sqrt(2 / n), (m, n)) for n, m in pairwise(LAYER_SIZES)]
parameters = pack(weights, [np.zeros((m, 1)) for m in LAYER_SIZES[1:]])
workspace = Workspace(LAYER_SIZES)
for _ in range(STEPS):
    columns = rng.choice(len(labels), BATCH, replace=False)
    _, gradient = workspace.loss_and_gradients(
        x[:, columns], parameters, None, labels[columns], loss="softmax_cross_entropy", reduction="mean"
    )
    parameters -= LEARNING_RATE * gradient

_, norms = workspace.per_sample_gradient_norms(x, parameters, None, labels, loss="softmax_cross_entropy")
suspects = np.argsort(-norms)[: wrong.sum()]
precision = np.mean(wrong[suspects])
print(f"{wrong.sum()} of {len(labels)} labels are wrong")
print(f"of the {len(suspects)} digits with the longest gradients, {precision:.1%} have a wrong label; see outliers.png")

figure = plt.figure(figsize=(10, 4), layout="constrained")
left, right = figure.subfigures(1, 2)
axes = left.subplots()
bins = np.geomspace(max(norms.min(), 1e-3), norms.max(), 50)
axes.hist([norms[~wrong], norms[wrong]], bins, histtype="stepfilled", alpha=0.6, label=["right labels", "wrong labels"])
axes.axvline(norms[suspects[-1]], color="black", linestyle="--", label="suspects begin here")
axes.set(xscale="log", yscale="log", xlabel="norm of a sample's gradient", ylabel="digits", title="Norms of gradients")
axes.legend()
right.suptitle("The longest gradients, and the label given")
for panel, n in zip(right.subplots(3, 6).flat, suspects, strict=False):
    panel.imshow(pixels[n].reshape(8, 8), cmap="gray_r")
    panel.set_title(labels[n], color="C3" if wrong[n] else "C2")
    panel.axis("off")
figure.savefig("outliers.png", dpi=150)
