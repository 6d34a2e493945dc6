"""The notebooks' backward pass, from what the forward pass returned."""

from benchmarks import cases
from benchmarks.suite import base
from fastbackprop import reference


class BackwardPass(base._Comparison):
    params = (cases.PASSES, cases.DTYPES)

    def prepare(self, case, dtype):
        *network, y = super().prepare(case, dtype)
        return *network[1:], *reference.compute_network_output(*network)[1:], y

    def call(self, library):
        return library.backward_pass(*self.arguments)

    def flops(self, case):
        return case.flops - case.forward_flops
