"""Every loss of the package's table, on targets that suit all of them: columns of probabilities."""

import numpy as np

from benchmarks import cases
from benchmarks.suite import base
from fastbackprop.losses import LOSSES


class Losses(base._Comparison):
    params = (cases.LOSSES, cases.DTYPES, list(LOSSES))
    param_names = ("case", "dtype", "loss")

    def setup(self, case, dtype, loss):
        self.loss = loss
        super().setup(case, dtype)

    def prepare(self, case, dtype):
        *network, y = super().prepare(case, dtype)
        return *network, np.abs(y) / np.sum(np.abs(y), axis=0)

    def call(self, library):
        return library.loss_and_gradients(*self.arguments, loss=self.loss)
