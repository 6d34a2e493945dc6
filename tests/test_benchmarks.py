"""Every benchmark runs once at a tiny size, so that none of them rots."""

import importlib
import inspect
import itertools
import pkgutil

import pytest

import benchmarks
from benchmarks import compare
from benchmarks.cases import Case

TINY = 300


def discovered():
    for module in pkgutil.iter_modules(benchmarks.__path__, "benchmarks."):
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


@pytest.mark.parametrize("threads", ["1", "2"])
def test_the_comparison_runs(threads, capsys):
    compare.main(["--cases", "3,8,2,2,100", "--libraries", "NumPy", "--threads", threads, "--seconds", "0"])
    printed = capsys.readouterr().out
    for dtype in "float32", "float64":
        assert f"3-8x2-2 N=100, {dtype}, {threads} threads" in printed
    assert printed.count("of the peak") == 4
    assert printed.count("best peer / fastbackprop") == 2


def test_the_comparison_notices_another_gradient(monkeypatch):
    def wrong(case, dtype, data, threads):
        gradient = compare.fastbackprop_gradient(case, dtype, data, threads)
        return lambda: ([1.01 * array for array in gradient()[0]], gradient()[1])

    monkeypatch.setitem(compare.LIBRARIES, "NumPy", ("numpy", wrong))
    with pytest.raises(SystemExit, match="NumPy gives another gradient than NumPy for 3-8x2-2 N=100 in float64"):
        compare.main(["--cases", "3,8,2,2,100", "--libraries", "NumPy", "--dtypes", "float64", "--seconds", "0"])


@pytest.mark.parametrize("text", ["1,2", "a,b,c,d,e"])
def test_a_wrong_case_is_refused(text, capsys):
    with pytest.raises(SystemExit):
        compare.main(["--cases", text])
    assert "is not five whole numbers" in capsys.readouterr().err
