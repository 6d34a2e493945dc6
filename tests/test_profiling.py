"""What `info --layers` shows, against what the engine does."""

import re

import numpy as np
import pytest

from fastbackprop.cli import main as __main__
from fastbackprop.cli import profiling
from fastbackprop.engine.limits import FEW
from fastbackprop.engine.plan import plan_gradient
from fastbackprop.parallel.workers import count_threads

SMALL, LARGE = (3, 8, 8, 2), (300, 2000, 1500, 250)


def described(sizes, samples, dtype, threads=2):
    return profiling.describe(plan_gradient(sizes, dtype.itemsize, samples), sizes, dtype, threads)


@pytest.mark.parametrize(
    ("sizes", "samples", "scheme"),
    [
        (SMALL, 1, "few samples"),
        (SMALL, 100, "chunks"),
        (SMALL, 100_000, "chunks"),
        (LARGE, 8, "few samples"),
        (LARGE, 10_000, "shared"),
    ],
)
def test_schemes(sizes, samples, scheme, dtype):
    rows, plan = described(sizes, samples, dtype), plan_gradient(sizes, dtype.itemsize, samples)
    assert rows["scheme"].startswith(scheme)
    assert rows["samples"] == f"{samples:,}"
    assert samples <= FEW or f"of {plan.tile_samples} samples" in rows["tile"]
    assert f"{plan.layout.parameters:,} parameters, {dtype}" in rows["network"]


def test_chunks_are_those_of_the_plan():
    plan = plan_gradient(SMALL, 8, 100_000)
    rows = described(SMALL, 100_000, np.dtype(np.float64), 3)
    assert rows["chunks"] == f"{plan.chunks} of up to {plan.longest:,} samples, in {len(plan.slices(3))} slices"
    assert rows["threads"] == f"{count_threads(3, plan.most_threads)} of 3"


def test_the_register_tile_is_that_of_the_target(dtype):
    from fastbackprop.kernels.simd import host_target

    lanes = host_target()[0].vector_bytes // dtype.itemsize
    assert f"{lanes} lanes of {8 * dtype.itemsize} bits" in profiling.register_tile(dtype)


@pytest.mark.parametrize("samples", [3, 500])
def test_parts_add_up_to_the_call(samples, dtype, monkeypatch):
    """With a clock that every call moves on by its own amount: arguments, prediction, gradient."""
    monkeypatch.setattr(profiling, "ROUNDS", 1)
    took, called = iter([1.0, 3.0, 9.0]), []
    monkeypatch.setattr(profiling, "seconds", lambda call: called.append(call()) or next(took))
    times = profiling.measure(SMALL, dtype, samples, 2)
    assert times == {"arguments": 1.0, "forward": 3.0, "way back": 6.0}
    batch, net_output, (loss, all_dl_dweights, all_dl_dbiases) = called
    assert net_output.shape == (2, samples)
    assert [array.shape for array in all_dl_dweights + all_dl_dbiases] == [
        array.shape for array in batch.weights + batch.biases
    ]
    assert loss == pytest.approx(np.sum((net_output - batch.target) ** 2, dtype=np.float64), rel=1e-4)


def test_a_part_that_noise_makes_negative_is_none(monkeypatch):
    monkeypatch.setattr(profiling, "ROUNDS", 1)
    took = iter([1.0, 3.0, 2.0])
    monkeypatch.setattr(profiling, "seconds", lambda _call: next(took))
    assert profiling.measure(SMALL, np.dtype(np.float64), 10, 1) == {"arguments": 1.0, "forward": 3.0, "way back": 0.0}


def test_on_the_command_line(capsys):
    assert __main__.main(["info", "--layers", "3,8,2", "--samples", "50", "--dtype", "float32"]) == 0
    printed = capsys.readouterr().out
    assert "network         3-8-2, 50 parameters, float32" in printed
    assert "chunks: each sums" in printed
    found = re.findall(r"^(arguments|forward|way back) +[\d.]+ ms +([\d.]+)% *([█#]*)$", printed, re.MULTILINE)
    assert [name for name, *_ in found] == list(profiling.PARTS)
    shares = {len(bar): float(share) for _, share, bar in found}
    assert sum(float(share) for _, share, _ in found) == pytest.approx(100, abs=0.3)
    assert max(shares) == max(shares, key=shares.get) > 30  # the longest bar is that of the largest part
