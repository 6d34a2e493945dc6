"""Every benchmark runs once at a tiny size, so that none of them rots."""

import contextlib
import importlib
import importlib.util
import inspect
import itertools
import json
import pkgutil
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import __main__ as main
from benchmarks import (
    cases,
    charts,
    check_regression,
    compare,
    dask_chunks,
    document,
    growth,
    libraries,
    machine,
    memory,
    numerics,
    per_sample,
    products,
    pytorch,
    sklearn_fit,
    suite,
    timing,
)
from benchmarks.cases import Case

ROOT = Path(__file__).parents[1]
MOST = Case(64, 40, 10, 6, 300)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Times that mean nothing, but are soon taken."""
    monkeypatch.setattr(timing, "MOST_STEPS", 0)
    monkeypatch.setattr(timing, "TURN", 0.0)
    monkeypatch.setattr(timing, "ROUNDS", 1)
    data = sklearn_fit.data
    monkeypatch.setattr(sklearn_fit, "data", lambda name: [array[:60] for array in data(name)])


def discovered():
    """The classes that asv would find, with the names of their benchmarks."""
    for module in pkgutil.iter_modules(suite.__path__, f"{suite.__name__}."):
        for name, found in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if found.__module__ == module.name and not name.startswith("_"):
                methods = [name for name in dir(found) if name.startswith(("time_", "track_", "peakmem_"))]
                yield pytest.param(found, methods, id=name)


def tiny(parameter):
    if not isinstance(parameter, Case):
        return parameter
    return Case(*(min(getattr(parameter, name), getattr(MOST, name)) for name in Case.__annotations__))


@pytest.mark.parametrize(("found", "methods"), list(discovered()))
def test_every_benchmark_runs(found, methods, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # as asv does
    assert methods
    params = getattr(found, "params", ())
    assert len(params) == len(getattr(found, "param_names", ()))
    prepared = found().setup_cache() if hasattr(found, "setup_cache") else None
    for combination in itertools.product(*params):
        benchmark = found()
        arguments = [tiny(parameter) for parameter in combination]
        if prepared is not None:
            arguments.insert(0, prepared)
        for method in methods:
            if hasattr(benchmark, "setup"):
                try:
                    benchmark.setup(*arguments)
                except NotImplementedError as reason:  # asv leaves the benchmark out
                    pytest.skip(str(reason))
            result = getattr(benchmark, method)(*arguments)
            if method == "track_max_relative_error":
                assert result <= (1e-4 if "float32" in arguments else 1e-12)
            elif method.startswith("track_"):
                assert result > 0
                assert isinstance(getattr(getattr(found, method), "unit", "unit"), str)


def test_the_comparison_runs_and_writes_its_results(tmp_path, capsys):
    file = tmp_path / "results.json"
    compare.main(
        ["--case", "3,8,2,2,100", "--libraries", "NumPy", "--threads", "1", "--seconds", "0", "--json", str(file)]
    )
    printed = capsys.readouterr().out
    for dtype in cases.DTYPES:
        assert f"3-8x2-2 N=100, {dtype}, 1 threads" in printed
    assert printed.count("of the peak") == 4
    assert printed.count("NumPy / fastbackprop") == 2
    assert f"chart: {file.with_suffix('.png')}" in printed
    assert file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    measured = json.loads(file.read_text())
    assert measured["threads"] == 1
    assert measured["vector_bits"] in (128, 256, 512)
    assert measured["command"].startswith("python -m benchmarks.compare --case 3,8,2,2,100 ")
    for found in measured["results"]:
        assert found["case"] == [3, 8, 2, 2, 100]
        for library in found["libraries"].values():
            assert library["quartiles"][0] <= library["median"] <= library["quartiles"][1]
            assert library["share"] > 0


@pytest.mark.parametrize("options", [[], ["--cpu-time"]])
def test_fits_beside_those_of_scikit_learn(options, capsys):
    pytest.importorskip("sklearn", reason="see the extra `sklearn`")
    sklearn_fit.main(["--case", "digits (20, 10) sgd", "--rounds", "2", *options])
    _, row, _ = capsys.readouterr().out.splitlines()
    numbers = map(float, re.findall(r"\d+\.?\d*(?:e[+-]\d+)?", row.split("sgd")[1]))
    theirs, ours, ratio, lower, upper, difference = numbers
    assert min(theirs, ours) > 0
    assert lower <= ratio <= upper
    assert difference < 1e-12


@pytest.mark.parametrize("backend", ["agg", "qtagg"])
def test_a_chart_is_a_file_where_there_is_no_display(backend, tmp_path, monkeypatch, capsys):
    shown = []
    monkeypatch.setattr(charts.plt, "get_backend", lambda: backend)
    monkeypatch.setattr(charts.plt, "show", lambda: shown.append(True))
    monkeypatch.setattr(charts.tempfile, "mkdtemp", lambda: str(tmp_path))
    for file in None, tmp_path / "given.png":
        charts.show(charts.others({"threads": 2}, [result(fastbackprop=1e-3, JAX=2e-3)]), file)
    assert len(shown) == (backend == "qtagg")
    names = ["given.png"] if shown else ["chart.png", "given.png"]
    assert capsys.readouterr().out == "".join(f"chart: {tmp_path / name}\n" for name in names)
    assert sorted(file.name for file in tmp_path.iterdir()) == names


def test_the_comparison_notices_another_gradient(monkeypatch):
    def wrong(case, dtype, data, threads):
        gradient = libraries.fastbackprop_gradient(case, dtype, data, threads)
        return lambda: ([1.01 * array for array in gradient()[0]], gradient()[1])

    monkeypatch.setitem(libraries.LIBRARIES, "NumPy", libraries.Library("numpy", wrong))
    with pytest.raises(SystemExit, match="NumPy gives another gradient than the oracle for 3-8x2-2 N=100 in float64"):
        compare.main(["--case", "3,8,2,2,100", "--libraries", "NumPy", "--dtype", "float64", "--seconds", "0"])


@pytest.mark.parametrize("text", ["1,2", "a,b,c,d,e", "0,1,1,1,1", "1,1,1,1,-5", "1,,1,1,1,1"])
def test_a_wrong_case_is_refused(text, capsys):
    with pytest.raises(SystemExit):
        compare.main(["--case", text])
    assert "is not five whole numbers" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not tell")
def test_growth_of_memory():
    case = Case(4, 64, 1, 4, 100_000)
    kept = memory.growth("NumPy", case, "float64", 1)
    assert kept > 8 * 64 * 4 * case.samples / 2**20  # the activations
    assert memory.growth("NumPy as in the notebooks", case, "float64", 1) > 1.3 * kept
    assert memory.growth("fastbackprop", case, "float64", 1) < 0.2 * kept


def test_the_comparison_with_pytorch_runs(capsys):
    pytest.importorskip("torch", reason="see the extra `torch`")
    pytorch.main(["--case", "3,8,2,2,100", "3,8,10,1,5", "--threads", "1", "--seconds", "0"])
    printed = capsys.readouterr().out
    for case in "3-8x2-2 N=100", "3-8x1-10 N=5":
        assert re.search(rf"^{case}( +[\d.]+ us){{4}}( +[\d.]+x){{2}}$", printed, re.MULTILINE)


def test_what_each_sample_says_beside_other_libraries(capsys, monkeypatch):
    monkeypatch.setattr(per_sample, "growths", lambda *_: {})
    monkeypatch.setattr(per_sample, "STORED_BYTES", 60_000)  # four pieces
    per_sample.main(["--case", "3,8,2,2,200", "--dtype", "float64", "--threads", "1", "--seconds", "0"])
    names = ["gradient", "fill", *per_sample.NAMES, *(set(per_sample.installed()) - set(per_sample.AT_ONCE))]
    printed = capsys.readouterr().out
    for name in names:
        assert re.search(rf"^    {name} +[\d.]+ ms +[\d.]+$", printed, re.MULTILINE)
    assert not re.search(r"^    (JAX|PyTorch)  ", printed, re.MULTILINE)


def test_pieces_have_all_samples():
    case = Case(64, 128, 10, 4, 20_000)
    assert per_sample.stored_bytes(case, "float32") == 20_000 * 4 * (65 * 128 + 3 * 129 * 128 + 129 * 10)
    assert per_sample.piece(case, "float32", 2**24) == 50
    assert per_sample.piece(case, "float32", 1) == 1
    assert per_sample.piece(case, "float32", 2**40) == 20_000


def test_other_clipped_sums_are_noticed(monkeypatch):
    monkeypatch.setitem(per_sample.PEERS, "NumPy", ("numpy", lambda *_: lambda: ([np.ones((2, 3))], [np.ones((2, 1))])))
    with pytest.raises(SystemExit, match="NumPy gives other clipped sums than this package for 3-2x0-2 N=9 in float64"):
        per_sample.checked_calls(Case(3, 2, 2, 0, 9), "float64", ["NumPy"], 1)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak does not start anew")
def test_growth_of_memory_in_a_call():
    assert 55 < memory.grown(lambda: np.ones(2**23)) < 80


def test_first_calls(monkeypatch):
    printed = iter(range(100))
    monkeypatch.setattr(
        per_sample.startup, "run", lambda code, cache: f"{compile(code, cache, 'exec') and next(printed)}"
    )
    assert list(per_sample.first_calls("float32").items())[:2] == [("gradient", (0, 15)), ("clipped", (1, 16))]


def test_flops_and_bytes():
    case = Case(2, 3, 1, 2, 10)  # 2 -> 3 -> 3 -> 1
    assert case.forward_flops == 2 * 10 * (6 + 9 + 3)
    assert case.flops == 3 * case.forward_flops - 2 * 10 * 6
    assert case.fused_bytes(4) == 4 * (10 * 3 + 2 * (9 + 12 + 4))
    assert case.layered_bytes(4) > case.fused_bytes(4)


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_powers_are_fitted_to_the_larger_half(power):
    sizes = [1, 2, 4, 8, 16, 32]
    seconds = [7.0, 7.0, 7.0, *(3.0 * size**power for size in sizes[3:])]
    assert growth.power(sizes, seconds) == pytest.approx(power)
    assert growth.power([1, 2], [1.0, 0.5]) == pytest.approx(-1.0)
    assert growth.power([1], [1.0]) is None


def test_what_the_documents_show_is_measured(tmp_path, monkeypatch, capsys):
    """At tiny sizes, from the measurements to the documents."""
    tiny_cases = [Case(3, 8, 2, 2, 100), Case(3, 5, 2, 4, 1)]
    monkeypatch.setattr(compare, "GROUPS", dict.fromkeys(cases.GROUPS, tiny_cases))
    monkeypatch.setattr(growth, "GROWTH", {"samples": ([1, 2, 4, 8], lambda n: Case(3, 8, 2, 2, n))})
    monkeypatch.setattr(growth, "GROWTH_OF_THREADS", tiny_cases[0])
    monkeypatch.setattr(per_sample, "PER_SAMPLE", tiny_cases)
    monkeypatch.setattr(per_sample, "LARGE", Case(3, 8, 2, 2, 1000))
    monkeypatch.setattr(per_sample, "installed", lambda: ["NumPy"])
    monkeypatch.setattr(products, "WIDTHS", [24, 40])
    monkeypatch.setattr(numerics, "NUMERICS", {"samples": tiny_cases})
    monkeypatch.setattr(compare, "installed", lambda: ["fastbackprop", "NumPy", "NumPy as in the notebooks"])
    monkeypatch.setattr(sklearn_fit, "CASES", {name: sklearn_fit.CASES[name] for name in ["digits (20, 10) sgd"]})
    monkeypatch.setattr(sklearn_fit, "WIDTHS", sklearn_fit.CASES)
    monkeypatch.setattr(pytorch, "CASES", tiny_cases[:1])
    monkeypatch.setattr(pytorch, "WIDTHS", tiny_cases)
    monkeypatch.setattr(document, "ROOT", tmp_path)
    monkeypatch.setattr(document, "README_CASES", tiny_cases)
    monkeypatch.chdir(tmp_path)
    (tmp_path / document.FOLDER).mkdir(parents=True)
    monkeypatch.setattr(main, "RUNS", dict(main.RUNS))
    needed = {"sklearn": "sklearn", "pytorch": "torch", "dask": "distributed"}
    for name in list(main.RUNS):
        library = needed.get(name.removesuffix("_widths"))
        if library and importlib.util.find_spec(library) is None:
            del main.RUNS[name]
            shutil.copy(ROOT / document.FOLDER / f"{name}.json", document.FOLDER)
    for name in document.SECTIONS:
        (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    with contextlib.ExitStack() as stack:
        if "dask" in main.RUNS:
            client = stack.enter_context(dask_chunks.client_of(1))
            monkeypatch.setattr(dask_chunks, "client_of", lambda _: contextlib.nullcontext(client))
        main.main(["--quick"])
    capsys.readouterr()
    for name in document.CHARTS:
        for kind in ".svg", ".png":
            assert (tmp_path / document.FOLDER / name).with_suffix(kind).stat().st_size > 1000
    for name in "README.md", "docs/performance.md":
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert "| 3-8-8-2 | 100 |" in text
        assert_ratios_are_quotients(text)
    assert "| 3-8-8-2 | 50 |" in (tmp_path / "docs/numerics.md").read_text(encoding="utf-8")
    if "pytorch" in main.RUNS:
        assert "| 3-8-8-2 | 100 |" in (tmp_path / "docs/pytorch.md").read_text(encoding="utf-8")


def assert_ratios_are_quotients(text):
    """The last column of the table of times is the least time of the others over the first time."""
    table = re.search(r"^\| network \|.* / fastbackprop \|\n\|.*\n((?:\|.*\n)+)", text, re.MULTILINE)
    sizes = {"s": 1.0, "ms": 1e-3, "µs": 1e-6}
    for row in table[1].splitlines():
        ours, *others = (float(time) * sizes[unit] for time, unit in re.findall(r"\| (\S+) (s|ms|µs) ", row))
        shown = float(row.split("|")[-2])
        assert abs(min(others) / ours - shown) < 0.005 + 1e-9  # 9/8 is 1.12 or 1.13, as its last bit falls


def test_documents_say_what_their_results_say():
    """Nothing between the markers was typed by hand."""
    results = document.read_results()
    for name in document.SECTIONS:
        text = (ROOT / name).read_text(encoding="utf-8")
        assert document.written(name, text, results) == text


def result(**medians):
    libraries = {name: {"median": median, "share": 0.5} for name, median in medians.items()}
    return {"case": [784, 100, 10, 1, 8], "dtype": "float32", "libraries": libraries}


def test_cases_that_are_not_won_are_told():
    won = result(fastbackprop=1e-3, JAX=2e-3, NumPy=1.3e-3)
    told = document.not_won([won, result(fastbackprop=1e-3, JAX=8e-4), result(fastbackprop=1e-3, JAX=2.0, NumPy=5e-4)])
    assert told == (
        "Another library is faster: 784-100-10 with 8 samples in float32 (JAX, 1.25 times as fast); "
        "784-100-10 with 8 samples in float32 (NumPy, 2.00 times as fast)."
    )
    assert document.not_won([won]) == "fastbackprop is fastest in every row."


def test_the_ratio_is_the_quotient_of_the_times_shown():
    """7.05 and 158 ms, which a table shows, and not 7.0451 and 158.49 ms."""
    assert compare.best_other(result(fastbackprop=7.0451e-3, JAX=0.15849, NumPy=1.0)) == (
        "JAX",
        pytest.approx(158 / 7.05, rel=1e-12),
    )


def test_a_time_and_a_ratio_are_of_one_rounding():
    """0.0001815 s lies under its three digits' middle and 181.5 µs on it: a table would show 182 and divide by 181."""
    found = result(fastbackprop=1.815e-4, NumPy=2.02e-4)
    assert document.seconds(1.815e-4) == "181 µs"
    assert compare.best_other(found)[1] == pytest.approx(202 / 181, rel=1e-12)
    assert document.seconds(9.996e-4) == "1 ms"


@pytest.mark.parametrize(("seconds", "expected"), [([0.15] + [0.001] * 99, 0.001), ([3.0, 0.5], 3.0)])
def test_a_first_call_is_a_warm_up_unless_it_is_long(monkeypatch, seconds, expected):
    """A call that was stalled once is not the result."""
    now, calls = [0.0], iter(seconds)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def call():
        now[0] += next(calls)

    assert timing.turn(call, 0.0105) == pytest.approx(expected)


@pytest.mark.parametrize(("ours", "numpys", "ratio"), [(4e-14, 1e-14, 2.0), (0.0, 0.0, 1.0), (1e-14, 0.0, np.inf)])
def test_a_ratio_of_errors_is_ours_over_numpys(monkeypatch, ours, numpys, ratio):
    """squares gives squares of norms: of the output, two weights, two biases, and the input's gradient."""
    monkeypatch.setattr(numerics, "squares", lambda *_: (np.array([[ours] * 6, [numpys] * 6]), np.ones(6)))
    found = numerics.measure("samples", Case(3, 8, 2, 1, 5), "float32")["errors"]
    assert found == {name: [pytest.approx(ours**0.5), pytest.approx(ratio)] for name in numerics.RESULTS}


def test_errors_above_the_limit_are_told():
    found = {"case": [1, 6, 1, 5, 10], "dtype": "float32", "errors": {"output": [1e-7, 1.0], "input": [3.1e-7, 1.55]}}
    described = dict.fromkeys(("processor", "processors", "vector_bits", "python", "date", "command"), "")
    text = document.errors(described | {"versions": {}, "results": [found]})
    assert "| 1-6x5-1 | 10 | float32 | 1.0e-07 (1.00) | 3.1e-07 (1.55) |" in text
    assert "Errors of more than 1.5 times NumPy's: input of 1-6x5-1 with 10 samples in float32." in text
    found["errors"]["input"] = [3e-7, 1.5]
    text = document.errors(described | {"versions": {}, "results": [found]})
    assert "Errors of more than 1.5 times NumPy's: none." in text


@pytest.mark.parametrize(("number", "words"), [(1, " on 1 processor, "), (2, " on 2 processors, ")])
def test_the_machine_in_a_sentence(number, words):
    described = machine.describe(["benchmarks"]) | {"processors": number}
    assert words in machine.sentence(described)


def test_markers_must_be_there_once():
    assert document.insert("a <!-- begin x --> old <!-- end x --> b", "x", "new\\1") == (
        "a <!-- begin x -->\nnew\\1\n<!-- end x --> b"
    )
    with pytest.raises(ValueError, match="<!-- begin y --> and <!-- end y --> were found 0 times; expected once"):
        document.insert("a <!-- begin x --> old <!-- end x --> b", "y", "new")


@pytest.mark.parametrize(
    ("head", "noise", "slower"),
    [
        (1.0, [1.0], False),
        (1.1, [1.0], False),  # under the limit
        (1.3, [1.0], True),
        (0.5, [1.0], False),  # faster
        (1.0, [1.0, 1.2, 0.9, 1.1, 0.8], False),
        (1.4, [1.0, 1.2, 0.9, 1.1, 0.8], True),
        (1.0, [1.0, 1.0, 9.0, 1.0, 1.0], False),  # a neighbour, now and then
        (1.3, [1.0, 1.0, 9.0, 1.0, 1.0], True),
        (1.0, [1.0] * 20 + [2.0] * 1000, False),  # and one that stays
        (1.3, [1.0] * 20 + [2.0] * 1000, True),
    ],
)
def test_a_slowdown_is_told_from_noise(head, noise, slower):
    factors = itertools.cycle(noise)

    def measure(names, rounds):
        turns = (lambda: 2.0 * next(factors)), (lambda: 2.0 * head * next(factors))
        return [{name: check_regression.paired(*turns) for name in names} for _ in range(rounds)]

    found = check_regression.slowdowns(measure, ["call"], 3, 1.15)
    assert found == ({"call": pytest.approx(head, rel=0.1)} if slower else {})


def test_what_was_slow_once_is_measured_again():
    asked = []

    def measure(names, rounds):
        asked.append((names, rounds))
        slow = len(asked) == 1
        return [{"one": 1.5 if slow else 1.0, "other": 1.0}] * rounds

    assert not check_regression.slowdowns(measure, ["one", "other"], 3, 1.15)
    assert asked == [(["one", "other"], 3), (["one"], 6)]


def test_a_process_that_measures_a_folder(tmp_path):
    shutil.copytree(ROOT / "fastbackprop", tmp_path / "fastbackprop", ignore=shutil.ignore_patterns("__pycache__"))
    folder = tmp_path.resolve()
    package = folder / "fastbackprop" / "gradients.py"
    package.write_text(
        package.read_text().replace("    batch = Batch(", "    import time; time.sleep(0.05)\n    batch = Batch(")
    )
    name = "fused 1-6x5-1 N=1 float64"
    with check_regression.server(folder, 1) as turn:
        assert turn(name) > 0.05
    shutil.rmtree(folder / "fastbackprop")
    with pytest.raises(RuntimeError, match="was measured; expected"), check_regression.server(folder, 1):
        pass


def test_two_commits_without_a_common_measurement(capsys):
    with pytest.raises(SystemExit):
        check_regression.main(["--only", "nothing"])
    assert "no measurement has 'nothing' in its name" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        check_regression.main(["no-such-commit", "HEAD"])
    assert "git has no 'no-such-commit'" in capsys.readouterr().err
