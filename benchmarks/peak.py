"""What this machine can do at best: fused multiply-adds that never leave the registers, and copies of large arrays.

Nothing of the package is used, so that these remain the same measures for every commit.
"""

import functools
import threading
import time

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.registry import cpu_target
from numba.extending import intrinsic

CHAINS = 12
"""Independent sums: enough to cover the latency of an FMA (4 cycles, 2 in each), few enough for 16 registers."""

BURST = 0.001  # seconds


def vector_bytes():
    """The widest vectors that the host's instruction set has."""
    features = cpu_target.target_context.codegen().magic_tuple()[2].split(",")
    return 64 if "+avx512f" in features else 32 if "+avx" in features else 16


@intrinsic
def _multiply_add(_typing_context, factor, iterations):
    """Sum of all lanes of CHAINS vectors after `iterations` steps of x = factor x + factor."""

    def generate(context, builder, _signature, arguments):
        lanes = 8 * vector_bytes() // factor.bitwidth
        element = context.get_value_type(factor)
        vector, index = ir.VectorType(element, lanes), ir.IntType(32)

        def function(name, *kinds):
            kind = ir.FunctionType(*kinds)
            return cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.v{lanes}f{factor.bitwidth}")

        # Fused where the target has it, a multiplication and an addition elsewhere.
        multiply_add = function("fmuladd", vector, [vector] * 3)
        total = function("vector.reduce.fadd", element, [element, vector])
        undefined = ir.Constant(vector, ir.Undefined)
        first = builder.insert_element(undefined, arguments[0], ir.Constant(index, 0))
        factors = builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(index, lanes), [0] * lanes))
        chains = [cgutils.alloca_once_value(builder, factors) for _ in range(CHAINS)]
        with cgutils.for_range(builder, arguments[1]):
            for chain in chains:
                builder.store(builder.call(multiply_add, [factors, builder.load(chain), factors]), chain)
        result = ir.Constant(element, 0.0)
        for chain in chains:
            result = builder.call(total, [result, builder.load(chain)])
        return result

    return factor(factor, types.intp), generate


@functools.cache
def _loop(dtype):
    @numba.njit([numba.from_dtype(np.dtype(dtype))(numba.from_dtype(np.dtype(dtype)), types.intp)], nogil=True)
    def loop(factor, iterations):
        return _multiply_add(factor, iterations)

    return loop


def flops(dtype, num_threads, seconds=0.02):
    """Floating-point operations per second of that many threads: the best of short bursts over about that many seconds.

    Bursts are short because what else runs on the machine leaves short times alone, rarely long ones.
    """
    loop, half = _loop(dtype), np.dtype(dtype).type(0.5)
    iterations = int(BURST * 4e9 / CHAINS * 2)
    operations = 2 * CHAINS * vector_bytes() // half.itemsize * iterations
    bursts = max(1, round(seconds / BURST))
    return num_threads * operations / _at_once([lambda: loop(half, iterations)] * num_threads, bursts)


def bandwidth(num_threads, megabytes=256):
    """Bytes per second that as many threads read and write, copying arrays larger than any cache."""
    pairs = [(np.ones(megabytes * 2**17), np.ones(megabytes * 2**17)) for _ in range(num_threads)]
    seconds = _at_once([functools.partial(np.copyto, *pair) for pair in pairs], 5)
    return 2 * sum(target.nbytes for target, _ in pairs) / seconds


def _at_once(calls, times):
    """The least seconds, of so many times, from the first start to the last end of calls that start together."""
    start = threading.Barrier(len(calls))
    spans = [[] for _ in calls]

    def run(call, found):
        for _ in range(times):
            start.wait()
            begin = time.perf_counter()
            call()
            found.append((begin, time.perf_counter()))

    workers = [threading.Thread(target=run, args=pair) for pair in list(zip(calls, spans, strict=True))[1:]]
    for worker in workers:
        worker.start()
    run(calls[0], spans[0])
    for worker in workers:
        worker.join()
    return min(max(end for _, end in burst) - min(begin for begin, _ in burst) for burst in zip(*spans, strict=True))
