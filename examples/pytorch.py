"""
A PyTorch classifier, accelerated
=================================

PyTorch's Adam trains one classifier of two spirals in three ways: the plain module, the accelerated module, and the
accelerated module with a fused loss. All three reach the same loss and accuracy. The bars show the seconds of each.
"""

import copy
import time

import torch
from matplotlib import pyplot as plt
from torch import nn

from fastbackprop import warmup
from fastbackprop.torch import accelerate

SAMPLES, BATCH, EPOCHS = 4096, 256, 30

torch.manual_seed(0)
angle = 6 * torch.rand(SAMPLES, dtype=torch.float64).sqrt()
labels = torch.randint(2, (SAMPLES,))
turned = angle + torch.pi * labels
points = torch.stack([angle * turned.cos(), angle * turned.sin()], 1) / 6
points += 0.01 * torch.randn_like(points)

layers = [nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2)]
module = nn.Sequential(*layers).double()
first_state = copy.deepcopy(module.state_dict())
accelerated = accelerate(module)  # its parameters are those of the module


def plain_loss(x, y):
    return nn.functional.cross_entropy(module(x), y)


def accelerated_loss(x, y):
    return nn.functional.cross_entropy(accelerated(x), y)


def fused_loss(x, y):
    return accelerated.loss(x, y, "softmax_cross_entropy")


warmup("float64")  # or the first step would compile the kernels
seconds = {}
for name, loss in ("plain module", plain_loss), ("accelerated", accelerated_loss), ("fused loss", fused_loss):
    module.load_state_dict(first_state)
    optimiser = torch.optim.Adam(module.parameters(), lr=3e-3)
    start = time.perf_counter()
    for _ in range(EPOCHS):
        for x, y in zip(points.split(BATCH), labels.split(BATCH), strict=True):
            optimiser.zero_grad()
            total = loss(x, y)
            total.backward()
            optimiser.step()
    seconds[name] = time.perf_counter() - start
    accuracy = (module(points).argmax(1) == labels).double().mean()
    faster = seconds["plain module"] / seconds[name]
    print(f"{name:12}  {total:.5f}  {accuracy:.1%} right  {seconds[name]:5.2f} s  {faster:.2f}x")

figure, axes = plt.subplots(figsize=(7, 2.2), layout="constrained")
axes.bar_label(axes.barh(list(seconds), list(seconds.values())), fmt="%.2f s", padding=4)
axes.set(title=f"{EPOCHS} epochs of {SAMPLES:,} samples, in batches of {BATCH}", xlabel="seconds", ylim=(2.5, -0.5))
figure.savefig("pytorch.png", dpi=150)
