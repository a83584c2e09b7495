"""JSON from files that somebody else may have written: bounded before it is parsed, and nothing that JSON is not.

A parser takes many times the memory of its text, and lists of empty lists take the most. So a text is refused by its
length, and by the number of its brackets and quotes, which are counted at the speed of memory.
"""

from __future__ import annotations

import json
import math
from typing import Any

MAX_BYTES = 8 << 20
MAX_BRACKETS = 400_000
MAX_QUOTES = 1_000_000
_LONGEST_NUMBER = 40


def parse_json(raw: bytes | bytearray | memoryview, largest: int = MAX_BYTES) -> Any:
    """The value that `raw` says, as UTF-8.

    Raises `ValueError` in one line: too long, too many parts, no JSON, a name that occurs twice in one object, NaN,
    infinities (1e999 is one), numbers of more than 40 digits, and nesting beyond what Python follows.
    """
    data = bytes(raw)
    if len(data) > largest:
        raise ValueError(f"it is larger than the {largest} bytes allowed")
    if data.count(b"[") + data.count(b"{") > MAX_BRACKETS or data.count(b'"') > MAX_QUOTES:
        raise ValueError("it has more parts than any file of edgetta")
    try:
        return json.loads(
            data.decode("utf-8"),
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_whole,
            object_pairs_hook=_unique,
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except ValueError as error:
        raise ValueError(str(error)[:120]) from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice in one object")
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not allowed")


def _whole(digits: str) -> int:
    if len(digits) > _LONGEST_NUMBER:
        raise ValueError(f"the number {digits[:20]}... is too long")
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:20]} is not a finite number")
    return value
