"""The types that a user of the package sees: py.typed is installed, and mypy in strict mode reads the annotations."""

import inspect
import subprocess
import sys
import typing

import pytest

import fastbackprop

CONSUMER = """
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fastbackprop as fb

x, y = np.ones((2, 5)), np.ones((1, 5))
weights, biases = [np.ones((1, 2))], [np.zeros(1)]
output: NDArray[Any] = fb.predict(x, weights, biases, num_threads=1)
loss, all_dl_dweights, all_dl_dbiases = fb.loss_and_gradients(x, weights, biases, y, reduction="mean")
net_output, all_f, all_h = fb.compute_network_output(x, weights, biases)
fb.backward_pass(weights, biases, all_f, all_h, y, loss=lambda output, target: output - target)
vector: NDArray[Any] = fb.pack(weights, biases)
lists: tuple[list[NDArray[Any]], list[NDArray[Any]]] = fb.unpack(vector, (2, 1))
workspace = fb.Workspace((2, 1), np.float32, num_threads=1)
workspace.loss_and_gradients(x, vector, None, y, progress=lambda done, total: None)
passed: bool = fb.check_gradients(x, weights, biases, y).passed
fb.warmup("float32")
"""


def mypy(code, folder):
    """What mypy says about a script that lies outside of the repository."""
    (folder / "consumer.py").write_text(code)
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(folder.parent / "mypy"), "consumer.py"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)


def test_a_strict_consumer(tmp_path):
    pytest.importorskip("mypy", reason="see the extra `test`")
    done = mypy(CONSUMER, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_wrong_types_are_found(tmp_path):
    pytest.importorskip("mypy", reason="see the extra `test`")
    wrong = [
        'fb.predict(x, weights, biases, num_threads="2")',
        "passed = fb.pack(weights, biases)",
        "fb.warmup(loss=1)",
    ]
    done = mypy(CONSUMER + "\n".join(wrong), tmp_path)
    lines = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert len(lines) == len(wrong), done.stdout + done.stderr


def test_help_shows_types_as_they_are_written():
    functions = [getattr(fastbackprop, name) for name in fastbackprop.__all__]
    functions += [value for name, value in vars(fastbackprop.Workspace).items() if not name.startswith("_")]
    functions = [function for function in functions if inspect.isfunction(function)]
    assert len(functions) > 20
    for function in functions:
        signature = inspect.signature(function)
        assert "numpy." not in str(signature), function
        assert set(typing.get_type_hints(function)) == {*signature.parameters, "return"} - {"self"}
