"""No kernel reads or writes outside of its arrays: see guard_pages, which is killed if one does."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs mprotect")

STRAY = """
import sys
from tests.guard_pages import Guarded
array = Guarded(sys.argv[1]).empty((3, 5), "float32")
array[...] = 1
address = array.ctypes.data + (-1 if sys.argv[1] == "before" else array.nbytes)
import ctypes
ctypes.string_at(address, 1)
"""


@pytest.mark.parametrize("side", ["before", "after"])
def test_the_pages_are_guarded(side):
    done = subprocess.run([sys.executable, "-c", STRAY, side], check=False, capture_output=True)
    assert done.returncode < 0, done.stderr


@pytest.mark.parametrize("side", ["before", "after"])
def test_no_kernel_leaves_its_arrays(side):
    seed = int(np.random.default_rng(0).integers(1000))
    command = [sys.executable, "-m", "tests.guard_pages", side, str(seed)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "nothing was touched\n"


PLANTED = {
    "before": (
        "first * call.itemsize)\n    call.copy_rows(target",
        "(first - 1) * call.itemsize)\n    call.copy_rows(target",
    ),
    "after": ("call.itemsize, units, count)", "call.itemsize, units, count + 1)"),
}
"""One column too early, or too many, is written to a result."""


@pytest.mark.parametrize("side", PLANTED)
def test_a_kernel_that_leaves_an_array_is_killed(side, copy):
    file = copy / "fastbackprop" / "passes" / "tile.py"
    sources, planted = file.read_text(), PLANTED[side]
    assert sources.count(planted[0]) == 1
    file.write_text(sources.replace(*planted))
    command = [sys.executable, "-m", "tests.guard_pages", side, "0"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=900, cwd=copy, env=environment)
    assert done.returncode == -signal.SIGSEGV, done.stderr[-2000:]
    assert not done.stdout
