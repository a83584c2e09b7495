"""A file of trials that is damaged or something else is named, in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from edgetta.bench.accuracy.command import command
from edgetta.errors import UsageError


@pytest.mark.parametrize("content", [b"\xe7\xff", b"{", b"[]", b'{"rows": [1]}'])
def test_a_file_that_is_none_is_refused(content: bytes, tmp_path: Path, data_folder: Path) -> None:
    (tmp_path / "tuning.json").write_bytes(content)
    options = ["--tuning", str(tmp_path / "tuning.json"), "--images", "8"]
    with pytest.raises(UsageError, match="is not what `--tune` wrote"):
        CliRunner().invoke(command, options, catch_exceptions=False)
