"""The losses, one file each; the file's name is the loss's. A file has

    check_target(y, units, columns)     y as an array (D_o, N), or (1, N) class numbers, checked
    tile_loss                           value and derivative over one tile, which passes.entry compiles

tile_loss(losses, rows, stride, units, target_rows, count, scale) takes `count` samples of a tile, D_o = units. losses
points to doubles, rows to elements, scale is an element, the rest are integers. rows are those of the tile from the
first of the output on, `stride` elements apart, so rows[r * stride + s] is row r of sample s:

    output, then dl/df_K | target | sample weights w | three rows of workspace

It adds w times the loss of each sample to its entry of `losses`, in double precision, and writes scale w times the
derivative by the output in place of it; the target's and the last three rows may be overwritten. NaN and infinities go
where the formula takes them. Loops over the samples are innermost, and few rows are in each: above a few pairs of
them, LLVM no longer checks whether they overlap, and makes no vectors.

Importing this imports no loss: they import numba.
"""

import functools
import importlib
import pkgutil
from typing import Any

LOSSES = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name[0] != "_"))
"""The names of all losses; a file whose name begins with an underscore is none."""


@functools.cache
def find_loss(name: str) -> Any:
    """The module of a loss."""
    return importlib.import_module(f"{__name__}.{name}")
