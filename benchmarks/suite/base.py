"""What the benchmarks of calls have in common."""

import functools

import numpy as np

import fastbackprop
from benchmarks import cases, timing
from fastbackprop import lean, reference
from fastbackprop.parallel import cpus


class _Calls:  # asv would take a public class for benchmarks
    """A call of this package and the same call of lean NumPy, on the same arguments.

    A subclass has its own cases in `params`, and says what is called.
    """

    param_names = ("case", "dtype")
    timeout = 600

    def setup_cache(self):
        """Compile all kernels before any process is timed."""
        fastbackprop.warmup()

    def setup(self, case, dtype, *_):
        self.arguments = self.prepare(case, dtype)
        self.ours, self.numpy = (functools.partial(self.call, library) for library in (fastbackprop, lean))
        self.ours()

    def prepare(self, case, dtype):
        return _arguments(case, dtype)

    def call(self, library):
        return library.loss_and_gradients(*self.arguments)


class _Comparison(_Calls):
    """Seconds, ratios and errors of both calls; a subclass says how many flops one takes.

    asv takes less for better everywhere, so the ratios are times over times. They hold across machines, where seconds
    do not.
    """

    def flops(self, case):
        return case.flops

    def time_fastbackprop(self, *_):
        self.ours()

    def time_numpy(self, *_):
        self.numpy()

    def track_time_over_peak_time(self, case, dtype, *_):
        """Over the time that the same flops take at the FMA peak of the same threads, measured in the same process."""
        return timing.over_peak(self.ours, self.flops(case), dtype, cpus.available_threads())

    def track_time_over_numpy(self, *_):
        return timing.over(self.ours, self.numpy)

    def track_max_relative_error(self, *_):
        """The largest relative norm of the difference to the oracle in float64, over all arrays that come back."""
        got = list(_flat(self.ours()))
        self.arguments = [_widened(argument) for argument in self.arguments]
        return max(_relative_norm(*pair) for pair in zip(got, _flat(self.call(reference)), strict=True))

    track_time_over_peak_time.unit = "of the peak's time"
    track_time_over_numpy.unit = "of NumPy's time"
    track_max_relative_error.unit = "relative norm"


_arguments = functools.lru_cache(maxsize=1)(cases.arguments)  # asv calls setup before every sample


def _widened(argument):
    if isinstance(argument, np.ndarray):
        return argument.astype(np.float64)
    return [_widened(part) for part in argument] if isinstance(argument, list) else argument


def _flat(result):
    if isinstance(result, (tuple, list)):
        for part in result:
            yield from _flat(part)
    else:
        yield result


def _relative_norm(got, expected):
    return float(np.linalg.norm(np.subtract(got, expected)) / (np.linalg.norm(expected) or 1.0))
