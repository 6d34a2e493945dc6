"""Half the squared error: l = 0.5 sum_i (o_i - y_i)^2, dl/do_i = o_i - y_i."""

from fastbackprop.arguments.checks import check_target
from fastbackprop.losses.least_squares import squared_error

__all__ = ["check_target", "tile_loss"]


def tile_loss(losses, rows, stride, units, target_rows, count, scale):
    """See fastbackprop.losses."""
    squared_error(losses, rows, stride, units, count, 0.5, scale)
