"""Every benchmark runs once at a tiny size, so that none of them rots."""

import importlib
import inspect
import itertools
import pkgutil

import pytest

import benchmarks
from benchmarks.cases import Case

TINY = 300


def discovered():
    for module in pkgutil.iter_modules(benchmarks.__path__, "benchmarks."):
        if module.name.endswith(".compare"):
            continue
        for name, suite in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if suite.__module__ == module.name:
                for method in dir(suite):
                    if method.startswith(("time_", "track_", "peakmem_")):
                        yield pytest.param(suite, method, id=f"{name}.{method}")


def tiny(parameter):
    return (
        parameter
        if not isinstance(parameter, Case)
        else Case(parameter.inputs, parameter.width, parameter.outputs, parameter.hidden, min(parameter.samples, TINY))
    )


@pytest.mark.parametrize(("suite", "method"), list(discovered()))
def test_every_benchmark_runs(suite, method):
    params = getattr(suite, "params", [])
    assert len(params) == len(getattr(suite, "param_names", []))
    for combination in itertools.product(*params):
        instance = suite()
        arguments = [tiny(parameter) for parameter in combination]
        if hasattr(instance, "setup"):
            instance.setup(*arguments)
        result = getattr(instance, method)(*arguments)
        if method.startswith("track_"):
            assert result >= 0
