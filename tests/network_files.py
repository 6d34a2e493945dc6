"""A network and a batch in files, as the commands take them."""

import numpy as np

from benchmarks.cases import batch, network

LAYER_SIZES = (3, 7, 5, 2)
GRADIENTS = ["gradients", "net.npz", "data.npz", "--out", "grads.npz"]
ON_DISK_GRADIENTS = ["gradients", "net.npz", "x.npy", "y.npy", "--out", "grads.npz"]


def write_problem(dtype):
    """Write both to the current folder, as .npz and, of the batch, as .npy."""
    all_weights, all_biases = network(LAYER_SIZES, dtype)
    net_input, y = batch(LAYER_SIZES, 600, dtype)
    np.savez("net.npz", **named(all_weights, all_biases))
    np.savez("data.npz", net_input=net_input, y=y)
    np.save("x.npy", net_input)
    np.save("y.npy", y)
    return net_input, all_weights, all_biases, y


def named(all_weights, all_biases):
    arrays = {f"weights_{k}": weights for k, weights in enumerate(all_weights)}
    return arrays | {f"biases_{k}": biases for k, biases in enumerate(all_biases)}
