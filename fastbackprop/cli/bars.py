"""Bars of text."""

import shutil
import sys
from collections.abc import Mapping


def bars(values: Mapping[str, float], room: int) -> dict[str, str]:
    """A bar for each name, on lines that begin with `room` characters; the longest bar has at most 60."""
    block = "█" if "utf" in (sys.stdout.encoding or "").lower() else "#"
    longest = max(min(shutil.get_terminal_size().columns - room, 60), 1)
    most = max(values.values()) or 1.0
    return {name: block * round(longest * value / most) for name, value in values.items()}
