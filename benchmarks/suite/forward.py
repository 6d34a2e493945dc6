"""The forward pass: with all activations, as in the notebooks, and the output alone."""

from benchmarks import cases
from benchmarks.suite import base


class ComputeNetworkOutput(base._Comparison):
    params = (cases.PASSES, cases.DTYPES)

    def call(self, library):
        return library.compute_network_output(*self.arguments[:3])

    def flops(self, case):
        return case.forward_flops


class Predict(ComputeNetworkOutput):
    params = (cases.FUSED, cases.DTYPES)

    def call(self, library):
        return library.predict(*self.arguments[:3])
