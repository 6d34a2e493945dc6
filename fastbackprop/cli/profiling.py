"""How the gradient of a network is computed here, and where its time goes: so that a slow case can be understood."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from fastbackprop.arguments.batch import Batch
from fastbackprop.engine.engine import Engine
from fastbackprop.kernels import FEW, PREDICT
from fastbackprop.packing import unpack
from fastbackprop.engine.pool import make_engine
from fastbackprop.sweeps import Sweep, most_samples, shares
from fastbackprop.threads import lanes
from fastbackprop.arguments.checks import Array, DType
from fastbackprop.wide import WideEngine
from fastbackprop.workspace import Workspace

ROUNDS = 9


def report(layer_sizes: tuple[int, ...], dtype: DType, samples: int, num_threads: int) -> str:
    """What an engine does with a batch of that many samples, and the share of each of its products."""
    engine = make_engine(layer_sizes, dtype)
    times = measure(engine, samples, num_threads)
    whole = sum(times.values())
    lines = [f"{name:15} {value}" for name, value in describe(engine, samples, num_threads).items()]
    lines += ["", f"A gradient of the least-squares loss takes {1e3 * whole:.3f} ms; by differences of calls, of that"]
    for name, part in times.items():
        lines.append(f"{name:15} {1e3 * part:10.3f} ms  {part / whole:6.1%}  {PARTS[name]}")
    return "\n".join(lines)


def describe(engine: Engine, samples: int, num_threads: int) -> dict[str, str]:
    """The regime, and how the batch is cut: read from the engine."""
    size = engine.tile_rows * engine.tile_samples * engine.dtype.itemsize / 1024
    rows = {
        "network": f"{'-'.join(map(str, engine.layer_sizes))}, {engine.size:,} parameters, {engine.dtype}",
        "samples": f"{samples:,}",
    }
    if 0 < samples <= FEW:
        return rows | {
            "regime": f"few samples (up to {FEW}): vector lanes along the units",
            "threads": f"1 of {num_threads}",
        }
    rows |= {
        "register tile": register_tile(engine.dtype),
        "tile": f"{engine.tile_rows:,} rows of {engine.tile_samples} samples, {size:,.0f} KB",
    }
    if isinstance(engine, WideEngine):
        groups = engine.groups(samples)
        tiles = max((-(-(last - first) // engine.tile_samples) for first, last in groups), default=0)
        return rows | {
            "regime": "groups: threads share tiles, then blocks of one gradient",
            "groups": f"{len(groups):,} of up to {tiles:,} tiles",
            "threads": f"{num_threads} share {tiles:,} tiles, then {len(engine._tasks):,} gradient blocks",
        }
    chunks = engine.chunks(samples)
    if len(chunks) == 1:
        sharing = lanes(num_threads, shares(engine, samples, 1))
        return rows | {
            "regime": "one chunk: a tile goes through the whole network while it is in cache",
            "threads": f"{sharing} share each tile" if sharing > 1 else f"1 of {num_threads}",
        }
    longest = max((last - first for first, last in chunks), default=0)
    most = most_samples(engine, 0, 0, sums=True)
    slices = f", in slices of up to {most:,} samples" if most < longest else ""
    return rows | {
        "regime": "chunks: a tile goes through the whole network while it is in cache",
        "chunks": f"{len(chunks):,} of up to {longest:,} samples, summed apart",
        "threads": f"{min(num_threads, len(chunks)):,} share the chunks{slices}",
    }


def register_tile(dtype: DType) -> str:
    """The largest register tile of the products, and the vectors that it is made of."""
    import numba
    from numba.core.registry import cpu_target

    from fastbackprop.kernels.microkernels import HEIGHT
    from fastbackprop.kernels.simd import Simd

    context, element = cpu_target.target_context, numba.from_dtype(dtype)
    simd = Simd(context, None, element)  # type: ignore[no-untyped-call]
    return f"{HEIGHT} rows of {simd.tile_vectors} vectors, {simd.lanes} lanes of {8 * simd.itemsize} bits each"


PARTS = {
    "forward": "the output: copying the input, a product and a ReLU for each layer",
    "backward": "the loss, and the products that carry its derivative back to the first layer",
    "weight gradient": "the products for the weights, and adding up what was summed apart",
    "way back": "the loss, and the products for the weights and back to the first layer",
    "rest": "checking the arguments",
}
"""The parts of a gradient's time, each measured as the difference between two calls."""


def measure(engine: Engine, samples: int, num_threads: int) -> dict[str, float]:
    """The seconds of each part of one gradient.

    Timed are, in turns: a sweep without a backward pass; one with it, but without weight gradients; the engine's
    gradient; the public call. The shortest time of each counts, and the parts are the differences, none below zero.
    They are exact only as far as a product takes as long in one call as in the next.
    """
    rng = np.random.default_rng(0)
    sizes, dtype = engine.layer_sizes, engine.dtype
    weights, biases = unpack(np.zeros(engine.size, dtype), sizes)
    for array in weights:
        array[:] = rng.standard_normal(array.shape) * np.sqrt(2 / array.shape[1])
    net_input, y = (rng.standard_normal((units, samples), np.float32).astype(dtype) for units in (sizes[0], sizes[-1]))
    workspace = Workspace(sizes, dtype, num_threads=num_threads)

    def batch() -> Batch:
        made = Batch(net_input, weights, biases, sizes, dtype)
        made.set_loss(y, "least_squares", "sum", None)
        made.set_options(dtype, num_threads=num_threads)
        return made

    gradient, output = batch(), batch()
    output.mode, output.target = PREDICT, np.empty_like(y)
    calls: dict[str, Callable[[], Any]] = {
        "forward": lambda: sweep_alone(engine, output, output.target),
        "backward": lambda: sweep_alone(engine, gradient, np.empty((sizes[0], 0), dtype)),
        "weight gradient": lambda: engine.differentiate(gradient),
        "rest": lambda: workspace.loss_and_gradients(net_input, weights, biases, y),
    }
    if samples <= FEW:  # here, one kernel takes both products of the way back
        calls = {
            "forward": lambda: engine.predict(output),
            "way back": calls["weight gradient"],
            "rest": calls["rest"],
        }
    shortest = np.min([[seconds(call) for call in calls.values()] for _ in range(ROUNDS)], axis=0)
    return dict(zip(calls, np.diff(np.maximum.accumulate(shortest), prepend=0.0).tolist(), strict=True))


def seconds(call: Callable[[], Any]) -> float:
    """The time of a call, after one that warms the caches."""
    call()
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def sweep_alone(engine: Engine, batch: Batch, columns_out: Array) -> None:
    """Sweep over all samples, without weight gradients: cut as for the gradient, or tile by tile of a wide one."""
    chunks = engine.chunks(batch.samples, sums=not isinstance(engine, WideEngine))
    sums = np.empty((len(chunks), engine.tile_samples))  # of the loss alone
    loaded = engine.load(batch) if batch.mode == PREDICT else engine.load_both_ways(batch)
    Sweep(engine, batch, columns_out, chunks, sums, loaded).run()
