"""Safetensors, read into memory of our own: every array lies whole and alone, or nothing is read."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from edgetta.tensor_file import parse_tensors


def forged(header: Any, values: bytes = b"") -> bytes:
    """A file of that header; numbers behind it."""
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + values


def entry(kind: str = "F32", shape: Any = (1,), places: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": kind, "shape": list(shape), "data_offsets": list(places)}


def test_what_safetensors_writes_is_read() -> None:
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.array([1, -1], np.int8),
        "c": np.array(2.5, np.float32),
        "d": np.zeros((0, 3), np.float32),
    }
    data = bytearray(save(arrays, {"more": "text"}))
    found, texts = parse_tensors(data, ("F32", "I8"))
    assert texts == {"more": "text"} and set(found) == set(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype and np.array_equal(found[name], array)
    found["a"][0, 0] = 9  # the buffer is ours
    assert parse_tensors(data, ("F32", "I8"))[0]["a"][0, 0] == 9


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "cut short"),
        ((1 << 62).to_bytes(8, "little") + b"{}", "cut short"),
        (forged([]), "no safetensors file"),
        (forged({"a": entry()}), "does not lie"),
        (forged({"a": entry(shape=[1 << 40], places=[0, 1 << 42])}), "does not lie"),
        (forged({"a": entry(shape=[-1])}, b"1234"), "described wrongly"),
        (forged({"a": entry(shape=[True])}, b"1234"), "described wrongly"),
        (forged({"a": entry(shape=[1] * 9)}, b"1234"), "described wrongly"),
        (forged({"a": {"dtype": "F32"}}, b"1234"), "described wrongly"),
        (forged({"a": entry("F64", places=[0, 8])}, b"12345678"), "F64, not F32"),
        (forged({"a": entry("F9")}, b"1234"), "F9, not F32"),
        (forged({"a": entry(), "b": entry()}, b"1234"), "overlap"),
        (forged({"a": entry(), "b": entry(places=[8, 12])}, b"123456789abc"), "gap"),
        (forged({"a": entry()}, b"12345678"), "something behind"),
        (forged({"a": entry(), "__metadata__": {"a": 1}}, b"1234"), "no texts"),
    ],
)
def test_what_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        parse_tensors(data)
    assert "\n" not in str(error.value)
