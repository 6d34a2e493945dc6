"""Gradients of batches of a million samples."""

from benchmarks import cases
from benchmarks.suite import base


class LargeBatches(base._Comparison):
    params = (cases.LARGE, cases.DTYPES)
