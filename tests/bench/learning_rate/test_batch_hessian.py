"""The batch-Hessian bench on a small network: its rows against dense matrices, and what is kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from edgetta.bench.learning_rate import batch_hessian
from edgetta.bench.learning_rate.batch_hessian import BatchHessianConfig, Operators, measure
from edgetta.bench.learning_rate.command import command
from edgetta.bench.learning_rate.networks import Narrow
from edgetta.offline.curvature import GaussNewtonOperator, HessianOperator
from edgetta.offline.learning_rate import draw_batches
from tests.offline.small_surfaces import images, surface

CONFIG = replace(
    BatchHessianConfig(),
    networks=(Narrow("one", 1.0), Narrow("two", 1.0)),
    samples=256,
    batch_sizes=(8, 32),
    batches=3,
    iterations=51,
    tolerance=1e-6,
    whole_iterations=51,
    variance_sizes=(4, 16),
    probes=4,
)


def operators(network: Narrow) -> Operators:
    return {"hessian": HessianOperator(surface(), images(256)), "ggn": GaussNewtonOperator(surface(), images(256))}


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    (found,) = measure(CONFIG, operators, {"two x 1"}, lambda text: None)
    return found


def test_rows_have_the_extremes_of_real_batches_and_of_the_whole(rows: list[dict[str, Any]]) -> None:
    assert [(row["network"], row["operator"], row["batch_size"]) for row in rows] == [
        ("one x 1", kind, size) for kind in ("hessian", "ggn") for size in (8, 32)
    ]
    for row in rows:
        operator = operators(CONFIG.networks[0])[row["operator"]]
        eye = torch.eye(operator.dimension, dtype=torch.float64)
        whole = torch.linalg.eigvalsh(operator.product(eye))
        ends = [
            torch.linalg.eigvalsh(operator.on_batch(drawn).product(eye))[[0, -1]]
            for drawn in draw_batches(256, row["batch_size"], 3, 0)
        ]
        low, high = (float(each) for each in torch.stack(ends).mean(dim=0))
        assert row["lambda_min"] == pytest.approx(low, abs=1e-5)
        assert row["lambda_max"] == pytest.approx(high, abs=1e-5)
        assert row["low"] < high < row["high"]
        assert row["whole_max"] == pytest.approx(float(whole[-1]), abs=1e-5)
        assert row["whole_min"] == pytest.approx(float(whole[0]), abs=1e-5)
        assert row["exceeding"] == sum(float(each[1]) > float(whole[-1]) for each in ends)
        assert row["parameters"] == 51 and row["batches"] == 3


def test_every_prediction_grows_as_batches_shrink(rows: list[dict[str, Any]]) -> None:
    for kind, theory in (("hessian", "wigner"), ("ggn", "marchenko_pastur")):
        small, large = (row for row in rows if row["operator"] == kind)
        assert small["theory"] == large["theory"] == theory
        for key in ("predicted_max", "perturbed_max", "lambda_max"):
            assert small[key] > large[key] >= 0.9 * large["whole_max"]
    hessian, ggn = rows[0], rows[2]
    assert hessian["gauss_newton_max"] == pytest.approx(ggn["predicted_max"])
    assert ggn["gauss_newton_max"] is None and ggn["predicted_min"] is None


def test_networks_that_are_done_are_not_measured_again() -> None:
    assert list(measure(CONFIG, operators, {"one x 1", "two x 1"}, lambda text: None)) == []


def test_the_verb_writes_every_network_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_hessian, "BatchHessianConfig", lambda: CONFIG)
    monkeypatch.setattr(batch_hessian, "checkpoint", lambda config, work: operators)
    file = tmp_path / "extremes.json"
    arguments = ["--part", "hessian", "--json", str(file)]
    assert CliRunner().invoke(command, [*arguments, "--minutes", "1e-6"], catch_exceptions=False).exit_code == 0
    first = json.loads(file.read_text())["rows"]
    assert {row["network"] for row in first} == {"one x 1"}, "it stopped after the first"
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    rows = json.loads(file.read_text())["rows"]
    assert rows[:4] == first and [row["network"] for row in rows[4:]] == ["two x 1"] * 4
    assert f"{rows[0]['lambda_max']:.3g}" in result.output
