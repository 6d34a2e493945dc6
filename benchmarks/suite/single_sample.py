"""The notebooks' own use: one sample, the forward pass, then the backward pass."""

from benchmarks import cases
from benchmarks.suite import base


class DropIn(base._Comparison):
    params = (cases.SINGLE, cases.DTYPES)

    def call(self, library):
        net_input, *parameters, y = self.arguments
        _, *passed = library.compute_network_output(net_input, *parameters)
        return library.backward_pass(*parameters, *passed, y)
