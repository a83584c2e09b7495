"""`edgetta rift` as a user sees it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from edgetta.cli.prepare import command as prepare
from edgetta.cli.rift import command
from edgetta.errors import EdgettaError, UsageError
from edgetta.offline.rift import NotRobustError
from tests.offline.attack.small_models import images, network, trained

NET = """
from tests.offline.attack.small_models import network


def build():
    return network()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("inputs")
    (where / "net.py").write_text(NET)
    save_file(trained(network(), steps=60).state_dict(), where / "robust.safetensors")
    x, y = images(800, seed=2)
    pixels = (x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    np.savez(where / "data.npz", images=pixels, labels=y.numpy())
    np.savez(where / "bad.npz", images=pixels, labels=y.numpy() + 2)
    return where


def run(folder: Path, out: Path, *arguments: str, data: str = "data.npz", epsilon: str = "2/255") -> Result:
    fixed = [f"{folder / 'net.py'}:build", "--weights", str(folder / "robust.safetensors"), "--input-size", "8"]
    fixed += ["--data", str(folder / data), "-o", str(out), "--epsilon", epsilon, "--steps", "4", "--flip", "0"]
    fixed += [
        "--epochs",
        "2",
        "--batch",
        "32",
        "--validation",
        "0.3",
        "--max-loss",
        "4",
        "--criticality-images",
        "150",
    ]
    return CliRunner().invoke(command, [*fixed, *arguments])


def test_results_weights_pictures_and_table(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "rift"
    result = run(folder, out, "--controls", "--learning-rate", "0.01")
    assert result.exit_code == 0, result.exception
    report = json.loads((out / "report.json").read_text())
    rows = {row["variant"]: row for row in report["rows"]}
    assert set(rows) == {"source", "rift", "bn_only", "most_critical", "last_layer", "all_layers", "joint"}
    for row in rows.values():
        assert row["variant"] in result.output and f"{100 * row['clean']:.2f}" in result.output
    (picked,) = rows["rift"]["modules"]
    assert report["criticality"]["scores"][0]["name"] in result.output and picked in result.output
    written, source = load_file(out / "model.safetensors"), load_file(folder / "robust.safetensors")
    assert {n for n, v in written.items() if not torch.equal(v, source[n])} <= {f"{picked}.weight"}
    assert all((out / name).stat().st_size > 1000 for name in ("criticality.svg", "interpolation.svg"))
    again = run(folder, out, "--controls", "--learning-rate", "0.01")
    assert again.exit_code == 0 and json.loads((out / "report.json").read_text()) == report
    other = run(folder, out, "--controls", "--learning-rate", "0.02")
    assert isinstance(other.exception, UsageError) and "other settings" in str(other.exception)


def test_weights_go_on_to_prepare(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "rift"
    assert run(folder, out, "--learning-rate", "0.02", "--candidates", "1").exit_code == 0
    options = ["--weights", str(out / "model.safetensors"), "--input-size", "8", "--data", str(folder / "data.npz")]
    options += ["-o", str(tmp_path / "prepared"), "--epochs", "1", "--kernel", "1", "-q", "--cuts", "2,5"]
    result = CliRunner().invoke(prepare, [f"{folder / 'net.py'}:build", *options])
    assert result.exit_code == 0, result.exception
    written, shipped = load_file(out / "model.safetensors"), load_file(tmp_path / "prepared" / "weights.safetensors")
    assert set(written) == set(shipped) and all(torch.equal(value, shipped[name]) for name, value in written.items())


def test_a_model_that_is_not_robust_is_trained_first(folder: Path, tmp_path: Path) -> None:
    options = ("--epsilon", "60/255", "-q")
    refused = run(folder, tmp_path / "plain", *options)
    assert isinstance(refused.exception, NotRobustError) and "Train adversarially first" in str(refused.exception)
    options = (
        "--adversarial-training",
        "--training-epochs",
        "2",
        "--training-rate",
        "0.05",
        "-q",
        "--schedule",
        "published",
    )
    result = run(folder, tmp_path / "trained", *options)
    assert result.exit_code == 0 and result.output == "", result.exception
    assert (tmp_path / "trained" / "adversarial" / "training.safetensors").is_file()
    assert run(folder, tmp_path / "trained", *options).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "data", "message"),
    [
        ((), "bad.npz", "has the label 5, and the model has 4 classes"),
        (
            ("--max-loss", "0.2"),
            "data.npz",
            "validation images cannot show with 95 % confidence that at most 0.2 points",
        ),
        (("--validation", "0"), "data.npz", "the share to keep apart must be above 0"),
        (("--learning-rate", "fast"), "data.npz", "is no number"),
        (("--learning-rate", "1e30"), "data.npz", "lower the learning rate"),
        (("--corrupted", "9"), "data.npz", "severities go from 1 to 5"),
        (("--batch", "100000"), "data.npz", "fewer than one batch"),
    ],
)
def test_errors_say_what_to_do(
    folder: Path, tmp_path: Path, arguments: tuple[str, ...], data: str, message: str
) -> None:
    result = run(folder, tmp_path / "rift", "-q", *arguments, data=data)
    assert isinstance(result.exception, EdgettaError), result.exception
    assert message in str(result.exception)


def test_random_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    options = ["resnet20", "--data", str(folder / "data.npz"), "-o", str(tmp_path / "rift")]
    result = CliRunner().invoke(command, options)
    assert isinstance(result.exception, UsageError) and "has random weights" in str(result.exception)
