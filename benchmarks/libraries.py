"""One gradient of a sum of squared errors in each library, in its own layout, as fast as that library does it.

Each function takes a case, a dtype, the arguments of `loss_and_gradients` and a number of threads, and returns the
call that is timed; what the library needs its arguments converted to is not.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


def fastbackprop_gradient(case, dtype, data, threads):
    import fastbackprop

    workspace = fastbackprop.Workspace(case.layer_sizes, dtype, num_threads=threads)
    return lambda: workspace.loss_and_gradients(*data)[1:]


def numpy_gradient(case, dtype, data, _threads):
    """NumPy as fast as it gets layer by layer: results in place, arrays of the batch's size allocated once."""
    from fastbackprop import lean

    kept = lean.buffers(case.layer_sizes, case.samples, dtype)
    return lambda: lean.loss_and_gradients(*data, kept=kept)[1:]


def notebook_gradient(_case, _dtype, data, _threads):
    """NumPy as in the notebooks, whose functions keep every intermediate array: the oracle."""
    from fastbackprop import reference

    return lambda: reference.loss_and_gradients(*data)[1:]


def torch_step(data, threads):
    import torch

    torch.set_num_threads(threads)
    net_input, all_weights, all_biases, y = data
    x, target = (torch.from_numpy(np.ascontiguousarray(array.T)) for array in (net_input, y))
    weights = [torch.from_numpy(array).requires_grad_() for array in all_weights]
    biases = [torch.from_numpy(array.ravel()).requires_grad_() for array in all_biases]

    def loss():
        h = x
        for layer_weights, layer_biases in zip(weights[:-1], biases[:-1], strict=True):
            h = torch.relu(torch.nn.functional.linear(h, layer_weights, layer_biases))
        return ((torch.nn.functional.linear(h, weights[-1], biases[-1]) - target) ** 2).sum()

    return torch, loss, weights, biases


def torch_gradient(_case, _dtype, data, threads, *, compiled=False):
    torch, loss, weights, biases = torch_step(data, threads)
    if compiled:
        torch.compiler.reset()  # it gives up on a function that it has compiled for too many shapes
        loss = torch.compile(loss)

    def gradient():
        found = torch.autograd.grad(loss(), [*weights, *biases])
        return [g.numpy() for g in found[: len(weights)]], [g.numpy() for g in found[len(weights) :]]

    return gradient


def torch_compiled_gradient(case, dtype, data, threads):
    return torch_gradient(case, dtype, data, threads, compiled=True)


def jax_gradient(_case, _dtype, data, _threads):
    import jax

    jax.config.update("jax_enable_x64", True)
    net_input, all_weights, all_biases, y = data

    def loss(weights, biases, x, target):
        h = x
        for layer_weights, layer_biases in zip(weights[:-1], biases[:-1], strict=True):
            h = jax.nn.relu(h @ layer_weights.T + layer_biases)
        return ((h @ weights[-1].T + biases[-1] - target) ** 2).sum()

    step = jax.jit(jax.grad(loss, argnums=(0, 1)))
    arguments = jax.device_put(
        (
            list(all_weights),
            [b.ravel() for b in all_biases],
            np.ascontiguousarray(net_input.T),
            np.ascontiguousarray(y.T),
        )
    )
    return lambda: jax.block_until_ready(step(*arguments))


def sklearn_gradient(case, dtype, data, _threads):
    """The backpropagation inside of MLPRegressor: of half of the mean of squares, from rows, with weights (in, out)."""
    from sklearn.neural_network import MLPRegressor

    net_input, all_weights, all_biases, y = data
    x, target = np.ascontiguousarray(net_input.T), np.ascontiguousarray(y.T)
    model = MLPRegressor(hidden_layer_sizes=[case.width] * case.hidden, alpha=0.0, max_iter=1)
    model._validate_params()
    model._random_state = np.random.RandomState(0)
    model.n_outputs_, model.n_layers_ = case.outputs, case.hidden + 2
    model._initialize(target, list(case.layer_sizes), np.dtype(dtype))
    model.coefs_ = [np.ascontiguousarray(w.T) for w in all_weights]
    model.intercepts_ = [b.ravel().copy() for b in all_biases]
    activations = [x] + [None] * (case.hidden + 1)
    deltas = [None] * (case.hidden + 1)
    coefs = [np.empty_like(w) for w in model.coefs_]
    intercepts = [np.empty_like(b) for b in model.intercepts_]

    def gradient():
        model._backprop(x, target, None, activations, deltas, coefs, intercepts)
        return [g.T for g in coefs], intercepts

    return gradient


@dataclass(frozen=True)
class Library:
    """What has to be installed, how its call is made, and how many times its gradient is smaller than that of a sum."""

    module: str
    gradient: Callable
    divisor: Callable = lambda _case: 1


LIBRARIES = {
    "fastbackprop": Library("fastbackprop", fastbackprop_gradient),
    "NumPy": Library("numpy", numpy_gradient),
    "NumPy as in the notebooks": Library("numpy", notebook_gradient),
    "PyTorch": Library("torch", torch_gradient),
    "PyTorch compiled": Library("torch", torch_compiled_gradient),
    "JAX": Library("jax", jax_gradient),
    "scikit-learn": Library("sklearn", sklearn_gradient, lambda case: 2 * case.samples),
}


def installed():
    """The names of those that can be imported here."""
    return [name for name, library in LIBRARIES.items() if importlib.util.find_spec(library.module)]
