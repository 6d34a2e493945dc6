"""What each sample says: clipped sums, norms, squares and gradients, beside the plain gradient and other libraries.

    python -m benchmarks.per_sample [--case 16,64,4,4,1024 ...] [--dtype float32] [--startup] [--json FILE]

All calls take turns, round by round, with pauses until other threads sleep. For each case and dtype it prints the
median time of each, over that of another: of the plain gradient of this package; for the gradients of each sample, of
NumPy's fill of the same arrays with a constant; for other libraries, of this package's clipped sums. Theirs are
compared to these before anything is timed. Half of the samples are clipped.

The other libraries are NumPy with the formula of the norms, `vmap(grad)` of PyTorch and of JAX, and the ghost clipping
of Opacus. vmap(grad) takes the whole batch where its gradients have no more than a gigabyte; and pieces that stay in a
cache, whose clipped sums are added up. Libraries that are not installed are left out. NumPy and JAX take all processors
of the process: run it on as many as --threads.

Then it prints how much the memory of a process grows in a call of 10^6 samples, beyond what it returns. --startup
measures first calls too, with a cold and a warm cache.
"""

import argparse
import dataclasses
import functools
import importlib.util
import itertools
import statistics
import sys
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

import fastbackprop
from benchmarks import machine, memory, timing
from benchmarks.cases import DTYPES, PER_SAMPLE, Case, arguments
from benchmarks.compare import agrees, parse_cases, with_progress
from benchmarks.suite import startup
from fastbackprop import lean
from fastbackprop.parallel.cpus import available_threads

ROUNDS = 3  # at least
WARM = 5  # first calls with a warm cache
STORED_BYTES = 2**30
"""The most bytes of gradients of single samples that are kept: batches of more are taken in pieces."""

CACHED_BYTES = 2**24
"""The same for pieces that stay in a cache. Measured for 64-128x4-10 N=1024 in float32 on one processor: they took
74 ms instead of 195 for all samples at once with JAX, 109 instead of 159 with PyTorch."""

NAMES = {
    "gradient": "loss_and_gradients",
    "clipped": "clipped_gradients",
    "norms": "per_sample_gradient_norms",
    "squares": "squared_gradient_sums",
    "gradients": "per_sample_gradients",
}
SUMS = ["clipped", "norms", "squares"]
"""The calls whose memory does not grow with the batch."""

LARGE = Case(8, 32, 1, 3, 1_000_000)


def stored_bytes(case, dtype):
    """The bytes of the gradients of all samples."""
    return case.samples * np.dtype(dtype).itemsize * sum((a + 1) * b for a, b in itertools.pairwise(case.layer_sizes))


def piece(case, dtype, most_bytes):
    """The most samples that divide the batch evenly, and whose gradients have no more bytes."""
    fitting = case.samples * most_bytes // stored_bytes(case, dtype)
    return max(n for n in range(1, min(max(fitting, 1), case.samples) + 1) if case.samples % n == 0)


def own_calls(case, dtype, data, max_norm, threads):
    """The calls of this package, by name, and NumPy's fill of the arrays that hold the gradients of each sample."""
    workspace = fastbackprop.Workspace(case.layer_sizes, dtype, num_threads=threads)
    net_input, all_weights, all_biases, y = data
    held = piece(case, dtype, STORED_BYTES)
    out = tuple([np.zeros((held, *array.shape), dtype) for array in part] for part in (all_weights, all_biases))
    slices = [slice(first, first + held) for first in range(0, case.samples, held)]

    def gradients():
        for part in slices:
            workspace.per_sample_gradients(net_input[:, part], all_weights, all_biases, y[:, part], out=out)

    def fill():
        for _ in slices:
            for array in (*out[0], *out[1]):
                array.fill(1.0)

    return {
        "gradient": functools.partial(workspace.loss_and_gradients, *data),
        "clipped": functools.partial(workspace.clipped_gradients, *data, max_norm),
        "norms": functools.partial(workspace.per_sample_gradient_norms, *data),
        "squares": functools.partial(workspace.squared_gradient_sums, *data),
        "gradients": gradients,
        "fill": fill,
    }


def numpy_clipped(case, dtype, data, max_norm, _threads):
    """One forward and one backward pass, norms by their formula, one set of weight gradients; all in place."""
    net_input, all_weights, all_biases, y = data
    kept, *_ = lean.buffers(case.layer_sizes, case.samples, dtype)
    all_dl_df, positive = [np.empty_like(h) for h in kept], [np.empty(h.shape, bool) for h in kept]
    gradients = [np.empty_like(w) for w in all_weights], [np.empty_like(b) for b in all_biases]

    def clipped():
        all_h = [net_input, *lean.activations(net_input, all_weights, all_biases, kept)]
        np.subtract(all_h[-1], y, out=all_dl_df[-1])
        all_dl_df[-1] *= 2
        for k in range(case.hidden, 0, -1):
            np.matmul(all_weights[k].T, all_dl_df[k], out=all_dl_df[k - 1])
            all_dl_df[k - 1] *= np.greater(all_h[k], 0, out=positive[k - 1])
        squares = np.zeros(case.samples, dtype)
        for h, dl_df in zip(all_h[:-1], all_dl_df, strict=True):
            squares += np.einsum("ij,ij->j", dl_df, dl_df) * (np.einsum("ij,ij->j", h, h) + 1)
        factors = np.minimum(1, max_norm / np.sqrt(squares))
        for k, dl_df in enumerate(all_dl_df):
            dl_df *= factors
            np.matmul(dl_df, all_h[k].T, out=gradients[0][k])
            np.sum(dl_df, axis=1, keepdims=True, out=gradients[1][k])
        return gradients

    return clipped


def torch_clipped(case, dtype, data, max_norm, threads, most_bytes=STORED_BYTES):
    import torch

    torch.set_num_threads(threads)
    net_input, all_weights, all_biases, y = data
    x, target = (torch.from_numpy(np.ascontiguousarray(array.T)) for array in (net_input, y))
    parameters = [torch.from_numpy(array) for array in all_weights], [torch.from_numpy(b.ravel()) for b in all_biases]

    def loss(weights, biases, h, target):
        for layer_weights, layer_biases in zip(weights[:-1], biases[:-1], strict=True):
            h = torch.relu(torch.nn.functional.linear(h, layer_weights, layer_biases))
        return ((torch.nn.functional.linear(h, weights[-1], biases[-1]) - target) ** 2).sum()

    each = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1)), in_dims=(None, None, 0, 0))

    def clipped(rows, targets):
        gradients = [gradient for part in each(*parameters, rows, targets) for gradient in part]
        norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients]).norm(dim=0)
        factors = (max_norm / norms).clamp(max=1)
        return [torch.tensordot(factors, gradient, 1) for gradient in gradients]

    return _in_pieces(clipped, x, target, piece(case, dtype, most_bytes), len(all_weights))


def jax_clipped(case, dtype, data, max_norm, _threads, most_bytes=STORED_BYTES):
    import jax
    from jax import numpy as jnp

    jax.config.update("jax_enable_x64", True)
    net_input, all_weights, all_biases, y = data
    parameters = jax.device_put((list(all_weights), [b.ravel() for b in all_biases]))
    x, target = (jax.device_put(np.ascontiguousarray(array.T)) for array in (net_input, y))

    def loss(weights, biases, h, target):
        for layer_weights, layer_biases in zip(weights[:-1], biases[:-1], strict=True):
            h = jax.nn.relu(layer_weights @ h + layer_biases)
        return ((weights[-1] @ h + biases[-1] - target) ** 2).sum()

    each = jax.vmap(jax.grad(loss, argnums=(0, 1)), in_axes=(None, None, 0, 0))

    @jax.jit
    def clipped(rows, targets):
        gradients = [gradient for part in each(*parameters, rows, targets) for gradient in part]
        squares = sum(jnp.sum(gradient**2, axis=range(1, gradient.ndim)) for gradient in gradients)
        factors = jnp.minimum(1, max_norm / jnp.sqrt(squares))
        return [jnp.tensordot(factors, gradient, 1) for gradient in gradients]

    call = _in_pieces(clipped, x, target, piece(case, dtype, most_bytes), len(all_weights))
    return lambda: jax.block_until_ready(call())


def _in_pieces(clipped, x, target, samples, layers):
    """The call that adds up the clipped sums of pieces of the batch, and gives weights and biases apart."""

    def call():
        total = None
        for first in range(0, len(x), samples):
            found = clipped(x[first : first + samples], target[first : first + samples])
            total = found if total is None else [a + b for a, b in zip(total, found, strict=True)]
        return total[:layers], total[layers:]

    return call


def opacus_clipped(_case, dtype, data, max_norm, threads):
    """Ghost clipping: a backward pass for the norms, and a second one of the losses times the factors."""
    import torch
    from opacus.grad_sample import GradSampleModuleFastGradientClipping

    torch.set_num_threads(threads)
    net_input, all_weights, all_biases, y = data
    x, target = (torch.from_numpy(np.ascontiguousarray(array.T)) for array in (net_input, y))
    layers = []
    for weights, biases in zip(all_weights, all_biases, strict=True):
        layers += [torch.nn.Linear(*weights.shape[::-1], dtype=getattr(torch, dtype)), torch.nn.ReLU()]
        layers[-2].load_state_dict({"weight": torch.from_numpy(weights), "bias": torch.from_numpy(biases.ravel())})
    module = GradSampleModuleFastGradientClipping(
        torch.nn.Sequential(*layers[:-1]), loss_reduction="sum", max_grad_norm=max_norm
    )
    parameters = list(module.parameters())

    def clipped():
        module.zero_grad()
        losses = ((module(x) - target) ** 2).sum(dim=1)
        losses.sum().backward(retain_graph=True)
        module.zero_grad()
        module.disable_hooks()
        (module.get_clipping_coef() * losses).sum().backward()
        module.enable_hooks()
        found = [parameter.grad.numpy() for parameter in parameters]
        return found[::2], found[1::2]

    return clipped


PEERS = {
    "NumPy": ("numpy", numpy_clipped),
    "PyTorch": ("torch", torch_clipped),
    "PyTorch in pieces": ("torch", functools.partial(torch_clipped, most_bytes=CACHED_BYTES)),
    "JAX": ("jax", jax_clipped),
    "JAX in pieces": ("jax", functools.partial(jax_clipped, most_bytes=CACHED_BYTES)),
    "Opacus": ("opacus", opacus_clipped),
}
"""What has to be installed, and how the call is made that returns clipped sums, of weights and of biases."""

AT_ONCE = ["PyTorch", "JAX"]
"""Those that hold the gradients of all samples."""


def installed():
    """The names of those that can be imported here."""
    return [name for name, (module, _) in PEERS.items() if importlib.util.find_spec(module)]


def checked_calls(case, dtype, names, threads):
    """All calls that are timed, those of other libraries compared to this package's."""
    data = arguments(case, dtype)
    max_norm = float(np.median(fastbackprop.per_sample_gradient_norms(*data)[1]))
    calls = own_calls(case, dtype, data, max_norm, threads)
    expected = calls["clipped"]()[1:3]
    for name in names:
        if name not in AT_ONCE or stored_bytes(case, dtype) <= STORED_BYTES:
            calls[name] = PEERS[name][1](case, dtype, data, max_norm, threads)
            if not agrees(calls[name](), expected, "float32"):  # Opacus adds 1e-6 to every norm
                raise SystemExit(f"{name} gives other clipped sums than this package for {case} in {dtype}")
    return calls


def measure(case, dtype, names, threads, seconds):
    """The median time of each call, and the quartiles."""
    calls = checked_calls(case, dtype, names, threads)
    times, end = {name: [] for name in calls}, time.perf_counter() + seconds
    while len(times["gradient"]) < ROUNDS or time.perf_counter() < end:
        for name, call in calls.items():
            times[name].append(timing.settled_turn(call))
    return {
        "case": dataclasses.astuple(case),
        "dtype": dtype,
        "rounds": len(times["gradient"]),
        "seconds": {name: np.median(found) for name, found in times.items()},
        "quartiles": {name: list(np.quantile(found, [0.25, 0.75])) for name, found in times.items()},
    }


def ratio(seconds, name):
    """The time of a call over that of what it is compared to."""
    other = {"gradients": "fill"}.get(name, "clipped" if name in PEERS else "gradient")
    return seconds[name] / seconds[other]


def grown(name, case, dtype, threads):
    """MB by which the peak memory of this process grows in a call, beyond the arrays that it returns."""
    workspace = fastbackprop.Workspace(case.layer_sizes, dtype, num_threads=threads)
    call, bound = getattr(workspace, NAMES[name]), [1.0] * (name == "clipped")
    call(*arguments(dataclasses.replace(case, samples=memory.FEW), dtype), *bound)
    data, found = arguments(case, dtype), []
    growth = memory.grown(lambda: found.extend(call(*data, *bound)))
    return growth - sum(array.nbytes for array in found if isinstance(array, np.ndarray)) / 2**20


def growths(case, dtype, threads):
    """The growth of each call whose memory is constant, measured in a process of its own."""
    if sys.platform == "win32":  # which does not tell
        return {}
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        return {name: pool.submit(grown, name, case, dtype, threads).result() for name in SUMS}


FIRST_CALL = """
import numpy, time, fastbackprop
sizes = (8, 32, 32, 32, 1)
weights = [numpy.ones((m, n), {dtype!r}) for n, m in zip(sizes[:-1], sizes[1:])]
biases = [numpy.ones((m, 1), {dtype!r}) for m in sizes[1:]]
x = numpy.ones((8, 1000), {dtype!r})
start = time.perf_counter()
fastbackprop.{name}(x, weights, biases, 0.0{bound})
print(time.perf_counter() - start)
"""


def first_calls(dtype):
    """The seconds of the first call of a process, by name: with nothing compiled, and the median with everything."""

    def first_call(name, folder):
        code = FIRST_CALL.format(dtype=dtype, name=NAMES[name], bound=", 1.0" * (name == "clipped"))
        return float(startup.run(code, Path(folder) / name))

    with tempfile.TemporaryDirectory() as folder:
        cold = {name: first_call(name, folder) for name in NAMES}
        warm = [{name: first_call(name, folder) for name in NAMES} for _ in range(WARM)]
    return {name: (cold[name], statistics.median(found[name] for found in warm)) for name in NAMES}


def show(found, threads):
    """Print what was measured of a case."""
    print(f"{Case(*found['case'])}, {found['dtype']}, {threads} threads, {found['rounds']} rounds")
    for name, seconds in found["seconds"].items():
        print(f"    {name:18} {1e3 * seconds:10.3f} ms  {ratio(found['seconds'], name):8.2f}", flush=True)


def main(arguments):
    """Print times, ratios and memory, and write a file of results where one is asked for."""
    warnings.filterwarnings("ignore", "Full backward hook is firing")  # those of Opacus, as it should be
    parser = argparse.ArgumentParser(prog="benchmarks.per_sample", description=__doc__.splitlines()[0])
    parser.add_argument("--case", type=parse_cases, nargs="+", action="extend", help="default: the document's")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument("--libraries", nargs="*", choices=installed(), default=installed())
    parser.add_argument("--threads", type=int, default=available_threads())
    parser.add_argument("--seconds", type=float, default=8.0, help="at least, for each case and dtype")
    parser.add_argument("--startup", action="store_true", help="measure first calls, too")
    parser.add_argument("--json", type=Path, help="write results to this file")
    options = parser.parse_args(arguments)
    cases = [case for group in options.case or [PER_SAMPLE] for case in group]
    results = []
    for case, dtype in with_progress([(case, dtype) for case in cases for dtype in options.dtype]):
        results.append(measure(case, dtype, options.libraries, options.threads, options.seconds))
        show(results[-1], options.threads)
    growth = {dtype: growths(LARGE, dtype, options.threads) for dtype in options.dtype}
    for dtype, found in growth.items():
        told = ", ".join(f"{name} {megabytes:.1f}" for name, megabytes in found.items())
        print(f"growth of memory of {LARGE} in {dtype}, MB: {told}", flush=True)
    for dtype in options.dtype if options.startup else []:
        told = ", ".join(f"{name} {cold:.2f} / {warm:.2f}" for name, (cold, warm) in first_calls(dtype).items())
        print(f"first call in {dtype}, seconds cold / warm: {told}", flush=True)
    if options.json:
        measured = {"threads": options.threads, "large": dataclasses.astuple(LARGE), "growth": growth}
        machine.save(options.json, ["benchmarks.per_sample", *arguments], results, **measured)


if __name__ == "__main__":
    main(sys.argv[1:])
