"""Gradients of ReLU networks on the CPU, from lists of NumPy arrays.

A network has D_i inputs, K hidden layers of D_1 ... D_K units, and D_o outputs. A batch of N samples is an array
(D_i, N) with one sample in each column. Weights are a list of K + 1 arrays (D_{k+1}, D_k), biases a list of K + 1
arrays (D_{k+1}, 1), where D_0 is D_i and D_{K+1} is D_o.

Importing this package compiles nothing. Kernels are compiled, or loaded from the cache on disk, at first use.
"""

from fastbackprop import reference
from fastbackprop.checking import check_gradients
from fastbackprop.engine.warming import warmup
from fastbackprop.gradients import loss_and_gradients, predict, vjp
from fastbackprop.notebook import (
    ReLU,
    backward_pass,
    compute_network_output,
    d_loss_d_output,
    indicator_function,
    least_squares_loss,
)
from fastbackprop.packing import pack, unpack
from fastbackprop.per_sample import (
    clipped_gradients,
    per_sample_gradient_norms,
    per_sample_gradients,
    squared_gradient_sums,
)
from fastbackprop.workspace import Workspace

__version__ = "0.1.0"

__all__ = [
    "ReLU",
    "Workspace",
    "backward_pass",
    "check_gradients",
    "clipped_gradients",
    "compute_network_output",
    "d_loss_d_output",
    "indicator_function",
    "least_squares_loss",
    "loss_and_gradients",
    "pack",
    "per_sample_gradient_norms",
    "per_sample_gradients",
    "predict",
    "reference",
    "squared_gradient_sums",
    "unpack",
    "vjp",
    "warmup",
]
