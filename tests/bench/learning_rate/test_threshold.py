"""The threshold bench on a small network: predictions come first, what is done is kept, and how it is scored."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from edgetta.bench.learning_rate import threshold
from edgetta.bench.learning_rate.command import command
from edgetta.bench.learning_rate.networks import Narrow
from edgetta.bench.learning_rate.threshold import OPTIMIZERS, ThresholdConfig, Thresholds, plot
from edgetta.offline.curvature import DataOperator, HessianOperator, LossSurface
from edgetta.rate_law import RateLaw

NETWORK = Narrow("linear", 1.0)
CONFIG = replace(
    ThresholdConfig(),
    networks=(NETWORK,),
    batch_sizes=(4, 16, 64),
    samples=256,
    adam_reference=16,
    batches=6,
    steps=60,
    warm_batches=5,
    check_every=1,
)


def regression(network: Narrow) -> DataOperator:
    """Least squares without noise in its targets: where the theory holds."""
    assert network == NETWORK
    torch.manual_seed(0)
    scale = torch.tensor([3.0, *[0.7] * 24], dtype=torch.float64)
    x = scale * torch.randn(256, 25, dtype=torch.float64)
    y = x.sum(dim=1, keepdim=True)
    net = nn.Linear(25, 1, bias=False).double()
    nn.init.zeros_(net.weight)
    return HessianOperator(LossSurface(net, lambda out, to: 0.5 * (out - to).square().sum(dim=1).mean()), (x, y))


@pytest.fixture(scope="module")
def predicted() -> Thresholds:
    bench = Thresholds(CONFIG, regression)
    assert list(bench.predict(lambda text: None)) == [NETWORK.name]
    return bench


def earlier(bench: Thresholds) -> dict[str, object]:
    return {"rows": [dict(row) for row in bench.rows], **bench.facts()}


def test_predictions_are_there_before_anything_is_measured(predicted: Thresholds) -> None:
    rows = predicted.rows
    assert [(row["optimizer"], row["batch_size"]) for row in rows] == [
        (name, size) for name in OPTIMIZERS for size in CONFIG.batch_sizes
    ]
    assert [row["measured_lr"] is None for row in rows] == [not row["reference"] for row in rows]
    assert [row["batch_size"] for row in rows if row["reference"]] == [16]
    assert all(row["predicted_low"] <= row["predicted_lr"] <= row["predicted_high"] for row in rows)
    facts = predicted.facts()
    assert facts["sweep_seconds"] is None and facts["analysis_seconds"] > 0 and facts["verdict"] == {}
    momentum = [row for row in rows if row["optimizer"] == "momentum"]
    assert momentum[0]["predicted_lr"] < momentum[0]["eigenvalue_lr"] / 3, "noise limits small batches first"
    again = Thresholds(CONFIG, regression, earlier(predicted))
    assert list(again.predict(lambda text: pytest.fail("it was predicted before"))) == []


def test_measured_thresholds_are_near_the_predicted_and_kept(predicted: Thresholds) -> None:
    bench = Thresholds(CONFIG, regression, earlier(predicted))
    first = next(bench.measure())
    assert first["optimizer"] == "sgd" and first["measured_lr"] > 0
    again = Thresholds(CONFIG, regression, earlier(bench))
    measured = list(again.measure())
    assert len(measured) == len(bench.rows) - 2, "neither the first nor Adam's reference"
    verdict = again.verdict()
    for name, factor in (("sgd", 1.5), ("momentum", 2.5), ("adam", 2.5)):
        assert verdict[f"{NETWORK.name}, {name}"]["worst_factor"] < factor
    facts = again.facts()
    assert facts["sweep_seconds"] > 0
    law = RateLaw.from_json(facts["measured_laws"][f"{NETWORK.name}, momentum"])
    assert law.rate(4) == pytest.approx(again.rows[3]["measured_lr"])


def test_the_verdict_is_the_worst_factor_without_the_reference_and_the_slopes(predicted: Thresholds) -> None:
    bench = Thresholds(CONFIG, regression, earlier(predicted))
    for row in bench.rows:
        row["predicted_lr"], row["measured_lr"] = 0.1 * row["batch_size"] ** 0.5, 0.1 * row["batch_size"]
    found = bench.verdict()
    assert found[f"{NETWORK.name}, sgd"]["worst_factor"] == pytest.approx(8)
    assert found[f"{NETWORK.name}, sgd"]["exponent_predicted"] == pytest.approx(0.5)
    assert found[f"{NETWORK.name}, adam"]["exponent_measured"] == pytest.approx(1)
    assert found[f"{NETWORK.name}, adam"]["ratios"] == pytest.approx([0.5, 0.125])


def test_bands_and_points_are_drawn(predicted: Thresholds, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    assert "<svg" in plot(predicted, NETWORK.name, tmp_path / "rates.svg").read_text()


def test_the_verb_writes_predictions_measurements_and_pictures(
    predicted: Thresholds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threshold, "ThresholdConfig", lambda: replace(CONFIG, batch_sizes=(16, 64)))
    monkeypatch.setattr(threshold, "checkpoint", lambda config, work: regression)
    file = tmp_path / "rates.json"
    arguments = ["--part", "threshold", "--json", str(file)]
    stopped = CliRunner().invoke(command, [*arguments, "--minutes", "1e-6"], catch_exceptions=False)
    first = json.loads(file.read_text())
    assert stopped.exit_code == 0 and sum(row["measured_lr"] is None for row in first["rows"]) == 5
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    found = json.loads(file.read_text())
    assert result.exit_code == 0 and "off by a factor of" in result.output
    for before, after in zip(first["rows"], found["rows"], strict=True):
        assert after["measured_lr"] > 0 and after["predicted_lr"] == before["predicted_lr"], "predicted once"
    assert found["analyses"][NETWORK.name]["predicted_at"] <= found["analyses"][NETWORK.name]["measured_at"]
    assert found["analysis_seconds"] > 0 and found["sweep_seconds"] > 0
    assert (tmp_path / "rates.linear-1.svg").is_file()
