"""Deep networks."""

from benchmarks import cases
from benchmarks.suite import base


class Deep(base._Comparison):
    params = (cases.DEEP, cases.DTYPES)
