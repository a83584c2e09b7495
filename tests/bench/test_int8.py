"""The bench of int8 backbones: six rows of a short real stream, continued where it was interrupted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgetta.bench.int8 import command, recovered
from edgetta.errors import UsageError

FEW = ("gaussian_noise", "defocus_blur", "snow", "contrast")


def test_a_short_stream_is_measured_and_continued(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgetta.corruption.CORRUPTIONS", FEW)
    monkeypatch.setattr("edgetta.bench.int8._REPETITIONS", 2)
    file = tmp_path / "int8.json"
    options = ["--model", "resnet20_jpegft", "--count", "64", "--source", "128", "--epochs", "1", "--json", str(file)]
    first = CliRunner().invoke(command, options, catch_exceptions=False)
    assert first.exit_code == 0 and "resnet20_jpegft: " in first.output
    written = file.read_text()
    CliRunner().invoke(command, options, catch_exceptions=False)
    assert file.read_text() == written, "what was written is not measured again"
    rows = {(row["precision"], row["adaptation"]): row for row in json.loads(written)["rows"]}
    assert len(rows) == 6
    single, eight = rows["fp32", "adapted"], rows["int8", "adapted"]
    assert eight["model_bytes"] < 0.5 * single["model_bytes"] and eight["kept_bytes"] == single["kept_bytes"] > 0
    for adaptation in ("bare", "warm_up_only", "adapted"):
        one, other = rows["fp32", adaptation], rows["int8", adaptation]
        assert abs(one["error"] - other["error"]) < 6 and 0 < other["clean_error"] < 45
    assert rows["int8", "adapted"]["error"] < rows["int8", "bare"]["error"]


def test_the_share_that_is_won_back() -> None:
    errors = {
        ("fp32", "bare"): 10.0,
        ("int8", "bare"): 14.0,
        ("fp32", "warm_up_only"): 9.0,
        ("int8", "warm_up_only"): 11.0,
    }
    rows = [{"model": "a", "precision": p, "adaptation": a, "error": e} for (p, a), e in errors.items()]
    assert recovered(rows, "a", "error") == 0.75
    rows[1]["error"] = 10.0
    assert recovered(rows, "a", "error") is None


def test_an_unknown_network_is_named() -> None:
    with pytest.raises(UsageError, match="mobilenet"):
        CliRunner().invoke(command, ["--model", "resnet99"], catch_exceptions=False)
