"""`edgetta run --budget`: planned, measured, kept and told; and a step in which memory runs out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.run.verb import Captured, run
from tests.memory.costs import cost_model
from tests.small_bundle import copy_of_it, edit_manifest


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    """The small bundle with a cost model."""
    path = copy_of_it(tmp_path / "measured")
    edit_manifest(path, lambda manifest: manifest.update(cost_model=cost_model().to_json()))
    return path


def test_a_budget_is_planned_measured_and_told(measured: Path, array: Path, tmp_path: Path, capsys: Captured) -> None:
    summary = tmp_path / "summary.json"
    assert run(array, "--budget", "60MiB", "--batch", 20, "--json", summary, bundle=measured) == 0
    captured = capsys.readouterr()
    assert "planned" in captured.err and "in slices of 16, bits kept for the backward" in captured.err
    memory = json.loads(summary.read_text())["memory"]
    assert memory["plan"]["budget_bytes"] == 60 << 20 and memory["plan"]["choice"]["batch"] == 20
    assert 0 < memory["measured_peak_bytes"] < memory["plan"]["predicted_bytes"]
    assert memory["changes"] == [] and memory["failures"] == 0
    assert "MiB planned, " in captured.out and " measured at most, budget 60.0 MiB" in captured.out


def test_a_small_budget_learns_in_slices_and_keeps_nothing(measured: Path, array: Path, tmp_path: Path) -> None:
    rows, summary = tmp_path / "rows.jsonl", tmp_path / "summary.json"
    assert run(array, "--budget", "20MiB", "--batch", 40, "-o", rows, "--json", summary, "-q", bundle=measured) == 0
    data = json.loads(summary.read_text())
    assert len(rows.read_text().splitlines()) == 40 and data["steps"] == 1
    choice = data["memory"]["plan"]["choice"]
    assert choice["batch"] == 40 and 0 < choice["slice"] < 40 and not choice["keep"]


def test_a_budget_that_is_too_small(measured: Path, array: Path, capsys: Captured) -> None:
    assert run(array, "--budget", "1MiB", bundle=measured) == 2
    assert "a budget of 1.0 MiB is too small to adapt small: the smallest that does is" in capsys.readouterr().err


def test_a_budget_in_the_settings(measured: Path, array: Path, tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "edgetta.toml").write_text('[run]\nbudget = "60MiB"\n')
    assert run(array, "--config", tmp_path / "edgetta.toml", bundle=measured) == 0
    assert "budget 60.0 MiB" in capsys.readouterr().out


def test_a_step_without_memory_is_told(array: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgetta.engines.torch import TorchEngine

    backward, calls = TorchEngine.backward, [0]

    def scarce(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == 1:
            raise MemoryError("injected")
        return backward(*arguments, **options)

    monkeypatch.setattr(TorchEngine, "backward", scarce)
    rows, summary = tmp_path / "rows.jsonl", tmp_path / "summary.json"
    settings = ("--batch", 20, "--when", "always", "--json", summary, "-o", rows)
    assert run(array, *settings) == 0
    data = json.loads(summary.read_text())
    assert len(rows.read_text().splitlines()) == 40
    assert data["memory"]["failures"] == 1 and data["memory"]["down"] == 1 and data["adapted"] == 1
    assert "memory ran out in it (injected)" in data["memory"]["changes"][0]["reason"]
