"""The estimate of the error without labels, measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgetta.bench.accuracy.command import command
from edgetta.sources.datasets import data_folder


@pytest.mark.skipif(
    not (data_folder() / "weights" / "resnet20_jpegft.npz").is_file(), reason="EDGETTA_DATA holds no weights"
)
def test_rows_hold_errors_and_estimates_and_are_not_made_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgetta.bench.accuracy.estimate.CALIBRATION_IMAGES", 32)
    file = tmp_path / "estimate.json"
    arguments = [
        "--estimate",
        "--images",
        "32",
        "--seeds",
        "3",
        "--cache",
        str(tmp_path / "cache"),
        "--json",
        str(file),
    ]
    for _ in range(2):
        result = CliRunner().invoke(command, arguments, catch_exceptions=False)
        assert result.exit_code == 0 and "mean absolute error" in result.output
    (row,) = json.loads(file.read_text())["rows"]
    assert len(row["errors"]) == 15 and row["errors"].keys() == row["estimates"].keys()
    apart = [abs(row["errors"][kind] - row["estimates"][kind]) for kind in row["errors"]]
    assert row["mean_absolute_error"] == pytest.approx(sum(apart) / 15, abs=0.01)
    assert 1 < row["errors_per_doubt"] < 10 and row["correlation"] > 0
