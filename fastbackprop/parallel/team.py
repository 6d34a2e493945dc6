"""Threads that share one call: a pass runs on several at once, each takes its share, and they wait for each other.

Waking a thread takes 40 us or more, as long as many calls. So a worker stays awake for a while after a call: it spins
in `serve_calls` and looks at a row of a table of int64, its box. Columns are a cache line wide:

    STATE   AWAY -> WAITING -> CALLED -> HERE -> GO -> WAITING -> AWAY, or CALLED -> WAITING if the call is taken back;
            written by compiled code alone
    THREAD  the worker's number in the call, and how many threads the call has
    RUN     the addresses of a pass, and of the record that is its argument; how the calling thread rounds
    LEAVE   not 0 if the worker is asked to leave

The calling thread calls the workers that are WAITING. A worker that answers is HERE. A worker that does not answer,
because the system has taken its processor away, is left out: the calling thread takes the call back. Only then the
number of threads is known: the results of a pass must not depend on it. From one thread to the other and back takes
about 0.3 us.

A state is stored after the columns that belong to it, and loaded before them (release and acquire). This orders all
other memory accesses.
"""

import ctypes
import functools
import os

import llvmlite.binding as llvm
from llvmlite import ir
from numba.core import cgutils, types

from fastbackprop.kernels.jit import compile_entry, phase
from fastbackprop.kernels.simd import INT, instructions
from fastbackprop.parallel.boxes import AWAY, BOX, CALLED, GO, HERE, LEAVE, LINE, RUN, STATE, THREAD, WAITING

LOOKS = 100
"""Smallest number of looks for a worker's answer. A look and a pause take 28 ns (Zen 5), an answer about 10 looks."""

SPINS = 2000
"""Number of looks, 60 us, after which a waiting thread yields its processor at each: another thread may need it."""

YIELD = "fastbackprop_yield"
_system = ctypes.CDLL(None).sched_yield if os.name == "posix" else ctypes.CDLL("kernel32").SwitchToThread
llvm.add_symbol(YIELD, ctypes.cast(_system, ctypes.c_void_p).value)

ARRIVED, PIECES, BLOCKS = range(3)
"""The counters that the threads of a call share, near the beginning of its record. Their cache lines hold nothing else.

They may be on one line or on two: NumPy aligns the record to 16 bytes."""

COUNTER_WORDS = 3 * LINE
"""Words of three cache lines: the counters are at the start of the second, and the others are padding."""

VOID = ir.VoidType()
CELL = types.CPointer(types.int64)
BOXES = types.Array(types.int64, 2, "C")


@instructions(CELL, BOXES, types.intp, types.intp)
def cell(context, builder, boxes, row, column):
    """A pointer to boxes[row, column]."""
    start = cgutils.create_struct_proxy(BOXES)(context, builder, boxes).data
    return builder.gep(start, [builder.add(builder.mul(row, INT(BOX)), column)])


@instructions(types.int64, CELL)
def load(context, builder, cell):
    """The value of a cell. Memory that was written before this value was stored can be read from then on."""
    return builder.load_atomic(cell, "acquire", 8)


@instructions(types.void, CELL, types.int64)
def store(context, builder, cell, value):
    """Write to a cell, after all earlier writes of this thread."""
    builder.store_atomic(value, cell, "release", 8)


@instructions(types.boolean, CELL, types.int64, types.int64)
def exchange(context, builder, cell, expected, value):
    """Write to a cell if it holds the expected value, in one atomic step; returns whether it did."""
    return builder.extract_value(builder.cmpxchg(cell, expected, value, "acq_rel", "acquire"), 1)


def emit_pause(context, builder):
    """A hint that this thread only waits: the other thread of its core may use the core's resources."""
    triple = context.codegen().magic_tuple()[0]
    if triple.startswith(("x86_64", "i686")):
        call_llvm(builder, "llvm.x86.sse2.pause")
    elif triple.startswith(("aarch64", "arm64")):
        call_llvm(builder, "llvm.aarch64.hint", ir.IntType(32)(1))


pause = instructions(types.void)(emit_pause)


@instructions(types.void, types.int64)
def wait_a_moment(context, builder, looks):
    """Pause, or yield the processor after SPINS looks. `looks` is the number of looks before.

    Another thread may need the processor, and this thread may wait for that thread.
    """
    with builder.if_else(builder.icmp_signed("<", looks, INT(SPINS))) as (soon, late):
        with soon:
            emit_pause(context, builder)
        with late:
            call_llvm(builder, YIELD, returns=ir.IntType(32))


def rounding_mode(context, builder):
    """The register that says how this thread rounds, and whether it flushes subnormal numbers to 0."""
    triple = context.codegen().magic_tuple()[0]
    if triple.startswith("x86_64"):
        word = cgutils.alloca_once(builder, ir.IntType(32))
        call_llvm(builder, "llvm.x86.sse.stmxcsr", builder.bitcast(word, ir.IntType(8).as_pointer()))
        return builder.zext(builder.load(word), INT)
    if triple.startswith(("aarch64", "arm64")):
        return call_llvm(builder, "llvm.aarch64.get.fpcr", returns=INT)
    return INT(0)


def set_rounding_mode(context, builder, value):
    """Write that register of this thread."""
    triple = context.codegen().magic_tuple()[0]
    if triple.startswith("x86_64"):
        word = cgutils.alloca_once_value(builder, builder.trunc(value, ir.IntType(32)))
        call_llvm(builder, "llvm.x86.sse.ldmxcsr", builder.bitcast(word, ir.IntType(8).as_pointer()))
    elif triple.startswith(("aarch64", "arm64")):
        call_llvm(builder, "llvm.aarch64.set.fpcr", value)


def call_llvm(builder, name, *arguments, returns=VOID):
    """Call an intrinsic function of LLVM."""
    kind = ir.FunctionType(returns, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


@instructions(CELL, None, types.int64)
def counter(context, builder, call, number):
    """A counter of a call; their cache lines hold nothing else."""
    place = builder.gep(call, [builder.mul(builder.add(number, INT(LINE)), INT(8))], source_etype=ir.IntType(8))
    return builder.bitcast(place, INT.as_pointer())


@instructions(types.int64, CELL)
def count_one(context, builder, cell):
    """Add 1 to a counter; returns its value before. A thread that reads the new value can read all earlier writes."""
    return builder.atomic_rmw("add", cell, INT(1), "acq_rel")


@phase
def claim(call, number):
    """The number of the next piece, or of the next block, for this thread: 0, 1, 2, ... among all threads."""
    return count_one(counter(call, number))


@phase
def wait(call, count):
    """Wait until that number of threads has arrived. A thread that waits long yields its processor."""
    looks = 0
    while load(counter(call, ARRIVED)) < count:
        looks += 1
        wait_a_moment(looks)


@phase
def meet(call, threads):
    """The barrier in the middle of a pass: every thread waits until all have arrived."""
    if threads > 1:
        count_one(counter(call, ARRIVED))
        wait(call, threads)


@phase
def finish(call, thread, threads, barriers):
    """The final barrier, after that number of others: only thread 0 waits. The others no longer touch the record."""
    if threads > 1:
        count_one(counter(call, ARRIVED))
        if thread == 0:
            wait(call, (barriers + 1) * threads)


@instructions(types.void, CELL, None, None)
def hand_over(context, builder, run, address, call):
    """Write the arguments of `run_posted` to three cells: the pass, the record, and how this thread rounds."""
    builder.store(address, builder.bitcast(run, address.type.as_pointer()))
    place = builder.bitcast(builder.gep(run, [INT(1)]), call.type.as_pointer())
    builder.store(call, place)
    builder.store(rounding_mode(context, builder), builder.gep(run, [INT(2)]))


@instructions(types.void, CELL, types.int64, types.int64)
def run_posted(context, builder, run, thread, threads):
    """Run the pass that was handed over, rounding as the calling thread does.

    The record is read as a pointer, not as an integer that is cast to one: see simd.
    """
    data = ir.IntType(8).as_pointer()
    kind = ir.FunctionType(VOID, [data, INT, INT])
    function = builder.load(builder.bitcast(run, kind.as_pointer().as_pointer()))
    call = builder.load(builder.bitcast(builder.gep(run, [INT(1)]), data.as_pointer()))
    set_rounding_mode(context, builder, builder.load(builder.gep(run, [INT(2)])))
    builder.call(function, [call, thread, threads])


@phase
def run(call, boxes, patience):
    """Run the pass of a call on this thread, and on all workers that answer; returns the number of threads.

    The thread waits for workers that are AWAY, for `patience` pauses in all: they may have been woken. A worker that
    was WAITING has LOOKS pauses to answer, and the rest of the patience.
    """
    for number in range(3):
        store(counter(call, number), 0)
    called = looks = 0
    for number in range(boxes.shape[0]):
        state = cell(boxes, number, STATE)
        while True:
            if exchange(state, WAITING, CALLED):
                called |= 1 << number
                break
            if looks >= patience or load(state) != AWAY:
                break
            looks += 1
            pause()
    threads = 1
    for number in range(boxes.shape[0]):
        if called >> number & 1:
            state = cell(boxes, number, STATE)
            own_looks = 0
            while load(state) == CALLED:
                if own_looks >= LOOKS and looks >= patience and exchange(state, CALLED, WAITING):
                    called ^= 1 << number
                    break
                own_looks += 1
                looks += 1
                pause()
            threads += called >> number & 1
    thread = 1
    for number in range(boxes.shape[0]):
        if called >> number & 1:
            boxes[number, THREAD], boxes[number, THREAD + 1] = thread, threads
            hand_over(cell(boxes, number, RUN), call.run, call)
            store(cell(boxes, number, STATE), GO)
            thread += 1
    call.run(call, 0, threads)
    return threads


@functools.cache
def serve():
    """serve_calls, compiled: the loop of an awake worker."""
    return compile_entry(serve_calls, types.void(BOXES, types.int64, types.int64))


def serve_calls(boxes, number, most_looks):
    """Run the calls posted to a box, until that number of looks finds none, or the worker is asked to leave."""
    state, leave = cell(boxes, number, STATE), cell(boxes, number, LEAVE)
    looks = 0
    is_open = exchange(state, AWAY, WAITING)  # else another worker is there already
    while is_open:
        now = load(state)
        if now == CALLED:
            exchange(state, CALLED, HERE)
            looks = 0
        elif now == GO:
            run_posted(cell(boxes, number, RUN), boxes[number, THREAD], boxes[number, THREAD + 1])
            store(state, WAITING)
            looks = 0
        elif now == WAITING and (looks > most_looks or load(leave) != 0):
            is_open = not exchange(state, WAITING, AWAY)
        looks += 1
        wait_a_moment(looks)
