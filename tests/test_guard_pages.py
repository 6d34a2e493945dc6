"""No kernel reads or writes outside of its arrays: see guard_pages, which is killed if one does."""

import subprocess
import sys

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
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "nothing was touched\n"
