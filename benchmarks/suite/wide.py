"""Wide networks, whose gradient does not fit a cache."""

from benchmarks import cases
from benchmarks.suite import base


class Wide(base._Comparison):
    params = (cases.WIDE, cases.DTYPES)
