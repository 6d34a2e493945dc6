"""Gradients of minibatches, as in training."""

from benchmarks import cases
from benchmarks.suite import base


class Minibatches(base._Comparison):
    params = (cases.MINIBATCHES, cases.DTYPES)
