"""From batches to a table, a law and pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from edgetta.errors import UsageError
from edgetta.offline.curvature import CurvatureError, DataSetTooSmallError, GaussNewtonOperator, LossSurface
from edgetta.offline.curvature import HessianOperator as Hessian
from edgetta.offline.learning_rate import (
    AdamReference,
    BatchExtremes,
    Ladder,
    LearningRateAnalysis,
    RateLaw,
    Threshold,
    analyse_learning_rate,
    fit_forms,
    load_rows,
    mean_square_rate,
    plot_eigenvalues,
    plot_rates,
)
from tests.offline.small_surfaces import convolutional, images, surface

SIZES = (4, 8, 16, 32)


def made(
    form: str = "wigner", *, curvature: str = "largest", adam: AdamReference | None = None
) -> LearningRateAnalysis:
    """An analysis of eigenvalues that follow a known law: limit 10, crossover 12 (or no law at all)."""
    generator = np.random.default_rng(0)
    rungs = []
    for k, size in enumerate(SIZES):
        x = size / 12
        mean = {"wigner": 10 * (1 + 1 / x if x > 1 else 2 / x**0.5), "none": 10.0 * (1 + k % 2)}[form]
        values = mean * np.exp(0.02 * generator.standard_normal(6))
        rungs.append(BatchExtremes(size, tuple(values.tolist()), tuple((-0.5 * values).tolist()), 60, 0))
    values_by_size = {rung.batch_size: rung.largest for rung in rungs}
    return LearningRateAnalysis(
        Ladder(tuple(rungs), 512),
        fit_forms(values_by_size, replicates=50),
        curvature,  # type: ignore[arg-type]
        0.9,
        adam,
        1.5,
        {"operator": "hessian"},
    )


def test_the_table_follows_from_the_eigenvalues() -> None:
    analysis = made(adam=AdamReference(16, Threshold(1e-3, 1.2e-3, 9)))
    rows = analysis.rows()
    assert [row.batch_size for row in rows] == list(SIZES)
    for row in rows:
        assert row.lambda_max_low < row.lambda_max < row.lambda_max_high
        assert row.lr_sgd == pytest.approx(2 / row.lambda_max)
        assert row.lr_momentum < 1.9 * row.lr_sgd  # noise limits it first
        noise = row.lambda_max - analysis.support.fits["wigner"].limit
        assert row.lr_momentum == pytest.approx(
            mean_square_rate(row.lambda_max - noise, noise, row.batch_size, 0.9), rel=1e-6
        )
        assert row.lambda_min is not None and row.lambda_min < 0
        assert row.damping == pytest.approx((row.lambda_max - analysis.support.fits["wigner"].limit) / 2)
        assert row.regime == ("noise-limited" if row.batch_size < 12 else "curvature-limited")
    assert rows[2].lr_adam == pytest.approx((1e-3 * 1.2e-3) ** 0.5)
    assert rows[2].lr_adam is not None and rows[0].lr_adam is not None
    assert rows[3].lr_adam / rows[0].lr_adam == pytest.approx((32 / 4) ** 0.5)  # far below the crossover, 19 x 12
    law = analysis.law("adam")
    assert law.crossover == pytest.approx(19 * analysis.support.fits["wigner"].crossover)
    assert law.rate(1000) == law.rate(500), "capped there"
    (other,) = analysis.rows([64])
    assert other.lambda_min is None and other.lambda_max < rows[-1].lambda_max
    assert made().rows()[0].lr_adam is None


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_laws_give_the_tables_rates_and_survive_json(optimizer: str) -> None:
    analysis = made(adam=AdamReference(16, Threshold(1e-3, 1.2e-3, 9)))
    law = analysis.law(optimizer, fraction=0.5)
    column = {"sgd": "lr_sgd", "momentum": "lr_momentum", "adam": "lr_adam"}[optimizer]
    for row in analysis.rows():
        assert law.stable_rate(row.batch_size) == pytest.approx(getattr(row, column))
        assert law.rate(row.batch_size) == pytest.approx(0.5 * getattr(row, column))
        low, high = law.interval(row.batch_size)
        assert low < law.rate(row.batch_size) < high
    assert RateLaw.from_json(json.loads(json.dumps(law.to_json()))) == law
    assert law.source["samples"] == "512"
    assert law.momentum == (0.9 if optimizer == "momentum" else 0)


def test_where_neither_form_holds_the_measured_values_are_the_law() -> None:
    analysis = made("none")
    assert analysis.support.choice == "measured"
    law = analysis.law("sgd")
    assert law.form == "measured" and law.limit is None
    for row, rung in zip(analysis.rows(), analysis.ladder.rungs, strict=True):
        assert row.lambda_max == pytest.approx(np.mean(rung.largest))
        assert law.rate(row.batch_size) == pytest.approx(2 / row.lambda_max)
    with pytest.raises(UsageError, match="batch size 64 was not measured"):
        analysis.rows([64])
    assert made("none", adam=AdamReference(8, Threshold(0.1, 0.11, 3))).law("adam").form == "square_root"


def test_what_there_is_no_law_for_is_said() -> None:
    with pytest.raises(UsageError, match="needs a rate measured"):
        made().law("adam")
    with pytest.raises(UsageError, match="not for 'lamb'"):
        made().law("lamb")


@pytest.fixture(scope="module")
def measured() -> LearningRateAnalysis:
    return analyse_learning_rate(GaussNewtonOperator(surface(), images(128)), SIZES, batches=4)


def test_a_network_is_analysed_from_its_batches(measured: LearningRateAnalysis, tmp_path: Path) -> None:
    rows = measured.rows()
    assert rows[0].lambda_max > rows[-1].lambda_max > 0
    assert rows[0].lr_sgd < rows[-1].lr_sgd
    assert measured.seconds > 0 and measured.description["operator"] == "ggn"
    path = measured.save(tmp_path / "out")
    assert load_rows(path) == rows
    facts = json.loads(path.read_text())
    assert set(facts["rows"][0]) >= {
        "batch_size",
        "lambda_max",
        "lambda_max_low",
        "lambda_max_high",
        "lr_sgd",
        "lr_momentum",
        "lr_adam",
        "damping",
        "regime",
    }
    assert RateLaw.from_json(facts["laws"]["sgd"]) == measured.law("sgd")
    assert [rung["batch_size"] for rung in facts["measured"]] == list(SIZES)
    assert facts["support"]["choice"] == measured.support.choice


def test_pictures_are_drawn(measured: LearningRateAnalysis, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    first = plot_eigenvalues(measured, tmp_path / "eigenvalues.svg")
    laws = {"sgd": measured.law("sgd"), "momentum": measured.law("momentum")}
    second = plot_rates(laws, tmp_path / "rates.svg", measured={"sgd": {8: 0.5}})
    for path in (first, second):
        assert "<svg" in path.read_text(encoding="utf-8")


def test_a_damaged_analysis_is_refused(measured: LearningRateAnalysis, tmp_path: Path) -> None:
    path = measured.save(tmp_path)
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({**facts, "version": 5}))
    with pytest.raises(CurvatureError, match="version 5"):
        load_rows(path)
    path.write_text("{}")
    with pytest.raises(CurvatureError, match="make it again"):
        load_rows(path)


def entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return -(outputs.softmax(1) * outputs.log_softmax(1)).sum(1).mean()


def test_an_indefinite_objective_needs_magnitudes() -> None:
    net = convolutional()
    net[4].weight.data.mul_(0.01)  # near the uniform prediction entropy has its maximum: no positive curvature
    operator = Hessian(LossSurface(net, entropy, parameters=["4.weight", "4.bias"]), images(64))
    with pytest.raises(CurvatureError, match="curvature='magnitude'"):
        analyse_learning_rate(operator, (8, 16), batches=2)
    analysis = analyse_learning_rate(operator, (8, 16), batches=2, curvature="magnitude")
    for row, rung in zip(analysis.rows(), analysis.ladder.rungs, strict=True):
        assert row.lambda_max == pytest.approx(np.mean(rung.magnitudes), rel=0.1)


def test_batch_statistics_are_measured_directly() -> None:
    operator = Hessian(surface(batch_norm="batch"), images(64))
    rows = analyse_learning_rate(operator, (8, 16), batches=3).rows()
    eye = torch.eye(operator.dimension, dtype=torch.float64)
    from edgetta.offline.learning_rate import draw_batches

    exact = [
        float(torch.linalg.eigvalsh(operator.on_batch(indices).product(eye))[-1])
        for indices in draw_batches(64, 8, 3, 0)
    ]
    assert rows[0].lambda_max == pytest.approx(np.mean(exact), rel=0.1)
    with pytest.raises(DataSetTooSmallError, match="larger than the data set of 64"):
        analyse_learning_rate(operator, (8, 65))
