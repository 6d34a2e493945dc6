"""How functions are compiled: nopython, nogil except for readers of Python objects, cached on disk if possible."""

import contextlib
import functools
import hashlib
import logging
import pickle
import secrets
import sys
from dataclasses import dataclass
from typing import Any

import llvmlite
import numba
import numpy as np
from numba.core.registry import cpu_target

from fastbackprop.kernels import cache

phase = numba.njit(inline="always", error_model="numpy", no_cfunc_wrapper=True)  # type: ignore[call-overload]
"""For steps of a pass or of a loss: numba replaces the call by their code before it types anything.

A function that a pass calls would be optimised and translated by LLVM on its own, and again within its callers. So
kernels are intrinsics (see simd.kernel), and arrays are copied element by element: one assignment of a slice brings
in 20 functions on strings, for an error's text.
"""

SETTINGS = "OPT", "LOOP_VECTORIZE", "SLP_VECTORIZE", "BOUNDSCHECK", "DEBUGINFO_DEFAULT"
"""The settings of numba that change machine code. Users set NUMBA_OPT and so on."""


def compile_entry(function, signature, *, nogil=True):
    """Compile `function` for one explicit signature, from the cache if possible; without nogil, it keeps the GIL.

    A call of the result takes 0.25 to 0.4 us less than a call of a dispatcher. It checks the size of an array's dtype,
    but neither the dtype, nor the order, nor the alignment: they must match the signature.
    """
    options = {"nogil": nogil, "error_model": "numpy", "no_cfunc_wrapper": True}

    def make():
        dispatcher = numba.njit(signature, **options)(function)
        return dispatcher.overloads[dispatcher.signatures[0]]

    def dump(result):
        return _dump(result.library, result._reduce())

    def load(content):
        from numba.core.compiler import CompileResult

        result = CompileResult._rebuild(_target(), *_load(content))
        _address(result.library, result.fndesc.llvm_cpython_wrapper_name)
        return result

    return _fetch(function, (signature, options), make, dump, load).entry_point


@dataclass(frozen=True)
class Callback:
    """Machine code at an address, which is valid as long as its owner."""

    address: int
    owner: Any


def compile_callback(function, signature):
    """The same for a function of numbers and pointers that is called at its `address`."""
    options = {"nopython": True, "error_model": "numpy"}

    def make():
        callback = numba.cfunc(signature, **options)(function)
        return Callback(callback.address, callback)

    def dump(callback):
        library = callback.owner._library
        return _dump(library, (library.serialize_using_object_code(), callback.owner.native_name))

    def load(content):
        code, name = _load(content)
        library = _target().codegen().unserialize_library(code)
        return Callback(_address(library, name), library)

    return _fetch(function, (signature, options), make, dump, load)


def cache_folder() -> str | None:
    """The folder of compiled kernels, or None if there is no trusted folder and none can be made."""
    try:
        return str(cache.folder())
    except (OSError, RuntimeError):
        return None


def _fetch(function, parts, make, dump, load):
    """A kernel from the cache, or what `make` compiles.

    numba's own cache is not used: processes that compile both dtypes at once could exchange them there, a damaged file
    ended every later process, and edits in other files were not seen. This cache needs parts of numba that are not
    public. If they fail, the kernel is compiled without the cache.
    """

    def make_quietly():
        with _quiet(), _interruptible():
            return make()

    name, dump_alone = functools.partial(_name, function, parts), functools.partial(_alone, dump)
    return cache.fetch(name, make_quietly, dump_alone, functools.partial(_alone, load), _unique_names)


def _alone(call, argument):
    """Call while no other thread compiles: neither LLVM nor numba is made for two at once."""
    from numba.core.compiler_lock import global_compiler_lock

    with global_compiler_lock, _interruptible():
        return call(argument)


@contextlib.contextmanager
def _interruptible():
    """Raise Ctrl-C at the end if it came while LLVM called Python back: a callback cannot raise it.

    Only one thread at a time is in here, because the cache has a lock.
    """
    interrupts, hook = [], sys.unraisablehook

    def keep(unraisable):
        if isinstance(unraisable.exc_value, KeyboardInterrupt):
            interrupts.append(unraisable.exc_value)
        else:
            hook(unraisable)

    sys.unraisablehook = keep
    try:
        yield
    finally:
        sys.unraisablehook = hook
        if interrupts:
            raise interrupts[0]


@contextlib.contextmanager
def _quiet():
    """numba's loggers at WARNING, unless the user has set them: with a root logger at DEBUG, they write 27 MB."""
    logger = logging.getLogger("numba")
    level = logger.level
    logger.setLevel(level or logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _unique_names():
    """Unique symbols for all functions that are compiled.

    numba counts functions from 1 in each process, and distinguishes closures of one name by that number alone. Two
    processes can give two closures the same symbol. A third process that loads both runs one in place of the other.
    """
    from numba.core.bytecode import FunctionIdentity

    numbers = FunctionIdentity._unique_ids
    FunctionIdentity._unique_ids = iter(lambda: secrets.randbits(48), None)
    try:
        yield
    finally:
        FunctionIdentity._unique_ids = numbers


def _name(function, parts):
    """The name of a kernel's file: a hash of everything that its machine code depends on."""
    depends = [
        [str(part) for part in parts],
        _meaning(function),
        cache.source_digest(),
        cpu_target.target_context.codegen().magic_tuple(),
        [str(getattr(numba.config, setting, None)) for setting in SETTINGS],
        (sys.version, numba.__version__, llvmlite.__version__, np.__version__),
    ]
    return f"{function.__name__}-{hashlib.sha256(repr(depends).encode()).hexdigest()[:32]}.nbc"


def _meaning(value):
    """A function and the values in its closure, in words that are the same in every process."""
    function = getattr(value, "py_func", getattr(value, "__wrapped__", value))  # of a dispatcher, of an intrinsic
    if hasattr(function, "__code__"):
        held = function.__defaults__, [cell.cell_contents for cell in function.__closure__ or ()]
        return [function.__module__, function.__qualname__, function.__code__.co_firstlineno, _meaning(held)]
    if isinstance(value, (tuple, list)):
        return [_meaning(item) for item in value]
    if isinstance(value, (int, float, str, bytes, type, type(None), np.generic, np.dtype, numba.types.Type)):
        return [type(value).__name__, str(value)]
    raise TypeError(f"the closure of a kernel holds {value!r}, which has no meaning in another process")


def _target():
    """numba's target with its run-time functions: enough to load machine code.

    Types and functions for compilation are left out. They take 0.3 s, most of it for numba's import of SciPy.
    """
    from numba.core.runtime import rtsys

    rtsys.initialize(cpu_target.target_context)
    return cpu_target.target_context


def _dump(library, state):
    """A kernel's state and the names of all functions that its machine code calls, as bytes."""
    if library.has_dynamic_globals:
        raise ValueError("a kernel holds addresses, which are those of this process")
    called = [function.name for function in library._final_module.functions if function.is_declaration]
    return pickle.dumps(([name for name in called if not name.startswith("llvm.")], state))


def _load(content):
    """The state. After this call, LLVM finds all functions that it calls: it would call address 0 for an unknown
    one."""
    called, state = pickle.loads(content)
    if not all(map(llvmlite.binding.address_of_symbol, called)):
        cpu_target.target_context.refresh()
    return state


def _address(library, name):
    """The address of a function. An interrupt in a callback of LLVM may have left out the machine code."""
    address = library.get_pointer_to_function(name)
    if not address:
        raise RuntimeError(f"there is no machine code for {name}")
    return address
