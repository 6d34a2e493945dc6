"""What `info --layers` shows, against what the engines do."""

import numpy as np
import pytest

from fastbackprop import __main__, pool, profiling
from fastbackprop.kernels import FEW

SMALL, LARGE = (3, 8, 8, 2), (300, 2000, 250)


@pytest.mark.parametrize(
    ("sizes", "samples", "regime"),
    [
        (SMALL, 1, "few samples"),
        (SMALL, 100, "one chunk"),
        (SMALL, 100_000, "chunks"),
        (LARGE, 8, "few samples"),
        (LARGE, 10_000, "groups"),
    ],
)
def test_regimes(sizes, samples, regime, dtype):
    engine = pool.make_engine(sizes, dtype)
    rows = profiling.describe(engine, samples, 2)
    assert rows["regime"].startswith(regime)
    assert rows["samples"] == f"{samples:,}"
    assert samples <= FEW or f"of {engine.tile_samples} samples" in rows["tile"]
    assert f"{pool.parameter_count(sizes):,} parameters, {dtype}" in rows["network"]


def test_chunks_are_those_of_the_engine():
    engine = pool.make_engine(SMALL, np.dtype(np.float64))
    chunks = engine.chunks(100_000)
    longest = max(last - first for first, last in chunks)
    rows = profiling.describe(engine, 100_000, 3)
    assert rows["chunks"].startswith(f"{len(chunks)} of up to {longest:,} samples")
    assert rows["threads"].startswith(f"{min(3, len(chunks))} share")


def test_the_register_tile_is_that_of_the_target(dtype):
    from fastbackprop.kernels.simd import host_target

    lanes = host_target()[0].vector_bytes // dtype.itemsize
    assert f"{lanes} lanes of {8 * dtype.itemsize} bits" in profiling.register_tile(dtype)


@pytest.mark.parametrize("sizes", [SMALL, LARGE])
def test_parts_add_up_to_the_call(sizes, dtype, monkeypatch):
    """With a clock that every call moves on by its own amount: 3, 5, 9 and 10 seconds in all."""
    monkeypatch.setattr(profiling, "ROUNDS", 1)
    took = iter([3.0, 5.0, 9.0, 10.0])
    called = []
    monkeypatch.setattr(profiling, "seconds", lambda call: called.append(call()) or next(took))
    times = profiling.measure(pool.make_engine(sizes, dtype), 500, 2)
    assert times == {"forward": 3.0, "backward": 2.0, "weight gradient": 4.0, "rest": 1.0}
    assert called[2][0] == pytest.approx(called[3][0])  # the loss: both are the whole gradient


def test_few_samples_have_one_product_on_the_way_back(monkeypatch):
    monkeypatch.setattr(profiling, "ROUNDS", 1)
    took = iter([3.0, 5.0, 9.0])
    called = []
    monkeypatch.setattr(profiling, "seconds", lambda call: called.append(call()) or next(took))
    times = profiling.measure(pool.make_engine(SMALL, np.dtype(np.float64)), 3, 2)
    assert times == {"forward": 3.0, "way back": 2.0, "rest": 4.0}
    assert called[0].shape == (2, 3)
    assert called[1][0] == called[2][0]


def test_a_part_that_noise_makes_negative_is_none(monkeypatch):
    monkeypatch.setattr(profiling, "ROUNDS", 1)
    took = iter([3.0, 2.0, 4.0, 4.0])
    monkeypatch.setattr(profiling, "seconds", lambda _call: next(took))
    times = profiling.measure(pool.make_engine(SMALL, np.dtype(np.float64)), 10, 1)
    assert times == {"forward": 3.0, "backward": 0.0, "weight gradient": 1.0, "rest": 0.0}


def test_on_the_command_line(capsys):
    assert __main__.main(["info", "--layers", "3,8,2", "--samples", "50", "--dtype", "float32"]) == 0
    printed = capsys.readouterr().out
    assert "network         3-8-2, 50 parameters, float32" in printed
    assert "one chunk" in printed
    for name in "forward", "backward", "weight gradient", "rest":
        assert f"\n{name}" in printed
    shares = [float(line.split("%")[0].split()[-1]) for line in printed.splitlines() if "% " in line]
    assert sum(shares) == pytest.approx(100, abs=0.3)
