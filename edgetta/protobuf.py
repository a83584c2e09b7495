"""Protocol Buffers on the wire: just enough to read and write ONNX files where there is no onnx package."""

from __future__ import annotations

import struct
from collections.abc import Iterator

_NOT_A_MESSAGE = "it is not an ONNX model"


def fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Field numbers and values of one message; raises `ValueError` when it is not one."""
    at = 0
    while at < len(data):
        key, at = read_varint(data, at)
        kind = key & 7
        if key >> 32:
            raise ValueError(_NOT_A_MESSAGE)
        if kind == 0:
            value, at = read_varint(data, at)
            yield key >> 3, value
            continue
        if kind == 2:
            length, at = read_varint(data, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(_NOT_A_MESSAGE)
        if at + length > len(data):
            raise ValueError("it is cut short")
        yield key >> 3, data[at : at + length]
        at += length


def message(value: int | memoryview | bytes) -> memoryview:
    """The value of a field that must be a message or text; raises `ValueError` for a number."""
    if isinstance(value, int):
        raise ValueError(_NOT_A_MESSAGE)
    return memoryview(value)


def number(value: int | memoryview | bytes) -> int:
    """The value of a field that must be a whole number, with its sign; raises `ValueError` for anything else."""
    if not isinstance(value, int):
        raise ValueError(_NOT_A_MESSAGE)
    return value - (1 << 64) if value >> 63 else value


def numbers(value: int | memoryview | bytes) -> list[int]:
    """One entry of a repeated field of whole numbers: a single one, or several that are packed."""
    if isinstance(value, int):
        return [number(value)]
    found, data, at = [], memoryview(value), 0
    while at < len(data):
        item, at = read_varint(data, at)
        found.append(number(item))
    return found


def read_varint(data: memoryview, at: int) -> tuple[int, int]:
    """The number at a place, and the place behind it; raises `ValueError` where it is cut short."""
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("it is cut short")
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


def write_varint(value: int) -> bytes:
    """The bytes of a whole number; negative ones take ten, as the format has it."""
    rest = value & ((1 << 64) - 1)
    out = bytearray()
    while rest > 127:
        out.append(rest & 127 | 128)
        rest >>= 7
    out.append(rest)
    return bytes(out)


def write_number(field: int, value: int) -> bytes:
    """A field that is a whole number."""
    return write_varint(field << 3) + write_varint(value)


def write_real(field: int, value: float) -> bytes:
    """A field that is a number in float32. Raises `ValueError` for one that is too large for it."""
    try:
        return write_varint(field << 3 | 5) + struct.pack("<f", value)
    except OverflowError as error:
        raise ValueError(f"{value} is no number of float32") from error


def write_bytes(field: int, value: bytes | memoryview | str) -> bytes:
    """A field that is text, raw bytes or a message."""
    data = value.encode() if isinstance(value, str) else value
    return write_varint(field << 3 | 2) + write_varint(len(data)) + bytes(data)
