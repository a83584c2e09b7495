"""The bytes of a state: what goes in comes out, and what was damaged does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from edgetta.errors import BundleError
from edgetta.state_files.contents import FORMAT, Contents, StateError, decode, encode, read


def contents(seed: int = 0) -> Contents:
    generator = np.random.default_rng(seed)
    arrays = {
        "b": generator.normal(size=(3, 4)).astype(np.float32),
        "a.step": np.array(7, np.int64),
        "empty": np.zeros((0, 2), np.float32),
        "half": np.ones(3, np.float16),
        "flags": np.array([True, False]),
    }
    return Contents(arrays, {"bundle": "x" * 64, "counters": {"steps": 3}, "words": "ä"})


def test_there_and_back() -> None:
    original = contents()
    found = decode(encode(original))
    assert found.info == original.info and set(found.arrays) == set(original.arrays)
    for name, array in original.arrays.items():
        assert found.arrays[name].dtype == array.dtype and np.array_equal(found.arrays[name], array)
    assert encode(found) == encode(original) == encode(original, original.digest), "the same contents, the same bytes"
    assert contents(1).digest != original.digest


def test_every_flipped_bit_is_noticed() -> None:
    data = encode(contents())
    for at in range(0, len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 1 << at % 8
        try:
            found = decode(damaged)
        except StateError as error:
            assert "\n" not in str(error)
        else:  # only what no value depends on, such as a space in the header
            assert found.digest == contents().digest, at


def test_every_cut_is_noticed() -> None:
    data = encode(contents())
    for length in range(0, len(data), 7):
        with pytest.raises(StateError):
            decode(data[:length])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "cut short"),
        (save({"a": np.ones(1, np.float32)}), "no state of edgetta"),
        (save({"a": np.ones(1, np.float32)}, {FORMAT: "[]"}), "an older edgetta"),
        (save({"a": np.ones(1, np.float32)}, {FORMAT: '{"version": 1}'}), "an older edgetta"),
        (save({"a": np.ones(1, np.float32)}, {FORMAT: '{"version": 99}'}), "a newer edgetta"),
        (save({"a": np.ones(1, np.float32)}, {FORMAT: '{"version": 2, "info": 3}'}), "lacks its facts"),
        (save({"a": np.ones(1, np.float32)}, {FORMAT: '{"version": 2, "info": {}}'}), "SHA-256 differs"),
    ],
)
def test_what_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(StateError, match=words):
        decode(data)


def test_what_values_mean_is_their_owners_to_judge() -> None:
    found = decode(encode(Contents({"a": np.array([np.inf, np.nan], np.float32)}, {})))
    assert np.isinf(found.arrays["a"][0]) and np.isnan(found.arrays["a"][1])


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="there is no state file"):
        read(tmp_path / "none")
    with pytest.raises(BundleError, match="not a file"):
        read(tmp_path)
