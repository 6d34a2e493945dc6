"""Fits of fastbackprop.sklearn beside scikit-learn's own; left out where scikit-learn is not installed."""

import importlib.util

from benchmarks import sklearn_fit, timing


class SklearnFit:
    params = (list(sklearn_fit.CASES),)
    param_names = ("case",)
    timeout = 600

    def setup(self, case):
        if importlib.util.find_spec("sklearn") is None:
            raise NotImplementedError("scikit-learn is not installed, see the extra `sklearn`")
        (self.theirs, self.ours), self.data = sklearn_fit.models(case)

    def time_fastbackprop(self, _case):
        sklearn_fit.fit(self.ours, *self.data)

    def time_scikit_learn(self, _case):
        sklearn_fit.fit(self.theirs, *self.data)

    def track_time_over_scikit_learn(self, _case):
        return timing.over(
            lambda: sklearn_fit.fit(self.ours, *self.data), lambda: sklearn_fit.fit(self.theirs, *self.data)
        )

    track_time_over_scikit_learn.unit = "of scikit-learn's time"
