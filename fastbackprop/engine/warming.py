"""Compiling everything in advance."""

from __future__ import annotations

from numpy.typing import DTypeLike

from fastbackprop.arguments.addresses import reader
from fastbackprop.arguments.checks import FLOATS, check_dtype
from fastbackprop.engine.calls import compile_pass
from fastbackprop.engine.plan import COMPUTATIONS
from fastbackprop.kernels import may_compile
from fastbackprop.losses import LOSSES, find_loss


def warmup(dtype: DTypeLike | None = None) -> None:
    """Compile all kernels in advance, or load them from the cache on disk.

    Without this call, kernels are compiled at their first use.

    Parameters
    ----------
    dtype : {numpy.float32, numpy.float64}, optional
        The default is both.

    Raises
    ------
    TypeError
        ``dtype is float16; expected float32 or float64``

    Examples
    --------
    >>> import fastbackprop
    >>> fastbackprop.warmup()
    """
    wanted = FLOATS if dtype is None else (check_dtype(dtype),)
    if not may_compile():
        return
    from fastbackprop.kernels.products import GROUPS, addresses  # imports numba
    from fastbackprop.parallel.team import serve
    from fastbackprop.passes import entry

    reader()
    serve()
    for known in wanted:
        entry.entry(known)
        for group in GROUPS:
            addresses(known, group)
        for computation in COMPUTATIONS.values():
            for scheme, name in computation.passes.items():
                compile_pass(scheme, name, known)
        for name in (*LOSSES, "_seed"):
            entry.compiled(find_loss(name).tile_loss, known, "loss")
