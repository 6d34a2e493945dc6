"""Nothing of this package: where these change between commits, it was the machine."""

import numpy as np

from benchmarks import peak
from benchmarks.cases import DTYPES
from fastbackprop.parallel.cpus import available_threads


class Control:
    params = (DTYPES,)
    param_names = ("dtype",)

    def setup(self, dtype):
        self.matrix = np.ones((400, 400), dtype)
        peak.flops(dtype, 1, 0.001)

    def time_registers(self, dtype):
        peak.flops(dtype, 1, 0.01)

    def time_numpy_product(self, _dtype):
        self.matrix @ self.matrix

    def track_threads(self, _dtype):
        return available_threads()
