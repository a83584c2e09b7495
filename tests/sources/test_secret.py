"""Addresses with passwords: told apart, and read from a file that nobody else reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgetta.errors import UsageError
from edgetta.sources.secret import has_secret, public_name, read_source


@pytest.mark.parametrize(
    ("source", "secret"),
    [
        ("rtsp://viewer:word@cam/1", True),
        ("rtsp://viewer@cam/1", True),
        ("rtsp://viewer:wo/rd@cam/1", True),
        ("http://cam/live?token=abc", True),
        ("http://cam/live?apikey=abc", True),
        ("rtspsrc location=rtsp://cam user-id=a user-pw=b ! appsink", True),
        ("rtsp://cam/1", False),
        ("http://cam/live?size=4", False),
        ("camera:0", False),
        ("photos@home/", False),
    ],
)
def test_what_is_secret(source: str, secret: bool) -> None:
    assert has_secret(source) is secret


def test_a_file_that_only_its_owner_reads(tmp_path: Path) -> None:
    assert read_source("camera:0") == "camera:0"
    file = tmp_path / "source"
    file.write_text("rtsp://viewer:word@cam/1\nmore\n")
    file.chmod(0o600)
    assert read_source(f"@{file}") == "rtsp://viewer:word@cam/1"
    for mode in (0o640, 0o604):
        file.chmod(mode)
        with pytest.raises(UsageError, match="others may read"):
            read_source(f"@{file}")
    file.chmod(0o600)
    file.write_text("\n")
    with pytest.raises(UsageError, match="names no source"):
        read_source(f"@{file}")
    with pytest.raises(UsageError, match="cannot read the source"):
        read_source(f"@{tmp_path / 'none'}")


def test_what_may_be_shown() -> None:
    assert public_name("rtsp://me:se@cret@host:554/live?token=secret") == "rtsp://host:554/live"
    assert public_name("rtsp://me:un/esc?aped@host/live") == "rtsp://host/live"
    assert public_name("rtsp://host/\x1b[2J") == "rtsp://host/\\x1b[2J"
