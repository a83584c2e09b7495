"""The arrays of a `.safetensors` file, out of memory that nobody else can change.

A file that is mapped can be changed or cut short under a running process, which then computes with what is not its
own, or is killed. So files are read into a buffer first, checked there, and never looked at again.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import numpy as np

from edgetta.bounded_json import parse_json

KINDS: dict[str, Any] = {
    "F32": np.float32,
    "F64": np.float64,
    "F16": np.float16,
    "I8": np.int8,
    "I32": np.int32,
    "I64": np.int64,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
"""Types of elements, as the format names them."""

MAX_TENSORS = 50_000
MAX_RANK = 8


def parse_tensors(
    data: bytearray | bytes, kinds: Collection[str] = ("F32",)
) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, str]]:
    """Arrays by name, and the texts that the file holds beside them.

    data    the whole file; the arrays are views of it, and can be written to where it is a bytearray
    kinds   types that are allowed, of `KINDS`
    Raises `ValueError` in one line unless every array lies whole, alone and aligned in `data`, and nothing else does.
    """
    size = int.from_bytes(data[:8], "little")
    begin = 8 + size
    if len(data) < 8 or begin > len(data) or begin % 8:
        raise ValueError("it is no safetensors file, or is cut short")
    header = parse_json(memoryview(data)[8:begin])
    if not isinstance(header, dict) or len(header) > MAX_TENSORS:
        raise ValueError("it is no safetensors file, or holds too many tensors")
    texts = header.pop("__metadata__", {})
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise ValueError("its metadata are no texts")
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    places: list[tuple[int, int]] = []
    for name, entry in header.items():
        kind, shape, start, stop = _entry(name, entry)
        if kind not in kinds:
            raise ValueError(f"tensor {name[:60]!r} is {kind[:20]}, not {' or '.join(kinds)}")
        dtype = np.dtype(KINDS[kind]).newbyteorder("<")
        if stop - start != math.prod(shape) * dtype.itemsize or begin + stop > len(data) or start % dtype.itemsize:
            raise ValueError(f"tensor {name[:60]!r} does not lie where the file says")
        places.append((start, stop))
        arrays[name] = np.frombuffer(data, dtype, math.prod(shape), begin + start).reshape(shape)
    end = 0
    for start, stop in sorted(places):
        if start != end:
            raise ValueError("two of its tensors overlap, or there is a gap between them")
        end = stop
    if begin + end != len(data):
        raise ValueError("there is something behind its tensors, or it is cut short")
    return arrays, texts


def _entry(name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    """Type, shape, first byte and the byte behind the last."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {name[:60]!r} is described wrongly")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    lists = isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2 and len(shape) <= MAX_RANK
    numbers = [*shape, *offsets] if lists else []
    if not isinstance(kind, str) or not lists or any(type(n) is not int or not 0 <= n < 1 << 48 for n in numbers):
        raise ValueError(f"tensor {name[:60]!r} is described wrongly")
    return kind, tuple(shape), offsets[0], offsets[1]
