"""Compiled code: see sweep (the fused path) and passes (the notebooks' two passes). Importing this compiles nothing."""

from numpy.typing import DTypeLike

from fastbackprop.validation import FLOATS, check_dtype

PREDICT, SEED, SQUARED_ERROR = range(3)
"""What a sweep does at the output: copy it out; take the target for dl/df_K; take dl/df_K from the loss."""


def warmup(dtype: DTypeLike | None = None) -> None:
    """Compile all kernels now, or load them from numba's cache, instead of at their first use.

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
    from fastbackprop.kernels import passes, sweep  # imports numba

    for known in wanted:
        for kernel in sweep.sweep, passes.forward_pass, passes.backward_pass:
            kernel(known)
