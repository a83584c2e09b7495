"""Sizes as people write them."""

from __future__ import annotations

import pytest

from edgetta.errors import UsageError
from edgetta.memory.sizes import parse_size, size_text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("256MiB", 256 << 20),
        ("256 mib", 256 << 20),
        ("1.5GB", 1_500_000_000),
        ("1.5 GiB", 3 << 29),
        (".5kB", 500),
        ("64KiB", 65536),
        ("12 B", 12),
        ("4096", 4096),
        (4096, 4096),
    ],
)
def test_sizes(text: str | int, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "much", "256M", "MiB", "1e9", "-5MB", "5 MB 3", "0", "0.1B", "9" * 40, "1,5GB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match="256MiB") as error:
        parse_size(text)
    assert "\n" not in str(error.value) and len(str(error.value)) < 200


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (256 << 20, "256.0 MiB"), (3 << 29, "1.50 GiB")],
)
def test_sizes_for_people(count: int, expected: str) -> None:
    assert size_text(count) == expected
    assert not count or parse_size(expected) == count
