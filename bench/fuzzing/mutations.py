"""Ways to damage a file: bytes, values of JSON, headers of tensors, fields of ONNX; seeded, to be had again."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from edgetta.protobuf import write_bytes, write_number

NUMBERS: tuple[Any, ...] = (0, -1, 1, 2, 255, 1 << 16, 1 << 31, -(1 << 31), 1 << 62, 1 << 70, 10**30, 0.5, -0.0, 1e300)
ODD: tuple[Any, ...] = (None, True, "", "x" * 300, "\x1b[2J", "../../etc/passwd", [], {}, [[]], "batch", *NUMBERS)


def mutated(data: bytes, kind: str, random: random.Random, others: list[bytes]) -> bytes:
    """A damaged copy.

    kind     "json", "tensors", "onnx" or "bytes": what the file is, for damage that gets past its first check
    others   files of other kinds, of which pieces may be put in
    """
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        if kind == "json" and random.random() < 0.85:
            data = mutated_json(data, random)
        elif kind == "tensors" and random.random() < 0.7:
            data = mutated_header(data, random)
        elif kind == "onnx" and random.random() < 0.4:
            data = mutated_fields(data, random)
        else:
            data = mutated_bytes(data, random, others)
    return data


def mutated_bytes(data: bytes, random: random.Random, others: list[bytes]) -> bytes:
    """Bits flipped; bytes set, cut, repeated, or taken from another file."""
    changed = bytearray(data)
    if not changed:
        return bytes(random.randrange(256) for _ in range(random.randrange(64)))
    at = random.randrange(len(changed))
    what = random.randrange(7)
    if what == 0:
        changed[at] ^= 1 << random.randrange(8)
    elif what == 1:
        changed[at] = random.choice((0, 1, 127, 128, 255))
    elif what == 2:
        del changed[at : at + random.choice((1, 2, 8, 100, len(changed)))]
    elif what == 3:
        changed[at:at] = changed[at : at + random.choice((1, 8, 64))] * random.choice((1, 2, 50))
    elif what == 4:
        other = random.choice(others)
        start = random.randrange(len(other) + 1)
        piece = other[start : start + random.choice((4, 64, 1000))]
        changed[at : at + len(piece)] = piece
    elif what == 5:
        changed[at : at + 8] = random.choice((0, 1 << 31, 1 << 62, (1 << 64) - 1)).to_bytes(8, "little")
    else:
        changed += bytes(random.randrange(256) for _ in range(random.choice((1, 16, 300))))
    return bytes(changed)


def mutated_json(data: bytes, random: random.Random) -> bytes:
    """A value somewhere in it replaced, removed, repeated, or exchanged with another."""
    try:
        value = json.loads(data)
    except ValueError:
        return data
    places: list[tuple[Any, Any]] = []
    _places(value, places)
    if not places:
        return json.dumps(random.choice(ODD)).encode()
    holder, key = random.choice(places)
    what = random.randrange(6)
    if what == 0:
        holder[key] = random.choice(ODD)
    elif what == 1 and isinstance(holder[key], int | float):
        holder[key] = random.choice(NUMBERS)
    elif what == 2:
        del holder[key]
    elif what == 3 and isinstance(holder, list):
        holder.extend([holder[key]] * random.choice((1, 3, 1000)))
    elif what == 4:
        other, place = random.choice(places)
        copy = json.loads(json.dumps(other[place]))
        holder[key] = copy
    elif isinstance(holder, dict):
        holder[random.choice(("more", "shape", "nodes", "x", "\x1b"))] = holder.pop(key)
    else:
        random.shuffle(holder)
    return json.dumps(value).encode()


def mutated_header(data: bytes, random: random.Random) -> bytes:
    """A safetensors file whose header was changed, its length put right."""
    size = int.from_bytes(data[:8], "little")
    if size > len(data):
        return data
    header = mutated_json(data[8 : 8 + size], random)
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def mutated_fields(data: bytes, random: random.Random) -> bytes:
    """An ONNX file with one more field in its model: of any number, so that some of them count."""
    number = random.choice((1, 2, 5, 7, 8, 11, 12, 13, 14, 20, 25, 999))
    makers: tuple[Callable[[], bytes], ...] = (
        lambda: write_number(number, random.choice((0, 1, 17, 1 << 31, (1 << 63) - 1, -1))),
        lambda: write_bytes(number, bytes(random.randrange(256) for _ in range(random.randrange(40)))),
        lambda: write_bytes(7, write_bytes(random.choice((1, 5, 11, 12, 15)), data[: random.randrange(200)])),
        lambda: b"\x30\x00" * random.choice((1, 1000, 100_000)),
    )
    field = random.choice(makers)()
    return data + field if random.random() < 0.5 else field + data


def _places(value: Any, found: list[tuple[Any, Any]]) -> None:
    """Every place in a value from JSON at which something stands."""
    waiting = [value]
    while waiting:
        holder = waiting.pop()
        keys = range(len(holder)) if isinstance(holder, list) else list(holder) if isinstance(holder, dict) else ()
        for key in keys:
            found.append((holder, key))
            waiting.append(holder[key])
