"""`edgetta export`: from a named model to a bundle that runs, and what stands in the way."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from edgetta.adaptation.config import AdaptConfig
from edgetta.bundle import open_engine, read_bundle
from edgetta.cli import main
from edgetta.cli.export import command
from edgetta.export import recipe as recipes
from edgetta.export.recipe import Recipe, load
from edgetta.sources.labelled import read_pictures
from tests.tiny_model import CLASSES, CUTS, pictures, write_folder, write_model

Captured = pytest.CaptureFixture[str]
SIZE = ("--input-size", "8")


@pytest.fixture(autouse=True)
def no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGETTA_DEBUG", raising=False)


@pytest.fixture
def model(tmp_path: Path) -> str:
    return write_model(tmp_path)


def export(*arguments: object) -> int:
    """Without measuring what steps take, which has a test of its own."""
    return main(["export", *map(str, arguments), "--no-measure"])


def error_of(capsys: Captured) -> str:
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("edgetta: error: ")
    return line


def test_a_model_from_a_file_with_everything_said(model: str, tmp_path: Path, capsys: Captured) -> None:
    photos = write_folder(tmp_path / "photos", 30)
    (photos / "red" / "broken.png").write_bytes(b"x")
    (tmp_path / "names.txt").write_text("\n".join(CLASSES))
    out = tmp_path / "bundle"
    options = ("--cuts", CUTS, "--calibration", photos, "--classes", tmp_path / "names.txt", "--kernel", 3)
    adaptation = ("--learning-rate", 0.002, "--when", "every 4", "--window", 32)
    assert export(model, "-o", out, *SIZE, *options, *adaptation) == 0
    printed = capsys.readouterr().out
    bundle = read_bundle(out)
    assert bundle.cuts == tuple(CUTS.split(",")) and bundle.classes == CLASSES
    assert bundle.config == AdaptConfig(learning_rate=0.002, when="every 4", window=32)
    assert bundle.programs.parameters.shapes["metas.1.conv"] == (8, 6, 3, 3) and bundle.name == "net.py:build"
    assert bundle.content is not None and bundle.content.images == 30
    for words in ("images 3 x 8 x 8, 3 classes", "(as given)", "of 30 images from", "1 skipped"):
        assert words in printed
    assert "6 -> 8, 3x3, stride 2" in printed
    assert "self-test on torch" in printed and "self-test on onnxruntime" in printed
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    assert f"{size / 1000:.1f} kB in" in printed and f"edgetta run {out} SOURCE" in printed

    images = read_pictures(str(photos), (3, 8, 8)).floats()
    with torch.no_grad():
        expected = load(Recipe(model, input_shape=(3, 8, 8))).module(images)
    shipped = bundle.programs.shipped, bundle.programs.source
    found = open_engine(bundle, "torch").predict(images.numpy(), *shipped)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-2, atol=1e-3, err_msg="it starts as the network given")

    manifest = (out / "manifest.json").read_text()
    assert str(tmp_path) not in manifest, "a bundle travels: no folder of this machine stands in it"
    assert bundle.provenance["recipe"]["model"] == "net.py:build" and bundle.provenance["cuts"] == "given"
    assert main(["run", str(out), str(photos), "--engine", "torch", "--json", str(tmp_path / "run.json")]) == 0
    assert json.loads((tmp_path / "run.json").read_text())["labelled"] == 30


def test_what_is_not_said_is_chosen_and_told(model: str, tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "bundle.zip"
    assert export(model, "-o", out, *SIZE, "--num-classes", 4, "--bn", "source") == 0
    printed = capsys.readouterr().out
    bundle = read_bundle(out)
    assert len(bundle.cuts) == 3 and bundle.class_count == 4 and bundle.classes is None
    assert bundle.config == AdaptConfig(batch_norm="source") and bundle.batch_norm == "source"
    assert bundle.content is None
    assert "(automatic, shallow layers finer)" in printed and "synthetic images, an approximation" in printed
    assert f"{out}, {out.stat().st_size / 1000:.1f} kB\n" in printed
    assert bundle.provenance["statistics"] == "synthetic images"


def test_a_bundle_is_replaced_only_when_asked(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    out = tmp_path / "bundle"
    out.mkdir()
    (out / "precious.txt").write_text("mine")
    monkeypatch.setattr(recipes, "derive", lambda *arguments, **options: pytest.fail("work began before the check"))
    assert export(model, "-o", out, *SIZE) == 2
    assert "exists already; choose another path, or replace it with --overwrite" in error_of(capsys)
    monkeypatch.undo()
    assert export(model, "-o", out, *SIZE, "--cuts", CUTS, "--overwrite") == 2
    assert "is not a bundle and will not be overwritten" in error_of(capsys)
    assert [entry.name for entry in out.iterdir()] == ["precious.txt"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("resnet21",), 2, "no model is called 'resnet21' (did you mean resnet"),
        (("net.py:biuld", *SIZE), 2, "net.py has no function 'biuld'"),
        (("none.py:build", *SIZE), 2, "none.py: no such file"),
        (("prepared/",), 2, "MODEL prepared: there is no such folder"),
        (("photos",), 2, "MODEL photos is a folder, but none that `edgetta prepare` wrote"),
        (("net.py:build",), 2, "does not say what images it takes"),
        (("net.py:build", "--input-size", "big"), 2, "--input-size big is no size"),
        (("net.py:build", *SIZE, "--cuts", "stem,blok1"), 2, "the nearest legal cut is 'block1'"),
        (("net.py:build", *SIZE, "--cuts", CUTS, "--parts", "2"), 2, "parts or the cuts, not both"),
        (("net.py:build", *SIZE, "--parts", "9"), 2, "ask for fewer parts"),
        (("net.py:build", *SIZE, "--weights", "none.pt"), 1, "none.pt: no such file"),
        (("net.py:build", *SIZE, "--cuts", CUTS, "--calibration", "none/"), 1, "there is no none"),
        (("net.py:build", *SIZE, "--cuts", CUTS, "--calibration", "cifar11"), 2, "or one of digits, cifar10-jpeg"),
        (("net.py:build", *SIZE, "--cuts", CUTS, "--meta", "none.safetensors"), 4, "there is no none.safetensors"),
        (("net.py:build", *SIZE, "--cuts", CUTS, "--meta", "net.py"), 4, "net.py is no readable safetensors file"),
        (("net.py:build", *SIZE, "--cuts", CUTS, "--meta", "other"), 4, "other belongs to another model"),
        (
            ("net.py:build", *SIZE, "--cuts", CUTS, "--classes", "a,b"),
            2,
            "--classes names 2 classes, and the model has 3",
        ),
        (("net.py:build", *SIZE, "--cuts", CUTS, "--initialisation", "published"), 2, "need the warm-up"),
        (("net.py:build", *SIZE, "--learning-rate", "-1"), 2, "learning_rate must be a number of at least 0"),
        (("net.py:build", *SIZE, "-o", "none/bundle"), 2, "--output none/bundle: there is no folder"),
    ],
)
def test_what_stands_in_the_way(
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Captured,
    arguments: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    save_file({"x": torch.zeros(1)}, tmp_path / "other")
    before = sorted(tmp_path.iterdir())
    output = () if "-o" in arguments else ("-o", "bundle")
    assert export(*arguments, *output) == code
    assert message in error_of(capsys)
    assert [path for path in sorted(tmp_path.iterdir()) if path.name != "__pycache__"] == before


def test_int8_takes_ranges_from_source_images(model: str, tmp_path: Path, capsys: Captured) -> None:
    assert export(model, "-o", tmp_path / "bundle", *SIZE, "--cuts", CUTS, "--precision", "int8") != 0
    assert "--calibration" in error_of(capsys) and not (tmp_path / "bundle").exists()
    photos = write_folder(tmp_path / "photos", 30)
    options = ("--cuts", CUTS, "--precision", "int8", "--calibration", photos)
    assert export(model, "-o", tmp_path / "bundle", *SIZE, *options) == 0
    assert "int8 backbone" in capsys.readouterr().out
    bundle = read_bundle(tmp_path / "bundle")
    assert bundle.precision == "int8" and bundle.provenance["recipe"]["precision"] == "int8"
    assert main(["inspect", str(tmp_path / "bundle")]) == 0 and "int8 backbone" in capsys.readouterr().out


def test_random_weights_are_refused_or_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    def stop(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(recipes, "derive", stop)
    assert export("resnet20", "--width", 0.25, "-o", tmp_path / "bundle") == 2
    assert error_of(capsys) == (
        "edgetta: error: resnet20 has random weights: give trained ones with --weights (or say --random-weights, "
        "where they are wanted)"
    )
    assert export("torchvision:resnet18", "-o", tmp_path / "bundle") == 2
    assert "torchvision:resnet18 has random weights" in error_of(capsys)
    assert export("resnet20", "--random-weights", "-o", tmp_path / "bundle") == 130
    np.savez(tmp_path / "w.npz", **{k: v.numpy() for k, v in load(Recipe("resnet20")).module.state_dict().items()})
    assert export("resnet20", "--weights", tmp_path / "w.npz", "-o", tmp_path / "bundle") == 130


def test_where_weights_come_from_is_said(tmp_path: Path, capsys: Captured) -> None:
    model = write_model(tmp_path)
    assert export(model, *SIZE, "-o", tmp_path / "own") == 0
    assert re.search(r"^weights +net.py:build's own$", capsys.readouterr().out, re.MULTILINE)
    untrained = f"{tmp_path / 'net.py'}:untrained"
    assert export(untrained, *SIZE, "--random-weights", "-o", tmp_path / "random") == 0
    assert re.search(r"^weights +random$", capsys.readouterr().out, re.MULTILINE)
    assert read_bundle(tmp_path / "random").provenance["weights"] == "random"
    assert read_bundle(tmp_path / "own").provenance["weights"] == "net.py:build's own"
    save_file(load(Recipe(model, input_shape=(3, 8, 8))).module.state_dict(), tmp_path / "w.safetensors")
    out = tmp_path / "file"
    assert export(untrained, *SIZE, "--weights", tmp_path / "w.safetensors", "--random-weights", "-o", out) == 0
    assert re.search(r"^weights +\S+w.safetensors$", capsys.readouterr().out, re.MULTILINE)
    assert read_bundle(out).provenance["weights"] == "w.safetensors"


def test_settings_file(model: str, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", pictures(9)[0])
    lines = ["momentum = 0.5", "[export]", "input-size = 8", 'cuts = ["stem", "block2"]', "quiet = true"]
    lines.append(f'calibration = "{tmp_path}/x.npy"')
    (tmp_path / "settings.toml").write_text("\n".join(lines))
    assert export(model, "-o", tmp_path / "bundle", "--config", tmp_path / "settings.toml") == 0
    bundle = read_bundle(tmp_path / "bundle")
    assert bundle.config.momentum == 0.5 and bundle.cuts == ("stem", "block2")
    golden = bundle.reference()["images"]
    assert golden.shape == (8, 3, 8, 8), "the self-test uses calibration images"
    shown = torch.from_numpy(pictures(9)[0]).permute(0, 3, 1, 2) / 255
    assert all(any(torch.equal(torch.from_numpy(image), one) for one in shown) for image in golden)


def test_help_names_every_adaptation_setting() -> None:
    from click.testing import CliRunner

    text = CliRunner().invoke(command, ["--help-all"]).output
    assert re.search(r"--learning-rate.*--momentum.*--regulariser.*--entropy-margin", text, re.DOTALL)
