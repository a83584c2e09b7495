"""The exactness bench: right rows for a right derivation, a wrong one is noticed, finished networks are not redone.

The full matrix writes `bench/results/exactness.json`, network by network.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgetta.bench.exactness import measurement
from edgetta.bench.exactness.command import command, run
from edgetta.bench.exactness.measurement import measure, worst
from edgetta.bench.exactness.networks import NETWORKS
from edgetta.errors import EdgettaError, UsageError
from edgetta.export.derivation import RULES, Derivation
from edgetta.export.recipe import Recipe
from edgetta.segments.graph import Node

SMALL = Recipe("resnet20", width=0.25, parts=2)
RESULTS = Path(__file__).parent.parent.parent / "bench" / "results" / "exactness.json"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NETWORKS, "small", SMALL)


def test_rows_of_every_part_policy_gradient_and_engine() -> None:
    rows = list(measure("small", SMALL, policies=("source", "ema")))
    assert {row.part for row in rows} == {"part1", "part2", "classifier"}
    plain = {(row.policy, row.gradient, row.engine) for row in rows if row.adapt == "meta"}
    assert len(plain) == 2 * 2 * 2
    assert {(row.policy, row.gradient) for row in rows if row.adapt == "bias"} == {("ema", "exact")}
    for row in rows:
        assert not row.excess(), row
        assert 0 <= row.float64_error < 1e-13 < 1e-9 < row.own_masks_error
        assert (row.imposed_error is None) == (row.given_error is None) == (row.gradient == "recompute")
        assert (row.bias_error is not None) == (
            (row.adapt == "bias" and row.part != "classifier") or row.bias_error == 0.0
        )
    assert sum(row["masks"] for row in worst(rows)) == sum(row.masks for row in rows) > 0


def test_worst_takes_the_largest_error_of_the_parts() -> None:
    rows = list(measure("small", SMALL, policies=("source",), engines=("torch",)))
    exact = [row for row in rows if row.gradient == "exact" and row.adapt == "meta"]
    found = next(r for r in worst(rows) if r["gradient"] == "exact" and r["adapt"] == "meta")
    assert found["parts"] == 3
    assert found["own_masks_error"] == pytest.approx(max(row.own_masks_error for row in exact), rel=1e-2)


def test_the_verb_writes_what_it_shows_and_continues(
    tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "exactness.json"
    arguments = ["--model", "small", "--json", str(file)]
    first = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert first.exit_code == 0 and "onnxruntime" in first.output and "ema + biases" in first.output
    written = json.loads(file.read_text())
    assert written["settings"]["tolerances"]["float64_error"] == 1e-10
    assert {row["network"] for row in written["rows"]} == {"small"}
    monkeypatch.setattr(measurement, "measure", lambda *_, **__: pytest.fail("it was measured already"))
    assert CliRunner().invoke(command, arguments, catch_exceptions=False).output == first.output
    with pytest.raises(UsageError, match=r"exactness\.json was measured with other settings"):
        run({"other": SMALL}, 5, file)
    assert json.loads(file.read_text()) == written


def test_a_wrong_gradient_is_an_error(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_mask(d: Derivation, node: Node, gradient: str) -> list[str | None]:
        return [gradient]

    monkeypatch.setitem(RULES, "Relu", without_mask)
    result = CliRunner().invoke(command, ["--model", "small"])
    assert isinstance(result.exception, EdgettaError)
    assert str(result.exception).startswith("not exact: small part1, policy source, exact, torch: float64_error is")


def test_a_network_without_batch_norm_has_one_policy(tmp_path: Path) -> None:
    file = tmp_path / "plain.py"
    file.write_text(
        "from torch import nn\n\ndef build():\n"
        "    conv = lambda channels: nn.Conv2d(channels, 4, 3, padding=1)\n"
        "    body = [conv(3), nn.GELU(), conv(4), nn.GELU(), conv(4), nn.ReLU()]\n"
        "    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))\n"
    )
    rows = list(measure("plain", Recipe(f"{file}:build", input_shape=(3, 12, 12), parts=2)))
    assert {row.policy for row in rows} == {"source"} and not any(row.excess() for row in rows)
    assert any(row.rounded for row in rows), "GELU's derivative is kept in eight bits"


def test_a_size_needs_a_network() -> None:
    result = CliRunner().invoke(command, ["--input-size", "64"])
    assert isinstance(result.exception, UsageError)


@pytest.mark.full
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network(name: str) -> None:
    rows = run({name: NETWORKS[name]}, 4, RESULTS)
    assert rows and not [row["excess"] for row in rows if row["excess"]]


def test_the_committed_results_hold() -> None:
    rows = json.loads(RESULTS.read_text())["rows"]
    assert rows and {row["network"] for row in rows} <= set(NETWORKS)
    assert not [row["excess"] for row in rows if row["excess"]]
