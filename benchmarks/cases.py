"""The networks that tests and benchmarks share, and data for them."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np


@dataclass(frozen=True, repr=False)
class Case:
    """A network and a batch: inputs, units of each hidden layer, outputs, number of hidden layers, samples."""

    inputs: int
    width: int
    outputs: int
    hidden: int
    samples: int

    @property
    def layer_sizes(self):
        return (self.inputs, *[self.width] * self.hidden, self.outputs)

    @property
    def flops(self):
        """Of the gradient: a product forward and one for the weights in every layer, one for the input in all but
        the first."""
        sizes = list(pairwise(self.layer_sizes))
        return 2 * self.samples * (3 * sum(a * b for a, b in sizes) - sizes[0][0] * sizes[0][1])

    def __repr__(self):
        return f"{self.inputs}-{self.width}x{self.hidden}-{self.outputs} N={self.samples}"


NOTEBOOK = Case(1, 6, 1, 5, 1_000_000)

CASES = [
    NOTEBOOK,
    Case(8, 16, 1, 3, 100_000),
    Case(8, 32, 1, 3, 100_000),
    Case(16, 64, 4, 4, 100_000),
    Case(64, 128, 10, 4, 20_000),
    Case(784, 256, 10, 3, 4096),
    Case(784, 1024, 10, 3, 2048),
    Case(16, 64, 4, 4, 256),
]


def network(layer_sizes, dtype=np.float64, seed=0):
    """He-initialised weights, small biases."""
    rng = np.random.default_rng(seed)
    all_weights = [
        (rng.standard_normal((units_out, units_in)) * np.sqrt(2 / units_in)).astype(dtype)
        for units_in, units_out in pairwise(layer_sizes)
    ]
    all_biases = [(0.1 * rng.standard_normal((units, 1))).astype(dtype) for units in layer_sizes[1:]]
    return all_weights, all_biases


def batch(layer_sizes, samples, dtype=np.float64, seed=1):
    """Standard normal inputs and targets, samples in columns."""
    rng = np.random.default_rng(seed)
    net_input = rng.standard_normal((layer_sizes[0], samples)).astype(dtype)
    return net_input, rng.standard_normal((layer_sizes[-1], samples)).astype(dtype)
