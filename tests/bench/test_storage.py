"""The bench of storages: a short real stream, continued where it was interrupted, and options that name themselves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgetta.bench.storage import command
from edgetta.errors import UsageError

FEW = ("gaussian_noise", "defocus_blur", "snow", "contrast")


def test_a_short_stream_is_measured_and_continued(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgetta.corruption.CORRUPTIONS", FEW)
    file = tmp_path / "storage.json"
    options = ["--count", "16", "--batch", "16", "--slice", "5", "--seeds", "0", "--json", str(file)]
    first = CliRunner().invoke(command, [*options, "--storage", "recompute"], catch_exceptions=False)
    assert first.exit_code == 0 and "recompute" in first.output
    before = json.loads(file.read_text())["rows"]
    CliRunner().invoke(command, [*options, "--storage", "recompute,recompute-int8"], catch_exceptions=False)
    rows = json.loads(file.read_text())["rows"]
    assert rows[:2] == before, "what was written is not measured again"
    full, recompute, smallest = rows
    assert [row["storage"] for row in rows] == ["full", "recompute", "recompute-int8"]
    assert all(row["images"] == 64 and row["updates"] == 4 for row in rows)
    assert all(abs(row["alive_bytes"] - row["kept_bytes"]) <= 0.1 * row["kept_bytes"] for row in rows)
    assert smallest["kept_bytes"] < 0.5 * recompute["kept_bytes"] < 0.5 * full["kept_bytes"]
    assert recompute["gradient_error"] < 1e-5 < smallest["gradient_error"] < 5e-2
    assert 5 < full["error"] < 60 and full["difference"] == 0
    assert all(row["error_full"] == full["error"] for row in rows)


@pytest.mark.parametrize(("options", "word"), [(["--storage", "tiny"], "recompute-int8"), (["--seeds", "a"], "whole")])
def test_bad_options_name_themselves(options: list[str], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        CliRunner().invoke(command, options, catch_exceptions=False)
