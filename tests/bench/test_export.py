"""The bench of exports: rows as they are promised, one network after another, and no network that stops the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from edgetta.bench.export import EXACT, command, measured, run
from edgetta.bench.export_networks import LEFT_OUT, NETWORKS

FIELDS = {"model", "exported", "reason", "forward_error", "gradient_error", "bytes", "seconds"}


def test_a_network_is_exported_and_exact() -> None:
    row = measured("resnet20")
    assert set(row) >= FIELDS and row["exported"] and row["reason"] == ""
    assert row["forward_error"] <= EXACT and row["gradient_error"] <= EXACT
    assert row["bytes"] > row["weight_bytes"] > 1e6 and row["seconds"] > 0
    assert row["cuts"].split(", ")[0] == "relu" and row["input"] == [3, 32, 32]


def test_what_stands_in_the_way_is_the_reason(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("def build():\n    raise OSError('no disk')\n")
    row = measured(f"{tmp_path}/net.py:build")
    assert set(row) == FIELDS and not row["exported"] and "no disk" in row["reason"]


def made(name: str) -> dict[str, Any]:
    errors: dict[str, Any] = {"forward_error": 1e-9, "gradient_error": 1e-9, "bytes": 1000, "seconds": 1.0}
    if name == "c":
        return {"model": name, "exported": False, "reason": "no", **dict.fromkeys(errors)}
    return {"model": name, "exported": True, "reason": "", "cuts": "stem, a", **errors}


def test_it_goes_on_where_it_ended(tmp_path: Path) -> None:
    path = tmp_path / "export.json"
    asked: list[str] = []

    def row(name: str) -> dict[str, Any]:
        asked.append(name)
        if name == "b" and asked.count("b") == 1:
            raise KeyboardInterrupt
        return made(name)

    with pytest.raises(KeyboardInterrupt):
        run(["a", "b", "c"], path, row=row)
    rows = run(["a", "b", "c"], path, row=row)
    assert asked == ["a", "b", "b", "c"]
    assert [entry["model"] for entry in rows] == ["a", "b", "c"]
    written = json.loads(path.read_text())
    assert written["rows"] == rows and written["settings"]["left_out"] == list(LEFT_OUT)


def test_it_stops_after_its_minutes(tmp_path: Path) -> None:
    assert len(run(["a", "b", "c"], tmp_path / "export.json", minutes=1e-9, row=made)) == 1
    assert len(run(["a", "b", "c"], tmp_path / "export.json", minutes=1e-9, row=made)) == 2


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgetta.bench.export.measured", made)
    result = CliRunner().invoke(command, ["--model", "a,c", "--json", str(tmp_path / "e.json")])
    assert result.exit_code == 0, result.output
    assert "a: forward 1e-09, gradient 1e-09" in result.output and "c: not exported: no" in result.output
    assert "1 of 2 exported" in result.output
    monkeypatch.setattr("edgetta.bench.export.measured", lambda name: {**made(name), "gradient_error": 1e-3})
    result = CliRunner().invoke(command, ["--model", "a"])
    assert result.exit_code != 0 and "not exact: a" in str(result.exception)


def test_the_networks_are_named_once() -> None:
    assert len(set(NETWORKS)) == len(NETWORKS)
    assert all(name.startswith(("timm:", "torchvision:")) for name in NETWORKS)
