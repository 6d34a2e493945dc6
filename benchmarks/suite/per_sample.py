"""What each sample says, beside the oracle and the plain gradient."""

import functools

from benchmarks import cases, timing
from benchmarks.suite import base
from fastbackprop import loss_and_gradients, reference


class _PerSample(base._Comparison):
    params = (cases.PER_SAMPLE[:-1], cases.DTYPES)

    def setup(self, case, dtype):
        super().setup(case, dtype)
        self.numpy = functools.partial(self.call, reference)  # lean NumPy has no such calls

    def track_time_over_gradient(self, *_):
        return timing.over(self.ours, lambda: loss_and_gradients(*self.arguments))

    track_time_over_gradient.unit = "of the gradient's time"


class ClippedGradients(_PerSample):
    def call(self, library):
        return library.clipped_gradients(*self.arguments, 1.0)


class GradientNorms(_PerSample):
    def call(self, library):
        return library.per_sample_gradient_norms(*self.arguments)

    def flops(self, case):
        return case.flops - case.forward_flops


class SquaredGradientSums(_PerSample):
    def call(self, library):
        return library.squared_gradient_sums(*self.arguments)

    def flops(self, case):
        return case.flops + case.forward_flops


class PerSampleGradients(_PerSample):
    def call(self, library):
        return library.per_sample_gradients(*self.arguments)
