"""`edgetta curvature` as a user sees it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from edgetta.cli.curvature import command
from edgetta.errors import EdgettaError, UsageError
from edgetta.offline.curvature import DataSetTooSmallError, MemoryLimitError, NotFiniteError, load_spectrum
from tests.small_bundle import whole_bundle

NET = """
import torch
from torch import nn


def build(num_classes=5):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=4), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, num_classes)
    )


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return 2 * ctx.saved_tensors[0] * grad


class OnceOnly(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = build()

    def forward(self, x):
        return Once.apply(self.net(x))


def once():
    return OnceOnly()


def broken():
    net = build()
    net[4].weight.data[0, 0] = float("nan")
    return net
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with networks, and images with five classes."""
    where = tmp_path_factory.mktemp("inputs")
    (where / "net.py").write_text(NET)
    generator = np.random.default_rng(0)
    labels = np.arange(40) % 5
    images = generator.integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    np.savez(where / "data.npz", images=images, labels=labels)
    return where


def run(folder: Path, out: Path, *arguments: str, model: str = "net.py:build") -> Result:
    where = str(folder / model) if model.startswith("net.py") else model
    fixed = ("--input-size", "16", "--data", str(folder / "data.npz"), "--iterations", "6", "--probes", "2")
    return CliRunner().invoke(command, [where, *fixed, "-o", str(out), *arguments])


def facts(out: Path) -> dict[str, Any]:
    return json.loads((out / "spectrum.json").read_text())


def test_it_writes_a_spectrum_and_says_what_it_found(folder: Path, tmp_path: Path) -> None:
    result = run(folder, tmp_path / "deep" / "out")
    assert result.exit_code == 0, result.output
    out = tmp_path / "deep" / "out"
    found = facts(out)
    assert found["probes"] == 2 and found["iterations"] == 6 and found["description"]["samples"] == 40
    assert found["largest"] > 0 > found["smallest"]
    spectrum = load_spectrum(out)
    assert spectrum.largest[0] == found["largest"]
    assert f"{found['largest']:.5g}" in result.output and "445 parameters" in result.output
    assert (out / "spectrum.svg").stat().st_size > 1000
    assert not (out / "state").exists()


@pytest.mark.parametrize(
    ("arguments", "dimension"),
    [
        (("--parameters", "4"), 325),
        (("--operator", "ggn", "--statistics", "batch", "--batch", "10"), 445),
        (("--operator", "fisher", "--double", "--samples", "7"), 445),
        (("--objective", "entropy", "--memory-limit", "1"), 445),
        pytest.param(
            ("--parameters", "adapted", "--cuts", "0,2", "--objective", "entropy", "--regulariser", "0.5"),
            0,
            marks=pytest.mark.full,
        ),
    ],
)
def test_options_choose_the_matrix(folder: Path, tmp_path: Path, arguments: tuple[str, ...], dimension: int) -> None:
    result = run(folder, tmp_path, "-q", *arguments)
    assert result.exit_code == 0, result.output or result.exception
    assert result.output == ""
    found = facts(tmp_path)
    if "adapted" in arguments:  # however many they are
        tensors = found["description"]["tensors"]
        assert tensors[0] == "metas/0/conv" and any(name.startswith("part1/weight") for name in tensors)
    else:
        assert found["dimension"] == dimension
    if "fisher" in arguments:
        assert found["description"]["dtype"] == "float64" and found["description"]["samples"] == 7
        assert found["smallest"] > -1e-9
    assert found["description"]["batch_norm"] == ("batch" if "batch" in arguments else "source")


def test_a_bundle_is_measured_by_what_adapts(folder: Path, tmp_path: Path) -> None:
    bundle = str(whole_bundle())
    result = run(folder, tmp_path, "--parameters", "adapted", "--objective", "entropy", model=bundle)
    assert isinstance(result.exception, UsageError) and "--input-size" in str(result.exception)
    options = [bundle, "--data", str(folder / "data.npz"), "-o", str(tmp_path), "--iterations", "4", "--probes", "1"]
    result = CliRunner().invoke(command, [*options, "--parameters", "adapted", "--objective", "entropy"])
    assert result.exit_code == 0, result.exception
    assert facts(tmp_path)["description"]["tensors"][0] == "metas/0/conv"
    result = CliRunner().invoke(command, options)
    assert isinstance(result.exception, UsageError) and "--parameters adapted" in str(result.exception)


def test_it_can_be_resumed(folder: Path, tmp_path: Path) -> None:
    assert run(folder, tmp_path, "--resumable").exit_code == 0
    first = facts(tmp_path)
    states = sorted(path.parent.name for path in (tmp_path / "state").rglob("state.json"))
    assert states == ["probe-000", "probe-001"]
    assert run(folder, tmp_path, "--resumable").exit_code == 0
    assert facts(tmp_path)["largest"] == first["largest"]
    other = run(folder, tmp_path, "--resumable", "--seed", "5")
    assert isinstance(other.exception, EdgettaError) and "holds another run" in str(other.exception)


@pytest.mark.parametrize(
    ("arguments", "model", "kind", "message"),
    [
        ((), "net.py:once", EdgettaError, "cannot be differentiated twice"),
        ((), "net.py:broken", NotFiniteError, "the loss is nan"),
        (
            ("--memory-limit", "1", "--statistics", "batch", "--random-weights"),
            "resnet20",
            MemoryLimitError,
            "cannot be split",
        ),
        (("--parameters", "head"), "net.py:build", UsageError, "no module or parameter named 'head'"),
        (("--statistics", "stream"), "net.py:build", UsageError, "belongs to --parameters adapted"),
        (("--regulariser", "1"), "net.py:build", UsageError, "needs --parameters adapted"),
        (("--device", "cuda:nine"), "net.py:build", UsageError, "write cpu, cuda"),
        (("--num-classes", "3"), "net.py:build", UsageError, "has the label 4, and the model has 3 classes"),
    ],
)
def test_errors_say_what_to_do(
    folder: Path, tmp_path: Path, arguments: tuple[str, ...], model: str, kind: type, message: str
) -> None:
    result = run(folder, tmp_path, "-q", *arguments, model=model)
    assert isinstance(result.exception, kind), result.exception
    assert message in str(result.exception)


def test_a_single_sample_left_over_is_an_error(folder: Path, tmp_path: Path) -> None:
    (folder / "flat.py").write_text(
        "from torch import nn\n"
        "def build():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(768, 3), nn.BatchNorm1d(3), nn.Linear(3, 5))\n"
    )
    options = ["--input-size", "16", "--data", str(folder / "data.npz"), "-o", str(tmp_path), "--statistics", "batch"]
    result = CliRunner().invoke(
        command, [f"{folder / 'flat.py'}:build", *options, "--batch", "13", "--random-weights"]
    )
    assert isinstance(result.exception, DataSetTooSmallError) and "no single sample" in str(result.exception)
