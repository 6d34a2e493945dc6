"""The floating-point peak of this machine: fused multiply-adds that never leave the registers."""

import functools
import threading
import time

import numba
import numpy as np
from numba.core import types
from numba.extending import intrinsic

from fastbackprop.kernels.simd import Simd

CHAINS = 12
"""Independent sums: enough to cover the latency of an FMA (4 cycles, 2 in each), few enough for 16 registers."""


@intrinsic
def _multiply_add(_typing_context, factor, iterations):
    """Sum of CHAINS vectors after `iterations` steps of x = factor x + factor."""

    def generate(context, builder, signature, arguments):
        factor, iterations = arguments
        simd = Simd(context, builder, signature.args[0])
        factors = simd.splat(factor)
        chains = simd.variables(CHAINS, factors)
        with simd.loop(iterations):
            for chain in chains:
                builder.store(simd.fma(factors, builder.load(chain), factors), chain)
        total = builder.load(chains[0])
        for chain in chains[1:]:
            total = builder.fadd(total, builder.load(chain))
        return simd.sum(total)

    return factor(factor, types.intp), generate


@numba.njit(nogil=True)
def _loop(factor, iterations):
    return _multiply_add(factor, iterations)


@functools.cache
def flops_of_a_step(dtype):
    """The floating-point operations of one iteration."""
    from fastbackprop.kernels.simd import host_target

    return 2 * CHAINS * host_target()[0].vector_bytes // np.dtype(dtype).itemsize


def measure(dtype, num_threads, seconds=0.005):
    """Floating-point operations per second of that many threads, over about that many seconds."""
    half = np.dtype(dtype).type(0.5)
    _loop(half, 1)
    iterations = int(seconds * 4e9 / CHAINS * 2)
    start = threading.Barrier(num_threads)
    times = []

    def run():
        start.wait()
        begin = time.perf_counter()
        _loop(half, iterations)
        times.append((begin, time.perf_counter()))

    workers = [threading.Thread(target=run) for _ in range(num_threads - 1)]
    for worker in workers:
        worker.start()
    run()
    for worker in workers:
        worker.join()
    elapsed = max(end for _, end in times) - min(begin for begin, _ in times)
    return num_threads * iterations * flops_of_a_step(dtype) / elapsed
