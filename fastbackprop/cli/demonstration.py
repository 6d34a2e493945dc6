"""The main job of the command line: the notebooks' network checked, and a large batch timed."""

import contextlib
import functools
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import fastbackprop
from fastbackprop import lean, reference
from fastbackprop.arguments.checks import Array
from fastbackprop.cli.bars import bars
from fastbackprop.engine.memory import check_size

HIDDEN_LAYERS, WIDTH = 5, 6
CALLS = 5
"""Number of calls whose median time is shown."""

LOSSES = {"least_squares": 327.371, "half_least_squares": 163.685}
AGREEMENT = {"float64": 1e-10, "float32": 1e-5}
"""Relative norm of the difference to the oracle in float64, up to which two gradients agree."""


def notebook_network() -> tuple[list[Array], list[Array]]:
    """The network of the notebooks, drawn in their order: first and last layer, then those in between."""
    rng = np.random.RandomState(0)
    all_weights, all_biases = [np.empty(0)] * (HIDDEN_LAYERS + 1), [np.empty(0)] * (HIDDEN_LAYERS + 1)
    all_weights[0], all_weights[-1] = rng.normal(size=(WIDTH, 1)), rng.normal(size=(1, WIDTH))
    all_biases[0], all_biases[-1] = rng.normal(size=(WIDTH, 1)), rng.normal(size=(1, 1))
    for k in range(1, HIDDEN_LAYERS):
        all_weights[k], all_biases[k] = rng.normal(size=(WIDTH, WIDTH)), rng.normal(size=(WIDTH, 1))
    return all_weights, all_biases


def demonstrate(samples: int, num_threads: int) -> int:
    """Show the notebooks' numbers, every derivative, then a large batch."""
    kept = 2 * HIDDEN_LAYERS * WIDTH * samples * np.dtype(np.float64).itemsize
    check_size(kept, f"the activations of {samples:,} samples in NumPy", "pass a smaller --samples")
    all_weights, all_biases = notebook_network()
    agree = show_notebook_numbers(all_weights, all_biases)
    agree &= show_batch(all_weights, all_biases, samples, num_threads)
    print("\nAll agree." if agree else "\nNOT ALL AGREE.")
    return 0 if agree else 1


def show_notebook_numbers(all_weights: list[Array], all_biases: list[Array]) -> bool:
    """Output, losses and every derivative at one sample."""
    net_input, y = np.full((1, 1), 1.2), np.full((1, 1), 20.0)
    net_output, all_f, all_h = fastbackprop.compute_network_output(net_input, all_weights, all_biases)
    agree = bool(round(net_output.item(), 3) == 1.907)
    print(f"Network of the notebooks: {HIDDEN_LAYERS} hidden layers of {WIDTH}, input 1.2, target 20")
    print(f"Output {net_output.item():.3f}, expected 1.907")
    for loss, expected in LOSSES.items():
        found, *_ = fastbackprop.loss_and_gradients(net_input, all_weights, all_biases, y, loss=loss)
        gradients = fastbackprop.backward_pass(all_weights, all_biases, all_f, all_h, y, loss=loss)
        report = fastbackprop.check_gradients(net_input, all_weights, all_biases, y, loss=loss, gradients=gradients)
        print(f"\nLoss {found:.3f} ({loss}), expected {expected}\n{report}")
        agree &= round(found, 3) == expected and report.passed
    return agree


def show_batch(all_weights: list[Array], all_biases: list[Array], samples: int, num_threads: int) -> bool:
    """Time beside lean NumPy, difference to the oracle and growth of memory at many samples."""
    rng = np.random.default_rng(0)
    batches = {}
    for dtype in np.float64, np.float32:
        parameters = [[array.astype(dtype) for array in arrays] for arrays in (all_weights, all_biases)]
        net_input = rng.standard_normal((1, samples), np.float32).astype(dtype)
        batches[np.dtype(dtype).name] = net_input, *parameters, np.sin(3 * net_input)
    print(f"\nGradient of a batch of {samples:,} samples on {num_threads} threads (median of {CALLS} calls)")
    for batch in batches.values():
        gradient(batch, slice(0, 1000), num_threads)  # compiles the kernels, or loads them
    found = {}
    for name, batch in batches.items():
        # NumPy keeps all activations: it runs only after the peak of both fused calls has been read.
        reset_peak_memory()
        before = peak_memory()
        seconds, result = timed(functools.partial(gradient, batch, slice(None), num_threads))
        found[name] = seconds, result, peak_memory() - before
    agree = True
    milliseconds: dict[str, float] = {}
    print("dtype      fastbackprop        NumPy    ratio   difference   growth of peak memory")
    for name, batch in batches.items():
        seconds, result, growth = found[name]
        ours, numpy = round(1e3 * seconds, 3), round(1e3 * numpy_seconds(batch), 3)
        milliseconds |= {f"{name}  fastbackprop": ours, f"{name}  NumPy": numpy}
        net_input, weights, biases, y = batch
        wide = [array.astype(np.float64) for array in weights], [array.astype(np.float64) for array in biases]
        expected = reference.loss_and_gradients(net_input.astype(np.float64), *wide, y.astype(np.float64))
        difference = relative_difference(result, expected)
        agree &= difference <= AGREEMENT[name]
        print(f"{name} {ours:12.3f} ms {numpy:9.3f} ms {numpy / ours:7.2f}x {difference:12.1e} {growth:12.1f} MB")
    print("NumPy is fastbackprop.lean: products, biases, ReLUs and masks that write into arrays allocated once.")
    if sys.stdout.isatty():
        print()
        for name, bar in bars(milliseconds, 37).items():
            print(f"{name:21} {milliseconds[name]:9.3f} ms  {bar}")
    return agree


def numpy_seconds(batch: tuple[Any, ...]) -> float:
    """The median time of lean NumPy for the gradient of a batch."""
    net_input, _, biases, _ = batch
    kept = lean.buffers([1, *map(len, biases)], net_input.shape[1], net_input.dtype)
    lean.loss_and_gradients(*batch, kept=kept)  # the first touch of the buffers is not timed
    return timed(functools.partial(lean.loss_and_gradients, *batch, kept=kept))[0]


def gradient(batch: tuple[Any, ...], part: slice, num_threads: int) -> tuple[Any, ...]:
    """The fused gradient of a part of a batch."""
    net_input, weights, biases, y = batch
    return fastbackprop.loss_and_gradients(net_input[:, part], weights, biases, y[:, part], num_threads=num_threads)


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """The median time of a call in seconds, and its last result."""
    times = []
    for _ in range(CALLS):
        start = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - start)
    return statistics.median(times), result


def relative_difference(got: tuple[Any, ...], expected: tuple[Any, ...]) -> float:
    """The largest relative norm of a difference, over the loss and all arrays."""
    pairs = [(got[0], expected[0])]
    pairs += [pair for k in (1, 2) for pair in zip(got[k], expected[k], strict=True)]
    differences = [np.linalg.norm(np.subtract(a, b, dtype=np.float64)) / (np.linalg.norm(b) or 1.0) for a, b in pairs]
    return float(np.max(differences))  # NaN where one of them is


def peak_memory() -> float:
    """The largest resident size of this process so far, in MB; NaN where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def reset_peak_memory() -> None:
    """Let the peak start from now, where the system can: what the compiler used before would hide a call's own."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
