"""The one compilation policy: nopython, nogil but for what looks at objects, cached on disk where there is a place."""

import functools
import hashlib
from pathlib import Path

import numba
from numba.core.caching import FunctionCache
from numba.extending import register_jitable

inner = register_jitable(error_model="numpy", no_cfunc_wrapper=True)
"""For functions that entry points call. Never cached on their own: numba would not see an edit of theirs.

Nobody calls them from outside: what numba makes for that took the sweep half a second more to compile, of 4.9. As
dispatchers, they were compiled again for every constant they are called with, and ended the process where Python
called them.

Only for small ones: numba has LLVM optimise and translate each on its own, and then again within its callers. Kernels
are intrinsics (see simd.outlined) and entry points long functions for that reason, and arrays are copied element by
element: one assignment of a slice brings in 20 functions on strings, for an error's text. Written otherwise, the sweep
compiled in 11 to 13 s instead of 6, before loops were no longer unrolled.
"""


phase = numba.njit(inline="always", error_model="numpy", no_cfunc_wrapper=True)  # type: ignore[call-overload]
"""For the steps of a pass: numba puts their code in place of the call before it types anything, see passes.tile."""


@functools.cache
def source_digest():
    """A digest of all kernel sources.

    numba's cache looks at the file of the cached function alone: after an edit in another file, or an upgrade of
    the package, a cached caller would go on calling the old callee. Entry points therefore hold this digest in a
    closure cell, which is part of their cache key (a module global is not).
    """
    sources = sorted(Path(__file__).parent.parent.rglob("*.py"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()


def compile_entry(function, signature, *, nogil=True):
    """Compile `function` for one explicit signature, from the cache where possible; without nogil, it keeps the GIL.

    What is returned takes 0.25 to 0.4 us less than a dispatcher. It does not look at the dtype of an array (but for its
    size), its order or its alignment: these must be as the signature says.
    """
    options = {"nogil": nogil, "error_model": "numpy", "no_cfunc_wrapper": True}
    dispatcher = _cached(functools.partial(numba.njit, signature, **options), function)
    return dispatcher.get_overload(dispatcher.signatures[0])


def compile_callback(function, signature):
    """The same for a function of numbers and pointers that kernels call at its `address`."""
    return _cached(functools.partial(numba.cfunc, signature, nopython=True, error_model="numpy"), function)


def _cached(decorator, function):
    try:
        return decorator(cache=True)(function)
    except RuntimeError as error:
        if "no compiled object yet" in str(error):
            # Ctrl-C came while LLVM called back, from where nothing can be raised: numba finds that the call failed.
            raise KeyboardInterrupt from error
        # numba raises at decoration when none of its cache folders can be written.
        if "cannot cache function" not in str(error):
            raise
        return decorator()(function)


def cache_folder() -> str | None:
    """Where numba keeps compiled kernels, or None where it finds no place for them."""
    try:
        return str(FunctionCache(compile_entry).cache_path)
    except RuntimeError:
        return None
