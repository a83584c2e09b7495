"""`edgetta prepare` with adversarial training and RiFT: one job, one report, the same from two processes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from edgetta.bundle import read_bundle
from edgetta.cli import main
from edgetta.offline.rift import job
from tests.cli.test_prepare import without_seconds
from tests.offline.attack.small_models import images, network, trained
from tests.offline.test_curvature_parallel import free_port, leave

Captured = pytest.CaptureFixture[str]
NET = """
from torch import nn

from tests.offline.attack.small_models import network


def build():
    return network()


def build_larger():
    layers = list(network())
    return nn.Sequential(*layers[:-2], nn.AvgPool2d(2), *layers[-2:])  # images of 16 by 16
"""
TRAINING = ("--adversarial-training", "--training-epochs", 2, "--training-rate", 0.02)
ALL = (*TRAINING, "--rift", "--rift-rate", 0.01)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("inputs")
    (where / "net.py").write_text(NET)
    save_file(trained(network(), steps=40).state_dict(), where / "trained.safetensors")
    x, y = images(800, seed=2)
    pixels = (x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    np.savez(where / "data.npz", images=pixels, labels=y.numpy())
    np.savez(where / "few.npz", images=pixels[:100], labels=y.numpy()[:100])
    larger = np.kron(pixels, np.ones((1, 2, 2, 1), np.uint8))  # corruptions want 16 pixels
    random = np.random.default_rng(0)  # a fifth of the labels mean nothing, so that no prediction is certain
    labels = np.where(random.random(len(y)) < 0.2, random.integers(0, 4, len(y)), y.numpy())
    np.savez(where / "larger.npz", images=larger, labels=labels)
    return where


def arguments(inputs: Path, output: Path, *options: object, data: str = "data.npz") -> list[str]:
    fixed = ["prepare", f"{inputs / 'net.py'}:build", "--weights", inputs / "trained.safetensors", "--input-size", 8]
    if data == "larger.npz":
        fixed = ["prepare", f"{inputs / 'net.py'}:build_larger", "--input-size", 16]
    fixed += ["--data", inputs / data, "-o", output, "--cuts", "2,5", "--kernel", 1, "--epochs", 1, "--batch", 32]
    fixed += ["--epsilon", "6/255", "--attack-steps", 4, "--flip", 0, "--rift-epochs", 2, "--robust-batch", 32]
    fixed += ["--validation", 0.3, "--max-loss", 4, "--criticality-images", 150]
    return [str(argument) for argument in (*fixed, *options)]


def stopped_at(call: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with Ctrl-C at that call."""
    seen = [0]

    def counted(*positional: Any, **named: Any) -> Any:
        seen[0] += 1
        if seen[0] == call:
            raise KeyboardInterrupt
        return function(*positional, **named)

    return counted


def test_all_stages_are_one_job_with_one_report(inputs: Path, tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "prepared"
    options = (*ALL, "--curvature", "--curvature-batch-sizes", "32,64", "--training-rate", 0.1)
    assert main(arguments(inputs, out, *options, data="larger.npz")) == 0
    printed = capsys.readouterr().out
    report = json.loads((out / "report.json").read_text())
    stages = {stage["name"]: stage for stage in report["stages"]}
    assert list(stages) == ["adversarial_training", "rift", "meta_networks", "warm_up", "curvature"]
    for earlier, later in zip(report["stages"][1:4], report["stages"][2:5], strict=True):
        assert earlier["after"]["clean"] == later["before"]["clean"], "each begins where the one before it ended"
    assert stages["adversarial_training"]["after"] == stages["rift"]["before"]
    assert stages["adversarial_training"]["before"]["robust"] < stages["adversarial_training"]["after"]["robust"]
    assert stages["rift"]["after"]["robust"] is not None and stages["rift"]["facts"]["robust_loss_upper"] > 0
    assert len(stages["adversarial_training"]["facts"]["epochs"]) == 2
    assert report["rift"]["criticality"]["scores"] and report["source_accuracy"] == stages["rift"]["after"]["clean"]
    page = (out / "report.html").read_text()
    for words in ("adversarial training", "RiFT", "warm-up", "Learning rate by batch size"):
        assert words in page
        assert words in printed or words == "Learning rate by batch size"
    assert page.count("<svg") == 4 and str(tmp_path) not in page
    names = ["meta.safetensors", "prepared.json", "rates.json", "report.html", "report.json", "weights.safetensors"]
    assert sorted(path.name for path in out.iterdir()) == names

    # What ships is the backbone that the stages left, not the one that was given.
    shipped = load_file(out / "weights.safetensors")
    assert not torch.equal(shipped["0.weight"], network()[0].weight)
    bundle = tmp_path / "bundle"
    assert main(["export", str(out), "-o", str(bundle), "--no-measure"]) == 0
    told = read_bundle(bundle).provenance["preparation"]
    assert [stage["name"] for stage in told["stages"]] == list(stages)


@pytest.fixture(scope="module")
def straight(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A preparation that nothing interrupted."""
    out = tmp_path_factory.mktemp("straight") / "prepared"
    assert main(arguments(inputs, out, *ALL, "--quiet")) == 0
    return out


@pytest.mark.parametrize(("function", "call"), [("fine_tune", 2), ("interpolate", 3), ("measure_criticality", 1)])
def test_interrupted_in_a_stage_it_continues_to_the_same_end(
    inputs: Path,
    straight: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Captured,
    function: str,
    call: int,
) -> None:
    stopped = tmp_path / "stopped"
    monkeypatch.setattr(job, function, stopped_at(call, getattr(job, function)))
    assert main(arguments(inputs, stopped, *ALL)) == 130
    assert f"what is done is kept in {stopped}" in capsys.readouterr().err
    monkeypatch.undo()
    assert main(arguments(inputs, stopped, *ALL, "--max-loss", 5)) == 2
    assert "was begun with other settings (robust" in capsys.readouterr().err
    monkeypatch.setattr("edgetta.offline.robust_stages.adversarial_training", None)  # finished: not done again
    assert main(arguments(inputs, stopped, *ALL)) == 0
    assert "continuing from what is done" in capsys.readouterr().err
    for name in ("weights.safetensors", "meta.safetensors"):
        assert (stopped / name).read_bytes() == (straight / name).read_bytes()
    a, b = (json.loads((folder / "report.json").read_text()) for folder in (straight, stopped))
    for report in (a, b):
        report["rift"]["criticality"]["seconds"] = 0
        for stage in report["stages"]:
            stage["facts"].pop("seconds", None)
    assert without_seconds(a) == without_seconds(b)


@pytest.mark.parametrize(
    ("options", "data", "message"),
    [
        (("--rift", "--max-loss", 0.2), "data.npz", "validation images cannot show with 95 % confidence"),
        (("--rift", "--validation", 0), "data.npz", "the share to keep apart must be above 0"),
        ((*TRAINING, "--robust-batch", 500), "few.npz", "fewer than one batch of 500; give more images"),
        (("--curvature",), "data.npz", "images of 8 by 8 pixels are too small; enlarge to 16"),
        (("--curvature", "--held-out", 0.05), "larger.npz", "40 held-out images are fewer than one batch of 64"),
        (("--rift", "--epsilon", "0"), "data.npz", "--epsilon 0 must be above 0"),
        (("--rift", "--epsilon", "90/255"), "data.npz", "no more than guessing among 4 classes gives"),
        ((*TRAINING, "--training-rate", "1e30"), "data.npz", "lower the learning rate of a training"),
    ],
)
def test_what_stands_in_the_way(
    inputs: Path, tmp_path: Path, capsys: Captured, options: tuple[object, ...], data: str, message: str
) -> None:
    assert main(arguments(inputs, tmp_path / "out", *options, "--quiet", data=data)) != 0
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("edgetta: error: ") and message in line


def worker(rank: int, folder: str, command: list[str]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = (Path(folder) / "port").read_text()
    dist.init_process_group("gloo")  # as `torchrun` would have `edgetta prepare` do it
    code = main(command)
    (Path(folder) / f"code-{rank}").write_text(str(code))
    leave()


@pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")
def test_two_processes_give_what_one_gives(inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "port").write_text(str(free_port()))
    command = arguments(inputs, tmp_path / "two", *ALL, "--quiet")
    torch.multiprocessing.spawn(worker, args=(str(tmp_path), command), nprocs=2)
    assert [(tmp_path / f"code-{rank}").read_text() for rank in (0, 1)] == ["0", "0"]
    command[command.index(str(tmp_path / "two"))] = str(tmp_path / "one")
    assert main(command) == 0
    one, two = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("one", "two"))
    assert one["rift"]["rows"] == two["rift"]["rows"]
    for a, b in zip(one["stages"], two["stages"], strict=True):
        assert (a["name"], a["before"], a["after"]) == (b["name"], b["before"], b["after"])
    for name in ("weights.safetensors", "meta.safetensors"):
        first, second = (load_file(tmp_path / folder / name) for folder in ("one", "two"))
        for tensor, value in first.items():
            torch.testing.assert_close(second[tensor], value, rtol=1e-4, atol=1e-5, msg=tensor)
