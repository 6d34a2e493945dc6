"""Compiled code: register tiles, the products of a layer, operations on rows and columns, records, and compilation.

Importing this compiles nothing, and imports no numba.
"""

import contextlib
import functools
import importlib
import sys
import threading
import warnings

CACHE_LINE = 64


@functools.cache
def may_compile() -> bool:
    """Whether numba compiles. It does not with NUMBA_DISABLE_JIT=1, which debuggers and coverage need.

    The first call of a process asks this before anything imports numba.
    """
    import_numba()
    import numba

    is_disabled = bool(getattr(numba.config, "DISABLE_JIT", False))  # numba sets it at run time
    if is_disabled:
        warnings.warn(
            "NUMBA_DISABLE_JIT is set: the functions of fastbackprop run in plain NumPy (fastbackprop.reference), "
            "which is slower and takes memory for the whole batch",
            RuntimeWarning,
            stacklevel=2,
        )
    return not is_disabled


def import_numba() -> None:
    """Import numba on another thread, and wait for it.

    Python raises an interrupt on the main thread only. An interrupt in the middle of the import would leave modules
    with which numba cannot be imported again.
    """
    if "numba" in sys.modules or sys.is_finalizing():  # at exit, a new thread would never run
        return
    with contextlib.suppress(RuntimeError):  # no more threads can be started: the caller's import does it
        thread = threading.Thread(target=_import_quietly, name="fastbackprop import", daemon=True)
        thread.start()
        thread.join()


def _import_quietly() -> None:
    with contextlib.suppress(Exception):  # the caller's import raises it again
        importlib.import_module("numba")
