"""Threads that share one call: a kernel runs on several at once, each does its share, and they wait for each other.

Waking a thread takes 40 us and more, as long as many a call. So workers that have just been needed stay awake for a
while: each spins in `serve` and looks at a row of a table of int64, its box. Columns are a cache line wide:

    STATE   AWAY -> WAITING -> CALLED -> HERE -> GO -> WAITING -> AWAY; written by kernels alone
    LANE    which lane it is, and of how many
    RUN     the addresses of a function, and of the record that is its argument
    LEAVE   other than 0 where the worker is asked not to wait any longer

The calling thread calls those that are WAITING. One that answers is HERE; one that does not, since the system has taken
its processor away, is let go. Only then is it known how many lanes there are: what a kernel computes must not depend on
it. From one to the other and back takes some 0.3 us.

States are stored after what belongs to them, and loaded before it (release and acquire), which orders all else.
"""

import functools

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from fastbackprop.kernels import AWAY, BOX, CALLED, GO, HERE, LANE, LEAVE, LINE, RUN, STATE, WAITING
from fastbackprop.kernels.jit import compile_entry, inner, source_digest
from fastbackprop.kernels.simd import INT

LOOKS = 100
"""How often to look for an answer at least: a look and a pause take 28 ns (Zen 5), an answer some 10 of them."""

CELL = types.CPointer(types.int64)
BOXES = types.Array(types.int64, 2, "C")


@intrinsic
def cell(typing_context, boxes, row, column):
    """A pointer to boxes[row, column]."""

    def generate(context, builder, signature, arguments):
        boxes, row, column = arguments
        start = cgutils.create_struct_proxy(signature.args[0])(context, builder, boxes).data
        return builder.gep(start, [builder.add(builder.mul(row, INT(BOX)), column)])

    return CELL(boxes, types.intp, types.intp), generate


@intrinsic
def load(typing_context, cell):
    """What stands in a cell; all that was written before it was stored there can be read from then on."""

    def generate(context, builder, signature, arguments):
        return builder.load_atomic(arguments[0], "acquire", 8)

    return types.int64(CELL), generate


@intrinsic
def store(typing_context, cell, value):
    """Have that stand in a cell, after all that was written before."""

    def generate(context, builder, signature, arguments):
        builder.store_atomic(arguments[1], arguments[0], "release", 8)
        return context.get_dummy_value()

    return types.void(CELL, types.int64), generate


@intrinsic
def exchange(typing_context, cell, expected, value):
    """Store a value where another one is expected, in one; whether it was there."""

    def generate(context, builder, signature, arguments):
        return builder.extract_value(builder.cmpxchg(*arguments, "acq_rel", "acquire"), 1)

    return types.boolean(CELL, types.int64, types.int64), generate


@intrinsic
def pause(typing_context):
    """Tell the processor that this thread only waits: the other thread of its core may have what it leaves."""

    def generate(context, builder, signature, arguments):
        triple, number = context.codegen().magic_tuple()[0], ir.IntType(32)
        if triple.startswith(("x86_64", "i686")):
            call_llvm(builder, "llvm.x86.sse2.pause")
        elif triple.startswith(("aarch64", "arm64")):
            call_llvm(builder, "llvm.aarch64.hint", number(1))
        return context.get_dummy_value()

    return types.void(), generate


def call_llvm(builder, name, *arguments):
    """Call an intrinsic function of LLVM that returns nothing."""
    kind = ir.FunctionType(ir.VoidType(), [argument.type for argument in arguments])
    builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


# A record is what a call's lanes share: two cells that count, with cache lines around them, and the call's arguments.


@intrinsic
def new_record(typing_context, arguments):
    """A record of a tuple of arguments, on the stack of the calling function: a pointer to elements of the first one.

    The record owns nothing: whoever calls keeps the arrays until all lanes have finished.
    """

    def generate(context, builder, signature, passed):
        (kind,), (values,) = signature.args, passed
        packed = cgutils.alloca_once(builder, record_type(context, kind))
        for number in range(2):
            builder.store(INT(0), cell_of(builder, packed, number))
        for k, part in enumerate(kind):
            if isinstance(part, types.Array):
                array = cgutils.create_struct_proxy(part)(context, builder, builder.extract_value(values, k))
                array.meminfo, array.parent = (ir.Constant(owner.type, None) for owner in (array.meminfo, array.parent))
                values = builder.insert_value(values, array._getvalue(), k)
        builder.store(values, builder.gep(packed, [ir.IntType(32)(k) for k in (0, 1)]))
        return builder.bitcast(packed, context.get_value_type(signature.return_type))

    return types.CPointer(arguments[0].dtype)(arguments), generate


def read_record(kind, record):
    """What an intrinsic returns that reads a tuple of that type out of a record."""

    def generate(context, builder, signature, arguments):
        packed = builder.bitcast(arguments[0], record_type(context, kind).as_pointer())
        return builder.load(builder.gep(packed, [ir.IntType(32)(k) for k in (0, 1)]))

    return kind(record), generate


def record_type(context, kind):
    """The LLVM type of a record of such a tuple."""
    return ir.LiteralStructType([ir.ArrayType(INT, 2 * LINE), context.get_value_type(kind)])


@intrinsic
def claim(typing_context, record):
    """The next number of those that the lanes share: 0, 1, 2, ..."""

    def generate(context, builder, signature, arguments):
        return builder.atomic_rmw("add", cell_of(builder, arguments[0], 1), INT(1), "acq_rel")

    return types.int64(record), generate


@intrinsic
def arrive(typing_context, record):
    """Count one more lane; all that it wrote can be read by those who see it counted."""

    def generate(context, builder, signature, arguments):
        builder.atomic_rmw("add", cell_of(builder, arguments[0], 0), INT(1), "acq_rel")
        return context.get_dummy_value()

    return types.void(record), generate


@intrinsic
def arrived(typing_context, record):
    """How many lanes have been counted."""

    def generate(context, builder, signature, arguments):
        return builder.load_atomic(cell_of(builder, arguments[0], 0), "acquire", 8)

    return types.int64(record), generate


def cell_of(builder, record, number):
    """A pointer to a cell of a record."""
    return builder.gep(builder.bitcast(record, INT.as_pointer()), [INT(LINE + number)])


@inner
def meet(record, lanes, before):
    """Go on when all lanes have come here. Returns how many have, at all meetings, where `before` had before this."""
    if lanes == 1:
        return before
    arrive(record)
    while arrived(record) < before + lanes:
        pause()
    return before + lanes


@inner
def part(record, lane, lanes, before):
    """The last meeting: lane 0 goes on when all have come. It takes the record with it, so the others do not wait."""
    if lanes > 1:
        arrive(record)
        while lane == 0 and arrived(record) < before + lanes:
            pause()


@intrinsic
def hand_over(typing_context, run, address, record):
    """Write what `call_posted` calls to two cells."""

    def generate(context, builder, signature, arguments):
        run, address, record = arguments
        builder.store(address, run)
        place = builder.bitcast(builder.gep(run, [INT(1)]), record.type.as_pointer())
        builder.store(record, place)
        return context.get_dummy_value()

    return types.void(CELL, types.int64, record), generate


@intrinsic
def call_posted(typing_context, run, lane, lanes):
    """Call what was handed over. Its record is read as a pointer, not as an integer that is cast to one: see simd."""

    def generate(context, builder, signature, arguments):
        run, *numbers = arguments
        data = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [data, INT, INT])
        function = builder.load(builder.bitcast(run, kind.as_pointer().as_pointer()))
        record = builder.load(builder.bitcast(builder.gep(run, [INT(1)]), data.as_pointer()))
        builder.call(function, [record, *numbers])
        return context.get_dummy_value()

    return types.void(CELL, types.int64, types.int64), generate


@intrinsic
def call_lane(typing_context, address, record, lane, lanes):
    """Call the function at that address."""

    def generate(context, builder, signature, arguments):
        address, *passed = arguments
        kind = ir.FunctionType(ir.VoidType(), [value.type for value in passed])
        builder.call(builder.inttoptr(address, kind.as_pointer()), passed)
        return context.get_dummy_value()

    return types.void(types.int64, record, types.int64, types.int64), generate


def entry(argument_types):
    """What runs a function on this thread, and on all workers that answer, compiled for such arguments of it.

    The function is called with (record, lane, lanes), where the record holds the arguments, and must not return before
    all lanes have met for the last time.
    """
    digest = source_digest()

    def enter(arguments, boxes, patience, address):
        """Run the function at that address; returns how many lanes there were.

        Workers that are AWAY are waited for, for that many pauses: they may have been sent for.
        """
        digest  # noqa: B018 - a closure cell, see source_digest
        record = new_record(arguments)
        called = 0
        for number in range(boxes.shape[0]):
            state = cell(boxes, number, STATE)
            while True:
                if exchange(state, WAITING, CALLED):
                    called |= 1 << number
                    break
                if patience <= 0 or load(state) != AWAY:
                    break
                patience -= 1
                pause()
        lanes = 1
        for number in range(boxes.shape[0]):
            if called >> number & 1:
                state = cell(boxes, number, STATE)
                looks = LOOKS + patience
                while load(state) == CALLED:
                    looks -= 1
                    if looks < 0 and exchange(state, CALLED, WAITING):
                        called ^= 1 << number
                        break
                    pause()
                lanes += called >> number & 1
        lane = 1
        for number in range(boxes.shape[0]):
            if called >> number & 1:
                boxes[number, LANE], boxes[number, LANE + 1] = lane, lanes
                hand_over(cell(boxes, number, RUN), address, record)
                store(cell(boxes, number, STATE), GO)
                lane += 1
        call_lane(address, record, 0, lanes)
        return lanes

    return compile_entry(enter, types.int64(types.Tuple(argument_types), BOXES, types.int64, types.int64))


@functools.cache
def serve():
    """What an awake worker does, compiled."""
    digest = source_digest()

    def serve_calls(boxes, number, pauses):
        """Do what is posted to a box, until there has been nothing for that many pauses, or one is asked to leave."""
        digest  # noqa: B018 - a closure cell, see source_digest
        state, leave = cell(boxes, number, STATE), cell(boxes, number, LEAVE)
        if not exchange(state, AWAY, WAITING):
            return  # another worker is there already
        left = pauses
        while True:
            now = load(state)
            if now == CALLED:
                exchange(state, CALLED, HERE)
            elif now == GO:
                call_posted(cell(boxes, number, RUN), boxes[number, LANE], boxes[number, LANE + 1])
                store(state, WAITING)
                left = pauses
            elif now == WAITING:
                left -= 1
                if (left < 0 or load(leave) != 0) and exchange(state, WAITING, AWAY):
                    return
            pause()

    return compile_entry(serve_calls, types.void(BOXES, types.int64, types.int64))
