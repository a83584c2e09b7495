"""`edgetta plan`: the choice and its price for people and programs, and what is said where nothing fits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgetta.cli import main
from edgetta.memory.accuracy_costs import AccuracyCost
from tests.memory.costs import cost_model
from tests.memory.test_accuracy_costs import costs
from tests.small_bundle import copy_of_it, edit_manifest, whole_bundle

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """The small bundle with a cost model."""
    path = copy_of_it(tmp_path / "bundle")
    edit_manifest(path, lambda manifest: manifest.update(cost_model=cost_model().to_json()))
    return path


def plan(bundle: Path, *arguments: object) -> int:
    return main(["plan", str(bundle), *map(str, arguments)])


def test_for_people(bundle: Path, capsys: Captured) -> None:
    assert plan(bundle, "--budget", "60MiB", "--batch", 64) == 0
    printed = capsys.readouterr().out
    for words in (
        "small, 64 frames per step",
        "60.0 MiB above the loaded model",
        "learns from as many as configured in slices of 16, bits kept for the backward",
        "torch, freed memory returned at once",
        "statistics of the source, moved as far as there is evidence",
        "kept between forward and backward, ",
        "times plain inference on this engine",
        "0.003",
        "gradients through the statistics of all images at once, for slices of 16: not measured",
        "at export, 2026-11-27, x86_64, 2 threads, torch 2.13.0",
    ):
        assert words in printed, words


def test_what_is_given_up(bundle: Path, capsys: Captured) -> None:
    assert plan(bundle, "--budget", "1GiB") == 0
    assert "given up" in (printed := capsys.readouterr().out) and "nothing" in printed
    assert plan(bundle, "--budget", "1GiB", "--slice", 4, "--recompute") == 0
    printed = capsys.readouterr().out
    assert "for slices of 4: not measured" in printed and "nothing kept, forward run again" in printed


def test_costs_that_were_measured_are_told(bundle: Path, capsys: Captured) -> None:
    assert plan(bundle, "--budget", "20MB") == 0
    assert "costs not measured; `edgetta prepare --costs` does" in capsys.readouterr().out
    found = costs(slice_1=AccuracyCost(1.25, 0.25))
    edit_manifest(bundle, lambda manifest: manifest.update(accuracy_costs=found.to_json()))
    assert plan(bundle, "--budget", "1GB", "--slice", 1) == 0
    printed = capsys.readouterr().out
    assert "for slices of 1: +1.25 ± 0.25 points of error" in printed
    assert "21.50 % error at its best on 1024 images under spatter; without" in printed
    assert "without adaptation +0.10 ± 0.10 points of error" in printed
    assert plan(bundle, "--budget", "1GB", "--slice", 1, "--json") == 0
    entry = json.loads(capsys.readouterr().out)["given_up"][0]
    assert (entry["points"], entry["standard_error"]) == (1.25, 0.25)


def test_for_programs(bundle: Path, capsys: Captured) -> None:
    assert plan(bundle, "--budget", "60MB", "--batch", 32, "--engine", "onnxruntime", "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert data["bundle"] == "small" and data["batch"] == 32 and data["budget_bytes"] == 60_000_000
    assert data["choice"]["engine"] == "onnxruntime" and data["predicted_bytes"] * 1.05 <= 60_000_000
    assert sum(data["components"].values()) == data["predicted_bytes"]


def test_a_device_gives_a_budget_to_start_from(bundle: Path, capsys: Captured) -> None:
    assert plan(bundle, "--device", "orin-nano-8gb") == 0
    printed = capsys.readouterr().out
    assert "3.25 GiB above the loaded model (half of what a Jetson Orin Nano 8GB has left" in printed
    assert plan(bundle, "--device", "orin-nano-8gb", "--budget", "60MiB") == 0
    assert "60.0 MiB above the loaded model\n" in capsys.readouterr().out, "a budget that is given wins"
    assert plan(bundle, "--device", "orin-nano-8gb", "--budget", "9GiB") == 0
    assert "more than the 8.00 GiB of a Jetson Orin Nano 8GB" in capsys.readouterr().out, "it advises, and never gates"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give --budget SIZE, or --device NAME"),
        (("--budget", "much"), "'much' is no size; write a number with B, kB"),
        (("--device", "orin-nano"), "no device profile 'orin-nano'"),
        (("--budget", "1MiB"), "a budget of 1.0 MiB is too small to adapt small: the smallest that does is"),
        (("--budget", "1GiB", "--engine", "tensorrt"), "was not measured for what was asked for (engine tensorrt)"),
        (("--budget", "1GiB", "--slice", "-3"), "-3 is not in the range"),
    ],
)
def test_what_cannot_be_planned(bundle: Path, arguments: tuple[str, ...], message: str, capsys: Captured) -> None:
    assert plan(bundle, *arguments) == 2
    line = capsys.readouterr().err
    assert message in line and line.count("\n") == 1


def test_a_bundle_without_a_cost_model(capsys: Captured) -> None:
    assert plan(whole_bundle(), "--budget", "1GiB") == 2
    assert "has no cost model, without which nothing can be planned; export it again" in capsys.readouterr().err


def test_a_cost_model_that_is_damaged_is_a_damaged_bundle(bundle: Path, capsys: Captured) -> None:
    edit_manifest(bundle, lambda manifest: manifest["cost_model"]["points"][0].update(images=-1))
    assert plan(bundle, "--budget", "1GiB") == 4
    assert "its memory model cannot be used ('-1' is no whole number" in capsys.readouterr().err


def test_settings_from_a_file(bundle: Path, tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "edgetta.toml").write_text('budget = "60MiB"\n[plan]\nbatch = 16\nrecompute = true\n')
    assert plan(bundle, "--config", tmp_path / "edgetta.toml") == 0
    assert "nothing kept, forward run again" in capsys.readouterr().out
