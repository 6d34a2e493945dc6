"""Vector instructions: the language of the micro-kernels.

LLVM's auto-vectoriser does not build register tiles (numba keeps the SLP vectoriser off), so the micro-kernels
write vector IR themselves, through a :class:`Simd`: a builder that knows its element type and its target's vectors.
Its width is read from the target inside code generation, never from a module global: the target is part of
the name of a kernel's file, a global is not, and a cache shared by two machines would return the wrong kernel.

Pointers are ``CPointer(element)``; offsets and strides are in bytes, so that one kernel serves every memory layout.
Addresses come from getelementptr on the array's data pointer: LLVM 22 miscompiles arithmetic on integers that are
cast to pointers.
"""

import contextlib
import functools
import inspect
from dataclasses import dataclass, replace

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from fastbackprop.kernels import CACHE_LINE

INT = ir.IntType(64)
BYTE = ir.IntType(8)
POINTER = ir.PointerType()


@dataclass(frozen=True)
class Target:
    """The properties of a processor that decide the shape of a register tile."""

    vector_bytes: int
    registers: int
    has_fma: bool


def read_target(triple: str, features: str) -> Target:
    """The widest vectors of an LLVM target, from its triple and feature string.

    NEON follows from the triple: aarch64 always has it and lists no feature for it.
    """
    enabled = set(features.split(","))
    if triple.startswith(("aarch64", "arm64")):
        return Target(vector_bytes=16, registers=32, has_fma=True)
    if "+avx512f" in enabled:
        return Target(vector_bytes=64, registers=32, has_fma=True)
    if "+avx" in enabled:
        return Target(vector_bytes=32, registers=16, has_fma="+fma" in enabled)
    return Target(vector_bytes=16, registers=16, has_fma="+fma" in enabled)


def host_target() -> tuple[Target, str, str]:
    """The target for which kernels are compiled here, its triple and the processor's name."""
    triple, cpu, features = cpu_target.target_context.codegen().magic_tuple()
    return read_target(triple, features), triple, cpu


class Simd:
    """An IR builder for vectors of one element type on one target.

    Loads and stores claim no alignment: a user's array may start at any byte. Tiles start at cache lines, so their
    loads are fast.

    The body of ``with simd.loop(...)`` and of ``for ... in simd.tiles(...)`` emits the instructions of a loop, or of a
    case: once for each shape that it can have. No ``break`` or ``continue`` may leave it.
    """

    def __init__(self, context, builder, element, target=None):
        triple, _, features = context.codegen().magic_tuple()
        self.target = target or read_target(triple, features)
        self.made_of = context, builder, element
        self.builder = builder
        self.itemsize = element.bitwidth // 8
        self.lanes = self.target.vector_bytes // self.itemsize
        self.element = context.get_value_type(element)
        self.vector = ir.VectorType(self.element, self.lanes)
        # The largest register tile fits the register file with its operands. With 32 registers, 6 rows instead of 4
        # took -1.5 to 2.5 % less time and 0.2 to 0.3 s more to compile; with 16, 4 rows instead of 6 took 3 to 18 %
        # longer.
        self.tile_rows, self.tile_vectors = (6, 4) if self.target.registers == 32 else (6, 2)
        self.zeros = ir.Constant(self.vector, [0.0] * self.lanes)
        self.lowest = self.constant(float("-inf"))
        self.false = ir.Constant(ir.IntType(1), 0)

    def scalar(self):
        """The same with vectors of one lane, for the elements of a row behind its last whole vector."""
        return self.of_bytes(self.itemsize)

    def of_bytes(self, vector_bytes):
        """The same with shorter vectors."""
        return Simd(*self.made_of, replace(self.target, vector_bytes=vector_bytes))

    def constant(self, value):
        return ir.Constant(self.element, value)

    def call(self, emit, *arguments):
        """Call the function of instructions that emit(simd, *arguments) writes."""
        arguments = [self.int(argument) for argument in arguments]
        kinds = [POINTER if argument.type.is_pointer else argument.type for argument in arguments]
        self.builder.call(self.function(emit, kinds), arguments)

    def function(self, emit, kinds):
        """The function of instructions that emit(simd, *arguments) writes, once in a module, for such arguments.

        A kernel that numba compiled as a function would be optimised and translated by LLVM on its own, and again
        within every caller, up to the entry point: that was half of the compile time.
        """
        context, builder, element = self.made_of
        name = f"{emit.__name__}.{element}"
        function = builder.module.globals.get(name)
        if function is None:
            function = ir.Function(builder.module, ir.FunctionType(ir.VoidType(), kinds), name)
            function.linkage = "internal"
            function.attributes.add("noinline")
            inside = ir.IRBuilder(function.append_basic_block("entry"))
            emit(Simd(context, inside, element), *function.args)
            inside.ret_void()
        return function

    def behind(self, pointer, *offsets):
        """The address that many bytes behind `pointer`."""
        return self.builder.gep(pointer, [self.add(*offsets)], source_etype=BYTE)

    def item(self, pointer, number):
        """The address of an element, by its number from `pointer` on."""
        return self.builder.gep(pointer, [number], source_etype=self.element)

    def load_item(self, pointer, number):
        return self.builder.load(self.item(pointer, number), typ=self.element, align=1)

    def widened(self, vector):
        """A vector of elements as doubles."""
        return vector if self.itemsize == 8 else self.builder.fpext(vector, ir.VectorType(ir.DoubleType(), self.lanes))

    def narrowed(self, doubles):
        """A vector of doubles as elements."""
        return doubles if self.itemsize == 8 else self.builder.fptrunc(doubles, self.vector)

    def int(self, value):
        return ir.Constant(INT, value) if isinstance(value, int) else value

    def add(self, *terms):
        """A sum of byte offsets."""
        total = self.int(terms[0])
        for term in terms[1:]:
            total = self.builder.add(total, self.int(term))
        return total

    def mul(self, left, right):
        return self.builder.mul(self.int(left), self.int(right))

    def load(self, pointer, offset):
        return self.builder.load(self.behind(pointer, offset), typ=self.vector, align=1)

    def store(self, value, pointer, offset):
        """Store a vector, or a scalar."""
        self.builder.store(value, self.behind(pointer, offset), align=1)

    def load_scalar(self, pointer, offset):
        return self.builder.load(self.behind(pointer, offset), typ=self.element, align=1)

    def prefetch(self, pointer):
        """Prefetch the cache line at an address, which may be any address: no memory is accessed."""
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [POINTER, number, number, number])
        function = cgutils.get_or_insert_function(self.builder.module, kind, "llvm.prefetch.p0")
        read, keep, data = (ir.Constant(number, value) for value in (0, 3, 1))
        self.builder.call(function, [pointer, read, keep, data])

    def prefetch_rows(self, pointer, stride, rows, samples):
        """The same for the cache lines of `rows` rows."""
        with self.loop(self.ceil_div(self.mul(samples, self.itemsize), CACHE_LINE)) as line:
            for row in range(rows):
                self.prefetch(self.behind(pointer, self.mul(row, stride), self.mul(line.index, CACHE_LINE)))

    def splat(self, scalar):
        undefined = ir.Constant(self.vector, ir.Undefined)
        first = self.builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
        return self.shuffle(first, undefined, [0] * self.lanes)

    def fma(self, a, b, c):
        """a * b + c, fused where the target has it: elsewhere LLVM would call a library function for each lane."""
        if not self.target.has_fma:
            return self.builder.fadd(self.builder.fmul(a, b), c)
        # llvmlite's VectorType has no intrinsic_name, so the overload is spelled out.
        name = f"llvm.fma.v{self.lanes}f{64 if isinstance(a.type.element, ir.DoubleType) else 32}"
        kind = ir.FunctionType(a.type, [a.type] * 3)
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, name), [a, b, c])

    def greater(self, left, right):
        """Lane by lane, false where either is NaN."""
        return self.builder.fcmp_ordered(">", left, right)

    def greatest(self, left, right):
        """Lane by lane; NaN if the right one is NaN."""
        return self.builder.select(self.greater(left, right), left, right)

    def sum(self, vector):
        """The sum of a vector's lanes, by halves: a fixed order, whatever the optimiser."""
        lanes = self.lanes
        while lanes > 1:
            lanes //= 2
            halves = [self.shuffle(vector, vector, list(range(start, start + lanes))) for start in (0, lanes)]
            vector = self.builder.fadd(*halves)
        return self.builder.extract_element(vector, ir.Constant(ir.IntType(32), 0))

    def transpose(self, vectors):
        """The columns of one vector for each lane, by exchanging ever larger halves between pairs of vectors."""
        width = 1
        while width < self.lanes:
            low = [k + (self.lanes - width if k & width else 0) for k in range(self.lanes)]
            high = [k + width for k in low]
            exchanged = list(vectors)
            for k in range(self.lanes):
                if not k & width:
                    pair = vectors[k], vectors[k + width]
                    exchanged[k], exchanged[k + width] = (self.shuffle(*pair, pick) for pick in (low, high))
            vectors = exchanged
            width *= 2
        return vectors

    def shuffle(self, left, right, pick):
        """The lanes `pick` of two vectors; the lanes of the right one are numbered behind those of the left one."""
        return self.builder.shuffle_vector(left, right, ir.Constant(ir.VectorType(ir.IntType(32), len(pick)), pick))

    def variables(self, count, value=None):
        """`count` vectors that change, and start at `value` if it is given; LLVM keeps them in registers."""
        slots = [cgutils.alloca_once(self.builder, self.vector) for _ in range(count)]
        for slot in slots if value is not None else []:
            self.builder.store(value, slot)
        return slots

    @contextlib.contextmanager
    def loop(self, count):
        """Run the code emitted in this context `count` times; yields the loop, with its index.

        A hint keeps LLVM from unrolling it: one step of a register tile has enough instructions. Unrolled by four, as
        LLVM would, kernels took a fifth longer to compile.
        """
        with cgutils.for_range(self.builder, count) as loop:
            yield loop
            last = self.builder.basic_block
        module = self.builder.module
        keep = module.add_metadata([ir.MetaDataString(module, "llvm.loop.unroll.disable")])
        # The name of a loop is a node that refers to itself first.
        name = ir.values.MDValue(module, [keep], str(len(module.metadata)))
        name.operands = name, keep
        last.terminator.set_metadata("llvm.loop", name)

    def range(self, total, step):
        """Run the code emitted for each `step` of `total`, the last of which may be short.

        ``for first, count in simd.range(total, step): <emit the code for [first, first + count)>``
        """
        with self.loop(self.ceil_div(total, step)) as part:
            first = self.mul(part.index, step)
            yield first, self.least(self.builder.sub(total, first), step)

    def parts(self, total, largest):
        """The same for the fewest parts of at most `largest`, whose lengths differ by at most one."""
        count = self.ceil_div(total, largest)
        with self.loop(count) as part:
            first, end = (
                self.builder.sdiv(self.mul(number, total), count) for number in (part.index, self.add(part.index, 1))
            )
            yield first, self.builder.sub(end, first)

    def ceil_div(self, total, size):
        """total / size, rounded up."""
        return self.builder.sdiv(self.add(total, self.int(size), -1), self.int(size))

    def least(self, left, right):
        """The lesser of two integers."""
        left, right = self.int(left), self.int(right)
        return self.builder.select(self.builder.icmp_signed("<", left, right), left, right)

    def tiles(self, total, largest):
        """Run the code emitted for each register tile of `total` rows, once for every height that one can have.

        ``for first, height in simd.tiles(total, largest): <emit the code for that many rows from the first on>``

        Heights differ by at most one: 8 rows are 4 + 4, not 6 + 2, as short tiles waste registers.
        """
        for first, rows in self.parts(total, largest):
            for height in self.cases(rows, range(1, largest + 1)):
                yield first, height

    def panels(self, count):
        """Run the code emitted for each part of a row of `count` vectors: whole panels, then a half one, then less.

        ``for vectors, offset in simd.panels(count): <emit the code for that many vectors at that byte offset>``

        Single vectors reach some 70 % of the peak in tiles of six rows: with up to three of them instead of a pair and
        one, gradients of networks of 24, 48 and 100 units took 6 to 15 % longer.
        """
        size = self.target.vector_bytes
        whole = self.builder.sdiv(count, self.int(self.tile_vectors))
        with self.loop(whole) as panel:
            yield self.tile_vectors, self.mul(panel.index, self.tile_vectors * size)
        done = self.mul(whole, self.tile_vectors)
        part = self.tile_vectors // 2
        while part > 0:
            left = self.builder.sub(count, done)
            fits = self.builder.sdiv(left, self.int(part))  # once or not at all
            with self.builder.if_then(self.builder.icmp_signed(">", fits, self.int(0))):
                yield part, self.mul(done, size)
            done = self.add(done, self.mul(fits, part))
            part //= 2

    def cases(self, selector, values):
        """Run the code emitted for the value of `selector`; none if it is not among `values`.

        ``for height in simd.cases(rows, range(1, 7)): <emit the code for this height>``
        """
        end = self.builder.append_basic_block("cases.end")
        switch = self.builder.switch(selector, end)
        for value in values:
            block = self.builder.append_basic_block(f"case.{value}")
            switch.add_case(ir.Constant(INT, value), block)
            self.builder.position_at_end(block)
            yield value
            self.builder.branch(end)
        self.builder.position_at_end(end)


def kernel(emit):
    """The intrinsic whose instructions emit(simd, *arguments) writes, in a function of their own: see Simd.function.

    Its arguments are pointers and integers. Vectors have the elements of the last pointer. It returns nothing.
    """

    @functools.wraps(emit)
    def define(typing_context, *kinds):
        *_, element = (kind.dtype for kind in kinds if isinstance(kind, types.CPointer))

        def generate(context, builder, signature, arguments):
            Simd(context, builder, element).call(emit, *arguments)
            return context.get_dummy_value()

        return types.void(*(kind if isinstance(kind, types.CPointer) else types.intp for kind in kinds)), generate

    return intrinsic(define)


def instructions(result, *kinds):
    """The intrinsic whose instructions emit(context, builder, *arguments) writes, in place of its call.

    result, kinds: the types of what it returns, and of its arguments; None stands for any type.
    """

    def decorate(emit):
        def define(typing_context, *given):
            def generate(context, builder, signature, arguments):
                value = emit(context, builder, *arguments)
                return context.get_dummy_value() if result == types.void else value

            return result(*[kind or own for kind, own in zip(kinds, given, strict=True)]), generate

        functools.update_wrapper(define, emit)
        signature = inspect.signature(emit)
        parameters = list(signature.parameters.values())[1:]  # numba ignores the first of the others
        define.__signature__ = signature.replace(parameters=parameters)
        return intrinsic(define)

    return decorate


@intrinsic
def pointer(typing_context, array):
    """The address of an array's first element."""

    def generate(context, builder, signature, arguments):
        return cgutils.create_struct_proxy(array)(context, builder, arguments[0]).data

    return types.CPointer(array.dtype)(array), generate


@intrinsic
def advance(typing_context, pointer, offset):
    """The address `offset` bytes behind `pointer`."""

    def generate(context, builder, signature, arguments):
        return builder.gep(arguments[0], [arguments[1]], source_etype=BYTE)

    return pointer(pointer, types.intp), generate


@intrinsic
def doubles(typing_context, pointer, offset):
    """The address `offset` bytes behind `pointer`, of doubles."""

    def generate(context, builder, signature, arguments):
        place = builder.gep(arguments[0], [arguments[1]], source_etype=BYTE)
        return builder.bitcast(place, ir.DoubleType().as_pointer())

    return types.CPointer(types.float64)(pointer, types.intp), generate
