"""The rate law on its way: measured by prepare, written by export, shown by inspect, taken by run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgetta.bundle import read_bundle
from edgetta.cli import main
from edgetta.rate_law import RateLaw
from edgetta.runtime import Runtime
from tests.tiny_model import CUTS, pictures, write_model

Captured = pytest.CaptureFixture[str]


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def prepare(folder: Path, *options: object) -> int:
    """Warmed up, so that some predictions are confident; 16 pixels, which the corruptions need."""
    images, labels = pictures(240)
    large = np.repeat(np.repeat(images, 2, axis=1), 2, axis=2)
    np.savez(folder / "train.npz", images=large, labels=labels)
    given = ("--data", folder / "train.npz", "--input-size", 16, "--cuts", CUTS, "--held-out", 0.4)
    warm_up = ("--epochs", 40, "--batch", 32, "--jitter", 0, "--grey", 0, "--learning-rate", 0.1)
    return run("prepare", write_model(folder), "-o", folder / "prepared", *given, *warm_up, *options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A preparation with a rate law, and its bundle."""
    folder = tmp_path_factory.mktemp("rates")
    assert prepare(folder, "--curvature", "--curvature-batch-sizes", "16,64") == 0
    assert run("export", folder / "prepared", "-o", folder / "bundle", "--no-measure", "--quiet") == 0
    return folder


def test_the_law_travels_from_prepare_to_the_runtime(folder: Path) -> None:
    facts = json.loads((folder / "prepared" / "rates.json").read_text())
    law = RateLaw.from_json(facts["law"])
    assert law.batch_sizes == (16, 64) and len(law.divergence) == 2 and law.momentum == 0.9
    assert law.rate(64) == pytest.approx(min(facts["tuning"]["errors"][1:], key=lambda e: (e[1], e[0]))[0])
    assert facts["domains"] == ["speckle_noise", "gaussian_blur", "spatter", "saturate"]
    assert [len(rung["largest"]) for rung in facts["eigenvalues"]] == [4, 4]
    bundle = read_bundle(folder / "bundle")
    assert bundle.rate_law == law and bundle.config.learning_rate is None
    runtime = Runtime(bundle, "torch")
    runtime.step(np.zeros((16, 16, 16, 3), np.uint8))
    state = runtime.adapter.state
    assert runtime.adapter.learner.rate.choice(16, state.damping).rate == pytest.approx(law.rate(16))


def test_inspect_and_run_say_which_rate_and_why(folder: Path, tmp_path: Path, capsys: Captured) -> None:
    law = read_bundle(folder / "bundle").rate_law
    assert law is not None
    assert run("inspect", folder / "bundle") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"learning rate {law.rate(64):.3g} at 64 images (the rate law at 64 images, {law.regime(64)})" in shown
    assert "domains speckle_noise, gaussian_blur, spatter, saturate" in shown and "at batch 16," in shown
    np.save(tmp_path / "frames.npy", np.zeros((40, 16, 16, 3), np.uint8))
    report = tmp_path / "run.json"
    stream = ("run", folder / "bundle", tmp_path / "frames.npy", "--json", report)
    assert run(*stream, "--batch", 20, "--watched", 0) == 0
    assert f"learning rate {law.rate(20):.3g}: the rate law at 20 images" in " ".join(capsys.readouterr().out.split())
    assert json.loads(report.read_text())["learning_rate"] == pytest.approx(law.rate(20))
    assert run(*stream, "--batch", 4) == 0
    assert "the rate law at 32 images" in json.loads(report.read_text())["learning_rate_reason"], "of their window"
    assert run(*stream, "--learning-rate", 0.25) == 0
    facts = json.loads(report.read_text())
    assert (facts["learning_rate"], facts["learning_rate_reason"]) == (0.25, "as given")


def test_a_law_of_another_objective_does_not_ship(folder: Path, tmp_path: Path, capsys: Captured) -> None:
    assert run("export", folder / "prepared", "-o", tmp_path / "other", "--regulariser", 2) == 2
    error = capsys.readouterr().err
    assert "was measured with regulariser 0.5, not 2; prepare again, or give --learning-rate" in error
    given = ("--regulariser", 2, "--learning-rate", 0.01, "--no-measure", "--quiet")
    assert run("export", folder / "prepared", "-o", tmp_path / "other", *given) == 0


def test_bad_options_are_named_before_anything_long(tmp_path: Path, capsys: Captured) -> None:
    for sizes, words in (
        ("8,16", "give two positive sizes at least, 64 among them"),
        ("64", "give two positive sizes"),
        ("8,x", "write whole numbers separated by commas"),
    ):
        assert prepare(tmp_path, "--curvature", "--curvature-batch-sizes", sizes) == 2
        assert words in capsys.readouterr().err
    assert prepare(tmp_path, "--curvature", "--curvature-batch-sizes", "64,128") == 2
    assert "96 held-out images are fewer than one batch of 128" in capsys.readouterr().err


def test_a_damaged_law_is_named(folder: Path, tmp_path: Path, capsys: Captured) -> None:
    path = folder / "prepared" / "rates.json"
    whole = path.read_bytes()
    try:
        path.write_text('{"law": {"version": 1}}')
        assert run("export", folder / "prepared", "-o", tmp_path / "bundle") == 4
        assert "unusable rate law" in capsys.readouterr().err
        path.write_text("{")
        assert run("export", folder / "prepared", "-o", tmp_path / "bundle") == 4
        assert "is damaged" in capsys.readouterr().err
    finally:
        path.write_bytes(whole)
