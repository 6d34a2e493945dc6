"""Gradients of hundreds of thousands of samples and more."""

from benchmarks import cases
from benchmarks.suite import base


class LargeBatches(base._Comparison):
    params = (cases.LARGE, cases.DTYPES)
