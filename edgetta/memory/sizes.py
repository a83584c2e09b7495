"""Sizes of memory as people write them: "256MiB", "1.5 GB", or a number of bytes."""

from __future__ import annotations

import math
import re

from edgetta.errors import UsageError

UNITS = {
    "B": 1,
    "kB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
}

_SIZE = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z]*)\s*")
_BY_LETTERS = {unit.lower(): count for unit, count in UNITS.items()}


def parse_size(text: str | int) -> int:
    """Bytes of a size such as "256MiB", "1.5GB" or 268435456; MB counts by 1000, MiB by 1024.

    Raises:
        UsageError: no number with one of the units, or no byte at all.
    """
    found = _SIZE.fullmatch(str(text))
    factor = None if found is None else _BY_LETTERS.get(found[2].lower() or "b")
    if found is None or factor is None:
        raise UsageError(f"{str(text)[:40]!r} is no size; write a number with {', '.join(UNITS)}, such as 256MiB")
    count = math.floor(float(found[1]) * factor)
    if not 1 <= count < 1 << 62:
        raise UsageError(f"a size of {str(text)[:40]!r} cannot be; write one such as 256MiB")
    return count


def size_text(count: float) -> str:
    """Bytes as people read them, by 1024: 812 B, 3.4 KiB, 80.1 MiB."""
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"
