"""JSON of strangers: bounded before it is parsed."""

from __future__ import annotations

import tracemalloc

import pytest

from edgetta.bounded_json import MAX_BRACKETS, parse_json


def test_what_edgetta_writes_is_read() -> None:
    assert parse_json(b'{"a": [1, -2.5, "\xc3\xa4", null, true], "b": {}}') == {
        "a": [1, -2.5, "ä", None, True],
        "b": {},
    }
    assert parse_json(bytearray(b"12345678901234567890")) == 12345678901234567890


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"{", "Expecting"),
        (b"\xff", "decode"),
        (b'{"a": 1, "a": 2}', "a name occurs twice"),
        (b"NaN", "NaN is not allowed"),
        (b"-Infinity", "-Infinity is not allowed"),
        (b"1e999", "1e999 is not a finite number"),
        (b"9" * 5000, "is too long"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (b"[" + b"[]," * MAX_BRACKETS + b"[]]", "more parts than any file"),
        (b"[" + b'"",' * 600_000 + b'""]', "more parts than any file"),
        (b" " * (9 << 20), "larger than the 8388608 bytes"),
    ],
)
def test_what_is_refused(raw: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        parse_json(raw)
    assert "\n" not in str(error.value)


def test_memory_is_bounded() -> None:
    """The costliest text that passes: objects of one name, as many as there may be."""
    raw = b"[" + b'{"a":0},' * (MAX_BRACKETS - 2) + b"{}]"
    tracemalloc.start()
    parse_json(raw)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200 << 20
