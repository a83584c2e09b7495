"""`edgetta learning-rate` as a user sees it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from edgetta.cli.learning_rate import command
from edgetta.errors import UsageError
from edgetta.offline.curvature import DataSetTooSmallError
from edgetta.rate_law import RateLaw
from tests.small_bundle import whole_bundle

NET = """
import torch
from torch import nn


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("inputs")
    (where / "net.py").write_text(NET)
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (60, 16, 16, 3), dtype=np.uint8)
    np.savez(where / "data.npz", images=images, labels=np.arange(60) % 5)
    return where


def run(folder: Path, out: Path, *arguments: str) -> Result:
    fixed = ["--input-size", "16", "--data", str(folder / "data.npz"), "-o", str(out), "--batches", "3"]
    return CliRunner().invoke(command, [f"{folder / 'net.py'}:build", *fixed, *arguments])


def facts(out: Path) -> dict[str, Any]:
    return json.loads((out / "learning_rate.json").read_text())


def test_the_table_is_printed_and_saved(folder: Path, tmp_path: Path) -> None:
    result = run(folder, tmp_path, "--batch-sizes", "5, 10,20")
    assert result.exit_code == 0, result.exception
    found = facts(tmp_path)
    rows = found["rows"]
    assert [row["batch_size"] for row in rows] == [5, 10, 20]
    needed = {"batch_size", "lambda_max", "lambda_max_low", "lambda_max_high", "lr_sgd", "lr_momentum", "lr_adam"}
    assert needed | {"damping", "regime"} <= set(rows[0])
    for row in rows:
        assert row["lambda_max_low"] <= row["lambda_max"] <= row["lambda_max_high"]
        assert row["lr_sgd"] == pytest.approx(2 / row["lambda_max"])
        assert 0 < row["lr_momentum"] <= 1.9 * row["lr_sgd"], "noise may limit it first"
        assert row["lr_adam"] is None
        assert f"{row['lr_sgd']:.3g}" in result.output and row["regime"] in result.output
    table = {row["batch_size"]: row["lr_sgd"] for row in rows}
    assert found["sharpness"] and "sharpness" in result.output, "some sizes curve upwards along the gradient"
    for each in found["sharpness"]:
        assert each["lr_sgd"] > table[each["batch_size"]], "curvature along the gradient is not the largest"
    law = RateLaw.from_json(found["laws"]["momentum"])
    assert law.rate(10) == pytest.approx(rows[1]["lr_momentum"]) and law.momentum == 0.9
    assert found["description"]["objective"] == "cross-entropy"
    assert all((tmp_path / name).stat().st_size > 1000 for name in ("eigenvalues.svg", "rates.svg"))


def test_adam_is_measured_at_one_size_and_carried_to_the_others(folder: Path, tmp_path: Path) -> None:
    options = ("--batch-sizes", "5,20", "--adam-reference", "20", "--trial-steps", "10", "-q")
    result = run(folder, tmp_path, *options)
    assert result.exit_code == 0 and result.output == "", result.exception
    found = facts(tmp_path)
    reference = found["adam_reference"]["threshold"]
    assert reference["stable"] < reference["unstable"] <= 1.1 * reference["stable"]
    rates = [row["lr_adam"] for row in found["rows"]]
    assert rates[1] == pytest.approx((reference["stable"] * reference["unstable"]) ** 0.5)
    assert rates[0] <= rates[1]
    assert RateLaw.from_json(found["laws"]["adam"]).form == "square_root"


def test_entropy_on_the_meta_networks_of_a_bundle(folder: Path, tmp_path: Path) -> None:
    options = ["--data", str(folder / "data.npz"), "-o", str(tmp_path), "--parameters", "meta"]
    options += ["--objective", "entropy", "--batch-sizes", "4,20", "--batches", "2", "--iterations", "8"]
    result = CliRunner().invoke(command, [str(whole_bundle()), *options])
    assert result.exit_code == 0, result.exception
    found = facts(tmp_path)
    assert found["curvature"] == "magnitude" and found["description"]["operator"] == "hessian"
    assert all(row["lr_sgd"] > 0 for row in found["rows"])


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (("--batch-sizes", "8,61"), DataSetTooSmallError, "a batch of 61 is larger than the data set of 60"),
        (("--batch-sizes", "8"), UsageError, "two positive sizes"),
        (("--batch-sizes", "8,x"), UsageError, "whole numbers"),
    ],
)
def test_errors_say_what_to_do(
    folder: Path, tmp_path: Path, arguments: tuple[str, ...], kind: type, message: str
) -> None:
    result = run(folder, tmp_path, "-q", *arguments)
    assert isinstance(result.exception, kind), result.exception
    assert message in str(result.exception)
