"""The networks and batches that tests and benchmarks share, and data for them."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

DTYPES = ["float32", "float64"]


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
    def forward_flops(self):
        """Of the output: one product in every layer."""
        return 2 * self.samples * sum(a * b for a, b in pairwise(self.layer_sizes))

    @property
    def flops(self):
        """Of the gradient: a product forward and one for the weights in every layer, one for the input in all but
        the first."""
        return 3 * self.forward_flops - 2 * self.samples * self.layer_sizes[0] * self.layer_sizes[1]

    def fused_bytes(self, itemsize):
        """What a gradient must read and write at least: the batch once, parameters and gradient once."""
        parameters = sum((a + 1) * b for a, b in pairwise(self.layer_sizes))
        return itemsize * (self.samples * (self.inputs + self.outputs) + 2 * parameters)

    def layered_bytes(self, itemsize):
        """The same where layers follow each other over the whole batch: every product, ReLU and mask reads its
        operands from memory and writes its result there."""
        each_way = 0
        for k, (units_in, units_out) in enumerate(pairwise(self.layer_sizes)):
            each_way += units_in + units_out  # forward product
            each_way += units_in + units_out  # weight gradient
            if k > 0:
                each_way += 2 * units_in  # ReLU of the layer before
                each_way += units_in + units_out  # backward product
                each_way += 3 * units_in  # mask
        return self.fused_bytes(itemsize) + itemsize * self.samples * each_way

    def __repr__(self):
        return f"{self.inputs}-{self.width}x{self.hidden}-{self.outputs} N={self.samples}"


NOTEBOOK = Case(1, 6, 1, 5, 1_000_000)
MINIBATCH = Case(784, 100, 10, 3, 64)

# Side by side with other libraries: the table, the charts against width, batch size and memory.
TABLE = [
    NOTEBOOK,
    Case(8, 16, 1, 3, 100_000),
    Case(8, 32, 1, 3, 100_000),
    Case(16, 64, 4, 4, 100_000),
    Case(64, 128, 10, 4, 20_000),
    Case(784, 256, 10, 3, 4096),
    Case(784, 1024, 10, 3, 2048),
    Case(16, 64, 4, 4, 256),
    *[Case(784, 100, 10, 1, samples) for samples in (1, 8, 64)],
    MINIBATCH,
]
# For a prediction of many threads: 64 times the samples that are measured on two.
SCHEDULE = [
    Case(case.inputs, case.width, case.outputs, case.hidden, 64 * case.samples)
    for case in (*TABLE[:8], MINIBATCH, Case(8, 32, 1, 3, 64), Case(1, 6, 1, 5, 1000))
]
WIDTHS = [5, 10, 16, 32, 64, 128, 200, 333, 512, 1024]
CURVE = [Case(w, w, w, 3, min(max(10**8 // w**2, 512), 400_000)) for w in WIDTHS]
"""Three hidden layers, as wide as inputs and outputs: about 2.2 GFLOP each, where the number of samples allows it."""
BATCHES = [Case(16, 64, 4, 4, 8**k) for k in range(7)]
GROUPS = {"table": TABLE, "curve": CURVE, "batches": BATCHES}

# How cost grows: the sizes of what grows, and the case of one size.
GROWTH = {
    "samples": ([4**k for k in range(10)], lambda samples: Case(16, 64, 4, 4, samples)),
    "width": ([8, 16, 32, 64, 128, 256, 512, 1024], lambda width: Case(width, width, width, 3, 4096)),
    "depth": ([1, 2, 4, 8, 16, 32, 64, 128], lambda hidden: Case(32, 32, 32, hidden, 4096)),
}
GROWTH_OF_THREADS = Case(16, 64, 4, 4, 100_000)

# What each sample says: beside other libraries, and in turns with the plain gradient.
PER_SAMPLE = [
    Case(8, 32, 1, 3, 4096),
    Case(16, 64, 4, 4, 1024),
    Case(784, 100, 10, 1, 256),
    *[Case(64, 128, 10, 4, samples) for samples in (1024, 20_000)],
]
# Whose errors are compared with NumPy's.
NUMERICS = {
    "samples": [
        *[Case(1, 6, 1, 5, 10**k) for k in range(1, 8)],
        *[Case(8, 32, 1, 3, 10**k) for k in (1, 3, 5, 6)],
    ],
    "width": [
        *[Case(w, w, 10, 2, samples) for w in (16, 64, 256, 1024) for samples in (8, 100)],
        *[Case(inputs, width, 10, 1, 500) for inputs, width in ((300, 200), (512, 512), (1200, 900))],
    ],
    "depth": [Case(32, 32, 1, hidden, 20) for hidden in (1, 10, 100, 1000)],
}

# What asv tracks.
PASSES = [Case(1, 6, 1, 5, 10_000), Case(16, 64, 4, 4, 4096), Case(784, 256, 10, 3, 512)]
FUSED = [Case(8, 16, 1, 3, 100_000), Case(16, 64, 4, 4, 100_000), Case(784, 256, 10, 3, 4096)]
LOSSES = [Case(16, 32, 10, 2, 10_000)]
SINGLE = [Case(1, 6, 1, 5, 1), Case(784, 100, 10, 1, 1)]
MINIBATCHES = [Case(16, 64, 4, 4, 256), Case(784, 100, 10, 1, 8), MINIBATCH]
TORCH = [Case(8, 32, 1, 3, 64), Case(784, 100, 10, 1, 64), Case(8, 32, 1, 3, 100_000)]
LARGE = [NOTEBOOK, Case(8, 32, 1, 3, 200_000)]
WIDE = [Case(784, 1024, 10, 3, 2048), Case(1024, 4096, 1024, 1, 256)]
DEEP = [Case(32, 32, 32, 50, 10_000), Case(200, 200, 200, 100, 512)]

# What two commits are compared on: each takes some milliseconds at most.
REGRESSION_PASSES = [Case(1, 6, 1, 5, 1), Case(16, 64, 4, 4, 2048)]
REGRESSION_FUSED = [
    *REGRESSION_PASSES,
    Case(1, 6, 1, 5, 50_000),
    MINIBATCH,
    Case(784, 512, 10, 2, 128),
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


def arguments(case, dtype):
    """net_input, all_weights, all_biases, y: what a gradient is taken of."""
    net_input, y = batch(case.layer_sizes, case.samples, dtype)
    return net_input, *network(case.layer_sizes, dtype), y
