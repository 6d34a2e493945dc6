"""How the gradient of a network is computed here, and where its time goes: so that a slow case can be understood."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from fastbackprop.arguments.batch import Batch
from fastbackprop.arguments.checks import Array, DType, parameter_count
from fastbackprop.cli.bars import bars
from fastbackprop.engine.limits import FEW
from fastbackprop.engine.memory import check_size
from fastbackprop.engine.plan import Plan, plan_gradient
from fastbackprop.engine.pool import new_engine
from fastbackprop.packing import unpack
from fastbackprop.parallel.workers import count_threads

ROUNDS = 9
"""Times that each part is measured. The shortest counts."""

PARTS = {
    "arguments": "checking what is passed",
    "forward": "the output: copying the input, a product and a ReLU for each layer",
    "way back": "the loss, and the products for the weights and back to the first layer",
}
"""The parts of a gradient's time."""


def report(layer_sizes: tuple[int, ...], dtype: DType, samples: int, num_threads: int) -> str:
    """How a batch of that many samples is cut, and the share of each part of its gradient."""
    # Parameters and gradient; input, target and output.
    numbers = 2 * parameter_count(layer_sizes) + samples * (layer_sizes[0] + 2 * layer_sizes[-1])
    what = f"{samples:,} samples of this network"
    check_size(numbers * dtype.itemsize, what, "pass a smaller --samples, or a smaller network")
    times = measure(layer_sizes, dtype, samples, num_threads)
    plan = plan_gradient(layer_sizes, dtype.itemsize, samples)
    whole = sum(times.values())
    lines = [f"{name:15} {value}" for name, value in describe(plan, layer_sizes, dtype, num_threads).items()]
    lines += ["", f"A gradient of the least-squares loss takes {1e3 * whole:.3f} ms"]
    for name, bar in bars(times, 38).items():
        lines.append(f"{name:15} {1e3 * times[name]:10.3f} ms  {times[name] / whole:6.1%}  {bar}".rstrip())
    lines += ["", *(f"{name:15} {text}" for name, text in PARTS.items())]
    return "\n".join(lines)


def describe(plan: Plan, layer_sizes: tuple[int, ...], dtype: DType, num_threads: int) -> dict[str, str]:
    """The scheme, and how the batch is cut: read from the plan."""
    layout, threads = plan.layout, count_threads(num_threads, plan.most_threads)
    rows = {
        "network": f"{'-'.join(map(str, layer_sizes))}, {layout.parameters:,} parameters, {dtype}",
        "samples": f"{plan.samples:,}",
        "threads": f"{threads} of {num_threads}",
    }
    if plan.scheme == "few":
        return rows | {"scheme": f"few samples (up to {FEW}): vector lanes along the units"}
    rows["register tile"] = register_tile(dtype)
    size = layout.rows * plan.tile_samples * dtype.itemsize / 1024
    rows["tile"] = f"{layout.rows:,} rows of {plan.tile_samples} samples, {size:,.0f} KB"
    if plan.scheme == "shared":
        return rows | {
            "scheme": "shared: threads take strips of tiles forward and back, then blocks of the gradient",
            "groups": f"{plan.chunks:,} of up to {plan.longest:,} samples",
            "blocks": f"{len(layout.blocks):,} of the gradient",
        }
    return rows | {
        "scheme": "chunks: each sums its own gradient, tile by tile",
        "chunks": f"{plan.chunks:,} of up to {plan.longest:,} samples, in {len(plan.slices(threads)):,} slices",
    }


def register_tile(dtype: DType) -> str:
    """The largest register tile of the products, and the vectors that it is made of."""
    import numba
    from numba.core.registry import cpu_target

    from fastbackprop.kernels.simd import Simd

    context, element = cpu_target.target_context, numba.from_dtype(dtype)
    simd = Simd(context, None, element)  # type: ignore[no-untyped-call]
    return f"{simd.tile_rows} rows of {simd.tile_vectors} vectors, {simd.lanes} lanes of {8 * simd.itemsize} bits each"


def measure(layer_sizes: tuple[int, ...], dtype: DType, samples: int, num_threads: int) -> dict[str, float]:
    """The seconds of each part of one gradient.

    Three calls are timed in turns, and the shortest time of each counts: checking the arguments, the prediction, and
    the engine's gradient. The way back is the gradient without the prediction, so it is exact only as far as a product
    takes as long in one call as in the next.
    """
    rng = np.random.default_rng(0)
    sizes, engine = layer_sizes, new_engine(layer_sizes, dtype)
    weights, biases = unpack(np.zeros(parameter_count(sizes), dtype), sizes)
    for array in weights:
        array[:] = rng.standard_normal(array.shape) * np.sqrt(2 / array.shape[1])
    net_input, y = (rng.standard_normal((units, samples), np.float32).astype(dtype) for units in (sizes[0], sizes[-1]))

    def checked() -> Batch:
        batch = Batch(net_input, weights, biases, sizes, dtype)
        batch.set_options(dtype, num_threads=num_threads)
        batch.set_loss(y, "least_squares", "sum", None)
        return batch

    batch = checked()
    calls: list[Callable[[], Any]] = [checked, lambda: engine.predict(batch), lambda: engine.differentiate(batch)]
    times: Array = np.min([[seconds(call) for call in calls] for _ in range(ROUNDS)], axis=0)
    arguments, forward, gradient = times.tolist()
    return dict(zip(PARTS, (arguments, forward, max(gradient - forward, 0.0)), strict=True))


def seconds(call: Callable[[], Any]) -> float:
    """The time of a call, after one that warms the caches."""
    call()
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
