"""What all tests share: seeded hypothesis, and comparisons that say which array differs and by how much."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

import fastbackprop
from benchmarks.cases import batch
from fastbackprop import reference
from fastbackprop.engine import plan, pool

settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("repeatable")

TOLERANCE = {"float64": 1e-12, "float32": 2e-5}


@pytest.fixture(autouse=True)
def _processors_as_before():
    """No call leaves the calling thread on fewer processors than it had when the tests began."""
    yield
    if PROCESSORS is not None:
        assert os.sched_getaffinity(0) == PROCESSORS


PROCESSORS = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None


def assert_close(got, expected, tolerance=None, label="result"):
    """Compare arrays, or lists of them, in dtype, shape and relative norm."""
    if isinstance(expected, (list, tuple)):
        assert len(got) == len(expected), label
        for k, (g, e) in enumerate(zip(got, expected, strict=True)):
            assert_close(g, e, tolerance, f"{label}[{k}]")
        return
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.shape == expected.shape, label
    assert got.dtype == expected.dtype, label
    if tolerance is None:
        tolerance = TOLERANCE[expected.dtype.name]
    size = np.linalg.norm(expected.astype(np.float64))
    difference = np.linalg.norm(got.astype(np.float64) - expected)
    assert difference <= tolerance * size + np.finfo(got.dtype).tiny, f"{label}: {difference:.2e} of {size:.2e}"


def assert_same_bits(got, expected):
    """Compare arrays, or lists of them, bit by bit."""
    if isinstance(expected, (list, tuple)):
        assert len(got) == len(expected)
        for g, e in zip(got, expected, strict=True):
            assert_same_bits(g, e)
    else:
        got, expected = np.asarray(got), np.asarray(expected)
        np.testing.assert_array_equal(got, expected, strict=True)
        assert (
            got.astype(got.dtype.newbyteorder("=")).tobytes() == expected.astype(got.dtype.newbyteorder("=")).tobytes()
        )


def smooth_batch(layer_sizes, samples, all_weights, all_biases, dtype, seed=1):
    """A batch without samples at a ReLU's kink, where rounding decides between two right gradients."""
    net_input, y = batch(layer_sizes, 2 * samples + 10, dtype, seed)
    wide = [[array.astype(np.float64) for array in arrays] for arrays in (all_weights, all_biases)]
    _, all_f, _ = reference.compute_network_output(net_input.astype(np.float64), *wide)
    distance = np.full(net_input.shape[1], np.inf)
    for f in all_f[:-1]:
        distance = np.minimum(distance, np.min(np.abs(f), axis=0) / np.sqrt(np.mean(f * f)))
    columns = np.flatnonzero(distance > (1e-5 if dtype == np.float32 else 1e-13))[:samples]
    assert columns.size == samples
    return net_input[:, columns], y[:, columns]


def target_of(loss, y):
    """Standard normal numbers (D_o, N), made a target of the loss: probabilities for the cross-entropies."""
    if loss == "softmax_cross_entropy":
        return np.exp(y) / np.sum(np.exp(y), axis=0)
    return 1 / (1 + np.exp(-y)) if loss == "binary_cross_entropy" else y


@pytest.fixture
def shared_from(monkeypatch):
    """What has threads share one gradient where a partial gradient has more than so many bytes."""

    def change(most):
        monkeypatch.setattr(plan, "PRIVATE_BYTES", most)
        monkeypatch.setattr(pool, "_free", {})

    return change


@pytest.fixture(params=["float64", "float32"])
def dtype(request):
    return np.dtype(request.param)


@pytest.fixture
def copy(tmp_path):
    """A copy of the package whose sources can be edited."""
    shutil.copytree(
        Path(fastbackprop.__file__).parent, tmp_path / "fastbackprop", ignore=shutil.ignore_patterns("__pycache__")
    )
    return tmp_path
