"""Faults planted in a copy of the package, each of which a test finds. The copies are a marked run."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@dataclass
class Fault:
    """A line of a file with a fault in it, and the tests that find it."""

    file: str
    right: str
    wrong: str
    tests: str


FAULTS = {
    "no mask behind a product": Fault(
        "kernels/register_tiles.py",
        "simd.store(builder.fmul(builder.load(slot), mask), c, place)",
        "simd.store(builder.load(slot), c, place)",
        "test_gradients.py",
    ),
    "no ReLU where samples are few": Fault(
        "passes/few.py", "            relu(f, samples * layer.units_out)", "            pass", "test_gradients.py"
    ),
    "the last tile is lost": Fault(
        "passes/chunks.py",
        "        for first in range(begin, end, call.tile_samples):\n            count",
        "        for first in range(begin, end - call.tile_samples + 1, call.tile_samples):\n            count",
        "test_gradients.py",
    ),
    "a block in place is not cleared": Fault(
        "passes/shared.py",
        "        clear_tail(partial, row, block.rows, 0, block.columns)",
        "        clear_tail(scratch, block.partial_row, block.rows, 0, block.columns)",
        "test_shared.py",
    ),
    "each tile overwrites the gradient": Fault(
        "passes/chunks.py",
        "call.add_tile(call, tile, partial, losses, first, count, first - begin)",
        "call.add_tile(call, tile, partial, losses, first, count, 0)",
        "test_gradients.py",
    ),
    "no rows for sums in parts": Fault(
        "engine/layout.py",
        "        if units:\n",
        "        if units < 0:\n",
        "test_layouts.py",
    ),
    "a chunk is lost": Fault(
        "passes/chunks.py",
        "    chunks = call.end_chunk - call.first_chunk\n    meet",
        "    chunks = max(call.end_chunk - call.first_chunk - 1, 1)\n    meet",
        "test_gradients.py",
    ),
    "the second thread's blocks are lost": Fault(
        "passes/chunks.py",
        "        partials = advance(call.partials, block.partial_at)",
        "        partials = advance(call.partials, block.partial_at * (thread == 0))",
        "test_threads.py test_workers.py",
    ),
    "the second thread's strips are lost": Fault(
        "passes/shared.py",
        "    count = min(length, call.tile_samples - begin, call.samples - first)",
        "    count = min(length, call.tile_samples - begin, call.samples - first) * (strip == 0)",
        "test_shared.py",
    ),
    "the derivative of the squared error is halved": Fault(
        "losses/least_squares.py", "count, 1.0, scale + scale)", "count, 1.0, scale)", "test_gradients.py"
    ),
    "the derivative of the softmax is halved": Fault(
        "losses/softmax_cross_entropy.py",
        "rows[output + s] = scale * rows[weight + s] * (rows[total + s]",
        "rows[output + s] = real(0.5) * scale * rows[weight + s] * (rows[total + s]",
        "test_losses.py",
    ),
    "rounding errors are not added": Fault(
        "kernels/rows.py",
        "builder.store(builder.fadd(builder.load(errors), error), errors)",
        "builder.store(builder.load(errors), errors)",
        "test_kernels.py",
    ),
    "one vector too many is written": Fault(
        "kernels/rows.py",
        "        with simd.loop(builder.sub(vectors, done)) as step:\n            add_part",
        "        with simd.loop(simd.add(builder.sub(vectors, done), 1)) as step:\n            add_part",
        "test_guard_pages.py",
    ),
    "a norm that overflows is not computed again": Fault(
        "passes/per_sample.py",
        "if not norms[s] < np.inf:",
        "if norms[s] < 0.0:",
        "test_per_sample.py",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_can_be_planted(name):
    """The line is there, once."""
    fault = FAULTS[name]
    assert (ROOT / "fastbackprop" / fault.file).read_text(encoding="utf-8").count(fault.right) == 1
    assert all((ROOT / "tests" / test).exists() for test in fault.tests.split())


def run_in_copy(tmp_path, fault):
    """The exit status and the output of the tests of a copy with a fault."""
    for folder in "fastbackprop", "tests", "benchmarks":
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    file = tmp_path / "fastbackprop" / fault.file
    file.write_text(file.read_text(encoding="utf-8").replace(fault.right, fault.wrong), encoding="utf-8")
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(tmp_path)}
    tests = [f"tests/{test}" for test in fault.tests.split()]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout[-2000:]


@pytest.mark.faults
@pytest.mark.parametrize("tests", sorted({fault.tests for fault in FAULTS.values()}))
def test_a_copy_without_a_fault_passes(tests, tmp_path):
    status, output = run_in_copy(tmp_path, Fault("__init__.py", "", "", tests))
    assert status == pytest.ExitCode.OK, output


@pytest.mark.faults
@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name, tmp_path):
    """By a test that fails, and does not crash."""
    status, output = run_in_copy(tmp_path, FAULTS[name])
    assert status == pytest.ExitCode.TESTS_FAILED, output
