"""The fused path: forward, loss and backward in one call."""

from benchmarks import cases
from benchmarks.suite import base


class LossAndGradients(base._Comparison):
    params = (cases.FUSED, cases.DTYPES)


class InputGradient(base._Comparison):
    params = (cases.FUSED, cases.DTYPES)

    def call(self, library):
        return library.loss_and_gradients(*self.arguments, input_gradient=True)

    def flops(self, case):
        return 3 * case.forward_flops
