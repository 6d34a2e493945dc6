"""The command line, as people run it."""

import io
import os
import re
import subprocess
import sys

import numpy as np
import pytest

import fastbackprop
from fastbackprop import notebook
from fastbackprop.cli import demonstration, profiling
from fastbackprop.cli import main as __main__
from fastbackprop.cli.bars import bars


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "fastbackprop", *arguments], capture_output=True, text=True, timeout=300, check=False
    )


def test_the_main_job():
    done = run("--samples", "20000")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr
    for expected in "Output 1.907", "Loss 327.371", "Loss 163.685", "All agree.":
        assert expected in done.stdout
    rows = re.findall(r"^float(?:64|32) +([\d.]+) ms +([\d.]+) ms +([\d.]+)x ", done.stdout, re.MULTILINE)
    assert len(rows) == 2
    for ours, numpy, ratio in rows:
        assert float(ratio) == pytest.approx(float(numpy) / float(ours), abs=0.006)
    assert "█" not in done.stdout
    assert "#" not in done.stdout
    assert len(re.findall(r"^all_\w+\[\d\]: (\d+) of \1 derivatives agree", done.stdout, re.MULTILINE)) == 24


def test_the_main_job_draws_a_chart_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(demonstration, "numpy_seconds", lambda _batch: 1000.0)
    assert __main__.main(["--samples", "100"]) == 0
    chart = re.findall(r"^(float\d\d  \w+) +[\d.]+ ms  ?([█#]*)$", capsys.readouterr().out, re.MULTILINE)
    longest = max(len(bar) for _, bar in chart)
    assert longest > 10
    assert [(name, len(bar)) for name, bar in chart] == [
        ("float64  fastbackprop", 0),
        ("float64  NumPy", longest),
        ("float32  fastbackprop", 0),
        ("float32  NumPy", longest),
    ]


@pytest.mark.parametrize(("encoding", "block"), [("utf-8", "█"), ("cp1252", "#")])
def test_bars_are_as_long_as_their_values(monkeypatch, encoding, block):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding))
    monkeypatch.setenv("COLUMNS", "50")
    assert bars({"one": 1.0, "four": 4.0, "none": 0.0}, 10) == {"one": 10 * block, "four": 40 * block, "none": ""}
    assert bars({"none": 0.0}, 10) == {"none": ""}
    monkeypatch.setenv("COLUMNS", "500")
    assert bars({"one": 1.0}, 10) == {"one": 60 * block}


def test_a_wrong_gradient_is_told_by_the_exit_status(monkeypatch, capsys):
    def wrong(*arguments, **options):
        all_dl_dweights, all_dl_dbiases = notebook.backward_pass(*arguments, **options)
        all_dl_dweights[2][2, 1] *= 1.001
        return all_dl_dweights, all_dl_dbiases

    monkeypatch.setattr(fastbackprop, "backward_pass", wrong)
    assert __main__.main(["--samples", "100"]) == 1
    printed = capsys.readouterr().out
    assert "WRONG" in printed
    assert "NOT ALL AGREE" in printed


def test_a_wrong_batch_is_told_by_the_exit_status(monkeypatch, capsys):
    right = fastbackprop.loss_and_gradients

    def wrong(net_input, *arguments, **options):
        return right(net_input[:, :-1] if net_input.shape[1] == 5000 else net_input, *arguments, **options)

    def cut(net_input, weights, biases, y, **options):
        return wrong(net_input, weights, biases, y[:, : net_input.shape[1] - (net_input.shape[1] == 5000)], **options)

    monkeypatch.setattr(fastbackprop, "loss_and_gradients", cut)
    assert __main__.main(["--samples", "5000"]) == 1
    assert "NOT ALL AGREE" in capsys.readouterr().out


def test_info():
    done = run("info")
    assert done.returncode == 0
    for name in "fastbackprop", "Python", "NumPy", "numba", "target", "vectors", "threads", "cache folder":
        assert re.search(rf"^{name} +\S", done.stdout, re.MULTILINE), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--samples", "0"], "'0' is not a whole number from 1 up"),
        (["--samples", "many"], "'many' is not a whole number from 1 up"),
        (["--threads", "-2"], "'-2' is not a whole number from 1 up"),
        (["--what"], "unrecognized arguments: --what"),
        (["gradient"], "invalid choice: 'gradient'"),
        (["info", "--layers", "5"], "'5' is not two or more whole numbers, as in 784,256,10"),
        (["info", "--layers", "5,x"], "'x' is not a whole number from 1 up"),
        (
            ["info", "--layers", "5,1", "--samples", "1" + "0" * 30],
            ": pass a smaller --samples, or a smaller network (see fastbackprop info --help)",
        ),
        (["info", "--layers", "1048576,1048576"], "fastbackprop info: 4,096 samples of this network take 1.6"),
        (
            ["info", "--layers", "1099511627776,1099511627776"],
            "parameters; expected at most 17,592,186,044,416",
        ),
        (["info", "--layers", "5,0"], "'0' is not a whole number from 1 up"),
        (["info", "--layers", "5,\n1"], r"'\n1' is not a whole number from 1 up"),
        (["info", "--dtype", "float16"], "invalid choice: 'float16'"),
        (["--samples", "1\n2"], r"'1\n2' is not a whole number from 1 up"),
        (["--samples", "1.5"], "'1.5' is not a whole number from 1 up"),
        (["--threads", "9" * 5000], "9' is not a whole number from 1 up"),
        (["two\nlines"], r"invalid choice: 'two\nlines'"),
        (["gradients", "--what"], "(see fastbackprop gradients --help)"),
        (["gradients"], "the following arguments are required: NET.npz, DATA, --out"),
        (["gradients", "net.npz", "data.npz"], "the following arguments are required: --out"),
        (["check", "net.npz"], "the following arguments are required: DATA"),
        (["check", "net.npz", "data.npz", "--loss", "squares"], "invalid choice: 'squares'"),
        (["check", "net.npz", "data.npz", "--reduction", "max"], "invalid choice: 'max'"),
        (
            ["--samples", "1" + "0" * 17],
            "the activations of 100,000,000,000,000,000 samples in NumPy take 4.47e+10 GiB",
        ),
        (["--samples", "1" + "0" * 30], ": pass a smaller --samples (see fastbackprop --help)"),
    ],
)
def test_wrong_options_are_one_line_and_status_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        __main__.main(arguments)
    printed = capsys.readouterr()
    assert stopped.value.code == 2
    assert not printed.out
    assert message in printed.err
    assert printed.err.count("\n") == 1


def test_only_memory_errors_are_about_memory(monkeypatch, capsys):
    def report(error):
        def raises(*_):
            raise error

        return raises

    monkeypatch.setattr(profiling, "report", report(ValueError("a bug")))
    with pytest.raises(ValueError, match="a bug"):
        __main__.main(["info", "--layers", "5,1"])
    monkeypatch.setattr(profiling, "report", report(MemoryError()))
    with pytest.raises(SystemExit):
        __main__.main(["info", "--layers", "5,1"])
    line = "fastbackprop info: there is not enough memory (see fastbackprop info --help)\n"
    assert capsys.readouterr().err == line


def test_a_batch_with_nan_is_told():
    gradients = 1.0, [np.ones((2, 2)), np.array([[np.nan]])], [np.ones((2, 1)), np.ones((1, 1))]
    assert np.isnan(demonstration.relative_difference(gradients, gradients))


@pytest.mark.parametrize("arguments", [["info"], ["--samples", "10"]])
def test_a_wrong_environment_variable_is_one_line_and_status_2(arguments, monkeypatch, capsys):
    monkeypatch.setenv("FASTBACKPROP_NUM_THREADS", "none")
    with pytest.raises(SystemExit) as stopped:
        __main__.main(arguments)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="a shell of POSIX closes it")
def test_closed_streams_are_no_traceback(tmp_path):
    """Neither with compiled kernels nor without, when Python opens files in their place."""
    write = "import numpy as np; np.savez('net.npz', weights_0=[[1.0]], biases_0=[0.0]); "
    write += "np.savez('data.npz', net_input=[[1.0]], y=[[1.0]])"
    subprocess.run([sys.executable, "-c", write], cwd=tmp_path, check=True)
    line = f"{sys.executable} -m fastbackprop"
    gradients = "gradients net.npz data.npz --out grads.npz"
    for command, arguments in ("info", "info"), ("gradients", gradients):
        done = subprocess.run(
            f"{line} {arguments} >&-", shell=True, cwd=tmp_path, stderr=subprocess.PIPE, text=True, check=False
        )
        assert done.returncode == 2
        name = f"fastbackprop {command}"
        assert done.stderr == f"{name}: the standard output is closed (see {name} --help)\n"
    assert not (tmp_path / "grads.npz").exists()
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cold")}
    for arguments, status in (gradients, 0), ("check net.npz none.npz", 2), ("--what", 2):
        done = subprocess.run(f"{line} {arguments} 2>&-", shell=True, cwd=tmp_path, env=environment, check=False)
        assert done.returncode == status
    assert (tmp_path / "grads.npz").exists()


def test_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        __main__.main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"fastbackprop {fastbackprop.__version__}\n"
