"""`edgetta attack` as a user sees it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file

from edgetta.cli.attack import command
from edgetta.errors import UsageError
from edgetta.offline.attack import PGD, Threat, evaluate
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
    save_file(trained(network()).state_dict(), where / "first.safetensors")
    save_file(trained(network(), steps=20).state_dict(), where / "second.safetensors")
    x, y = images(60, seed=2)
    pixels = (x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    np.savez(where / "data.npz", images=pixels, labels=y.numpy())
    published = where / "made-C"
    published.mkdir()
    np.save(published / "labels.npy", np.tile(y.numpy(), 5))
    np.save(published / "dark.npy", np.concatenate([pixels // (2 + severity) for severity in range(5)]))
    return where


def run(folder: Path, *arguments: str, data: str | None = None) -> Result:
    fixed = ["--input-size", "8", "--data", data or str(folder / "data.npz"), "--epsilon", "8/255"]
    return CliRunner().invoke(
        command, [f"{folder / 'net.py'}:build", "--weights", str(folder / "first.safetensors"), *fixed, *arguments]
    )


def written(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def test_accuracies_are_those_of_the_library(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "attack.json"
    result = run(folder, "--steps", "7", "--restarts", "2", "-o", str(out), "--corrupted", str(folder / "made-C"))
    assert result.exit_code == 0, result.exception
    x, y = images(60, seed=2)
    bytes_ = (x * 255).round().to(torch.uint8)
    expected = evaluate(trained(network()), bytes_, y, PGD(Threat(), 7, restarts=2))
    found = written(out)
    assert found["clean"]["accuracy"] == float(expected.clean.float().mean())
    assert expected.robust is not None
    assert found["robust"]["accuracy"] == pytest.approx(float(expected.robust.float().mean()))
    assert found["corrupted"]["images"] == 300 and found["attack"] == "PGD-7, 2 restarts"
    assert found["threat"] == "linf 8/255"
    for word in ("clean", "robust", "dark", "PGD-7", f"{100 * found['clean']['accuracy']:.2f} %"):
        assert word in result.output


@pytest.mark.parametrize("attack", ["apgd", "apgd-dlr"])
def test_two_models_are_compared_on_the_same_images(folder: Path, tmp_path: Path, attack: str) -> None:
    out = tmp_path / "attack.json"
    options = ("--attack", attack, "--steps", "5", "--images", "30", "-o", str(out))
    result = run(folder, *options, "--against", str(folder / "second.safetensors"))
    assert result.exit_code == 0, result.exception
    found = written(out)
    assert found["first"]["robust"]["images"] == 30
    lost = found["robust_loss"]
    difference = found["first"]["robust"]["accuracy"] - found["second"]["robust"]["accuracy"]
    assert lost["value"] == pytest.approx(difference) and lost["lower"] < lost["value"] < lost["upper"]
    assert "robust accuracy lost" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--epsilon", "8/0"), "is no number; write 0.03 or 8/255"),
        (("--epsilon", "-1"), "must be above 0"),
        (("--corrupted", "7"), "severities go from 1 to 5"),
        (("--corrupted", "nowhere"), "a severity from 1 to 5"),
        (("--device", "cuda:99"), "no CUDA device"),
        (("--device", "tpu9"), "is unknown"),
        (("--attack", "autoattack", "--steps", "4"), "nothing to tune"),
        (("-o", "no/such/folder.json"), "there is no folder"),
    ],
)
def test_errors_say_what_to_do(folder: Path, arguments: tuple[str, ...], message: str) -> None:
    if arguments[0] == "--device" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    result = run(folder, "-q", *arguments)
    assert isinstance(result.exception, UsageError), result.exception
    assert message in str(result.exception)


def test_labels_out_of_range_are_named(folder: Path, tmp_path: Path) -> None:
    x, y = images(8)
    np.savez(tmp_path / "bad.npz", images=(x * 255).to(torch.uint8).permute(0, 2, 3, 1).numpy(), labels=y.numpy() + 3)
    result = run(folder, "-q", data=str(tmp_path / "bad.npz"))
    assert isinstance(result.exception, UsageError)
    assert "has the label 6, and the model has 4 classes" in str(result.exception)
