"""`edgetta prepare`: warm-up that learns, continues where it was interrupted, and leaves what export needs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgetta.adaptation.config import AdaptConfig
from edgetta.bundle import read_bundle
from edgetta.cli import main
from edgetta.cli.prepare import AUGMENTATION, command
from edgetta.offline import accuracy_costs, warm_up
from edgetta.offline.augment import Augmentation
from edgetta.offline.warm_up import WarmUpConfig
from edgetta.runtime import Runtime
from tests.tiny_model import CLASSES, CUTS, pictures, write_folder, write_model

Captured = pytest.CaptureFixture[str]
QUICK = ("--epochs", 3, "--batch", 32, "--jitter", 0, "--grey", 0, "--learning-rate", 0.1)


@pytest.fixture(autouse=True)
def no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGETTA_DEBUG", raising=False)


@pytest.fixture
def model(tmp_path: Path) -> str:
    return write_model(tmp_path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    images, labels = pictures(240)
    np.savez(tmp_path / "train.npz", images=images, labels=labels)
    return tmp_path / "train.npz"


def prepare(model: str, data: object, output: Path, *options: object) -> int:
    arguments = ("prepare", model, "--data", data, "-o", output, "--input-size", 8, "--cuts", CUTS, *options)
    return main([str(argument) for argument in arguments])


def error_of(capsys: Captured) -> str:
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("edgetta: error: ")
    return line


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def without_seconds(report: dict[str, Any]) -> dict[str, Any]:
    return {**report, "seconds": 0, "stages": [{**stage, "seconds": 0} for stage in report["stages"]]}


def interrupted_at(step: int) -> Callable[..., float]:
    """`warm_up_step`, with Ctrl-C at a step."""
    seen, original = [0], warm_up.warm_up_step

    def stepped(*arguments: Any) -> float:
        seen[0] += 1
        if seen[0] == step:
            raise KeyboardInterrupt
        return original(*arguments)

    return stepped


def test_warm_up_learns_and_its_result_ships(model: str, tmp_path: Path, capsys: Captured) -> None:
    photos, out = write_folder(tmp_path / "photos", 210), tmp_path / "prepared"
    (photos / "blue" / "broken.png").write_bytes(b"x")
    classes = ",".join(CLASSES)
    assert prepare(model, photos, out, *QUICK, "--epochs", 8, "--held-out", 0.2, "--classes", classes) == 0
    printed = capsys.readouterr().out
    assert names(out) == ["meta.safetensors", "prepared.json", "report.html", "report.json", "weights.safetensors"]
    report = json.loads((out / "report.json").read_text())
    assert report["accuracy_after"] > report["accuracy_before"] + 0.2, "a random backbone, colours to be told apart"
    assert report["accuracy_after"] > 0.9 and report["accuracy_running"] > 0.9
    assert (report["images"], report["held_out"], report["steps"]) == (168, 42, 40)
    assert report["settings"]["warm_up"]["learning_rate"] == 0.1
    for words in (
        *("168 to train on, 42 held out; 1 skipped", "blue/broken.png", "meta-networks put in", "40 steps, last loss"),
        f"{100 * report['accuracy_after']:.2f}",
        f"next: edgetta export {out} -o bundle/",
    ):
        assert words in printed

    # The folder is a MODEL: everything is in it, even when the weights' and the classes' origin are gone.
    bundle_path = tmp_path / "bundle"
    assert main(["export", str(out), "-o", str(bundle_path), "--learning-rate", "0.01", "--no-measure"]) == 0
    assert "of the warm-up" in capsys.readouterr().out
    bundle = read_bundle(bundle_path)
    assert bundle.name == "net.py:build", "a prepared bundle keeps its name"
    assert bundle.classes == CLASSES and bundle.cuts == tuple(CUTS.split(","))
    assert bundle.config.learning_rate == 0.01
    assert bundle.provenance["preparation"]["accuracy_after"] == report["accuracy_after"]
    assert str(tmp_path) not in (bundle_path / "manifest.json").read_text()
    images, labels = pictures(90, seed=5)
    shown = (images.transpose(0, 3, 1, 2) / 255).astype(np.float32)
    assert bundle.content is not None and bundle.content.images == 168
    for policy, chunk in (("batch", 90), ("source", 1), ("stream", 30)):
        runtime = Runtime(bundle, "torch", AdaptConfig(when="off", batch_norm=policy))  # type: ignore[arg-type]
        logits = np.concatenate([runtime(shown[k : k + chunk]) for k in range(0, 90, chunk)])
        assert (logits.argmax(1) == labels).mean() > 0.9, f"what was warmed up ships, and serves {policy} statistics"


def test_interrupted_it_continues_to_the_same_end(
    model: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    assert prepare(model, data, straight, *QUICK, "--quiet") == 0
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("warning: predictions are near chance"), "as random weights are"
    monkeypatch.setattr(warm_up, "warm_up_step", interrupted_at(10))  # in the second epoch of six steps each
    assert prepare(model, data, stopped, *QUICK) == 130
    err = capsys.readouterr().err
    assert f"what is done is kept in {stopped}; the same command again continues there" in err
    assert names(stopped) == ["prepared.json", "stages", "weights.safetensors"]
    monkeypatch.undo()

    assert main(["export", str(stopped), "-o", str(tmp_path / "bundle")]) == 2
    assert "is not finished; run its `edgetta prepare` again" in error_of(capsys)
    assert prepare(model, data, stopped, *QUICK, "--momentum", 0.5) == 2
    assert f"{stopped} was begun with other settings (warm_up {{'epochs': 3" in error_of(capsys)
    assert prepare(model, data, stopped, *QUICK, "--kernel", 1) == 2
    assert "was begun with other settings (kernel None); repeat those" in error_of(capsys)

    path = stopped / "stages" / "warm_up.checkpoint.safetensors"
    checkpoint = path.read_bytes()
    path.write_bytes(checkpoint[: len(checkpoint) // 2])
    assert prepare(model, data, stopped, *QUICK) == 4
    assert "remove it to start again" in error_of(capsys)
    path.write_bytes(checkpoint)

    assert prepare(model, data, stopped, *QUICK) == 0
    assert f"continuing from what is done in {stopped}" in capsys.readouterr().err
    assert (stopped / "meta.safetensors").read_bytes() == (straight / "meta.safetensors").read_bytes()
    a, b = (json.loads((folder / "report.json").read_text()) for folder in (straight, stopped))
    assert without_seconds(a) == without_seconds(b)


def test_interrupted_before_the_first_checkpoint(
    model: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setattr(warm_up, "warm_up_step", interrupted_at(2))
    assert prepare(model, data, tmp_path / "out", *QUICK) == 130
    assert "are kept" not in capsys.readouterr().err
    monkeypatch.undo()
    assert prepare(model, data, tmp_path / "out", *QUICK, "--epochs", 1, "--overwrite", "--quiet") == 0
    assert json.loads((tmp_path / "out" / "report.json").read_text())["steps"] == 6


def test_without_warm_up(model: str, data: Path, tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "prepared"
    assert prepare(model, data, out, "--no-warm-up", "--limit", 60) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["steps"] == 0 and report["final_loss"] is None and report["images"] + report["held_out"] == 60
    printed = capsys.readouterr().out
    assert "meta-networks put in" in printed and "warm-up" not in printed
    assert prepare(model, data, out, "--no-warm-up", "--limit", 60) == 2
    assert "is prepared already; choose another folder, or start again with --overwrite" in error_of(capsys)
    (out / "weights.safetensors").write_bytes(b"another file")
    assert main(["export", str(out), "-o", str(tmp_path / "bundle")]) == 4
    assert "weights.safetensors is damaged or was replaced" in error_of(capsys)
    (out / "prepared.json").write_text("{")
    assert main(["export", str(out), "-o", str(tmp_path / "bundle")]) == 4
    assert "prepared.json is damaged" in error_of(capsys)
    assert not (tmp_path / "bundle").exists()


def test_int8_ships_the_ranges_that_meta_networks_were_warmed_up_with(model: str, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "prepared"
    assert prepare(model, data, out, *QUICK, "--precision", "int8", "--no-costs") == 0
    ranges = json.loads((out / "prepared.json").read_text())["recipe"]["ranges"]
    assert set(ranges) == {"stem", "part1", "part2", "classifier", "source"} and all(ranges["stem"].values())
    assert main(["export", str(out), "-o", str(tmp_path / "bundle"), "--no-measure"]) == 0
    bundle = read_bundle(tmp_path / "bundle")
    assert bundle.precision == "int8" and bundle.provenance["recipe"]["ranges"] is None
    constants = bundle.programs.predict.constants
    scales = [np.asarray(tensor) for name, tensor in constants.items() if name.endswith(".scale")]
    assert any(float(scale) == pytest.approx(ranges["stem"]["x"] / 127) for scale in scales if scale.ndim == 0)


def test_export_of_a_prepared_folder_leaves_no_choice_open(tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "prepared").mkdir()
    (tmp_path / "prepared" / "prepared.json").write_text("{}")
    options = ("--parts", "3", "--adapt", "bias", "--meta", "x")
    assert main(["export", str(tmp_path / "prepared"), "-o", str(tmp_path / "bundle"), *options]) == 2
    assert "--parts, --adapt, --meta: settled when" in error_of(capsys)


def test_a_full_disk_keeps_the_checkpoint(
    model: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    from edgetta.export import prepared
    from edgetta.storage import StorageError

    def full(path: Path, content: bytes) -> None:
        raise StorageError(f"cannot write {path}: the disk is full; free some space or choose another folder")

    finish = prepared.finish

    def finish_on_a_full_disk(*arguments: Any, **named: Any) -> None:
        monkeypatch.setattr(prepared, "atomic_write_bytes", full)
        finish(*arguments, **named)

    monkeypatch.setattr(prepared, "finish", finish_on_a_full_disk)
    options = ("--limit", 72, "--epochs", 1, "--batch", 32)
    assert prepare(model, data, tmp_path / "out", *options) == 1
    assert "the disk is full" in error_of(capsys)
    assert "stages" in names(tmp_path / "out")
    monkeypatch.undo()
    monkeypatch.setattr(warm_up, "warm_up_step", interrupted_at(1))
    assert prepare(model, data, tmp_path / "out", *options, "--quiet") == 0, "no step had to be repeated"


@pytest.mark.parametrize(
    ("data", "options", "code", "message"),
    [
        ("none/", (), 1, "there is no none"),
        ("mnist", (), 2, "there is no mnist; DATA is a folder, an .npz, or one of digits, cifar10-jpeg"),
        ("plain.npy", (), 1, "plain.npy has no labels; give a folder with one sub-folder per class"),
        ("two/", (), 2, "two/ has 2 classes and net.py:build has 3; give weights for these classes"),
        ("two/", ("--classes", "red,green"), 2, "has 2 classes and net.py:build has 3"),
        ("two/", ("--classes", "red,blue,white"), 2, "has the sub-folder 'green', which is none of the 3 classes"),
        ("beyond.npz", (), 2, "has the label 3, and the model has 3 classes, from 0"),
        ("train.npz", ("--held-out", 0), 2, "the share to keep apart must be above 0 and below 1"),
        ("train.npz", ("--limit", 30, "--batch", 64), 2, "27 images to train on are fewer than one batch of 64"),
        ("train.npz", ("--blur-sigma", "2,1"), 2, "--blur-sigma 2,1: write two numbers above 0, the smaller first"),
        ("train.npz", ("--grey", 2), 2, "--grey is a probability, at most 1, not 2"),
        ("train.npz", ("--decay-at", "x"), 2, "--decay-at x: write numbers separated by commas"),
        ("train.npz", ("--learning-rate", 0), 2, "--learning-rate must be above 0"),
        ("train.npz", ("--initialisation", "published", "--no-warm-up"), 2, "start at random and need the warm-up"),
        ("train.npz", ("-o", "none/out"), 2, "--output none/out: there is no folder"),
        ("train.npz", ("-o", "two"), 2, "two exists and was not made by `edgetta prepare`"),
    ],
)
def test_what_stands_in_the_way(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Captured,
    data: str,
    options: tuple[object, ...],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path)
    images, labels = pictures(90)
    np.savez("train.npz", images=images, labels=labels)
    np.savez("beyond.npz", images=images, labels=labels + 1)
    np.save("plain.npy", images)
    write_folder(tmp_path / "two", 60)
    for file in (tmp_path / "two" / "blue").iterdir():
        file.unlink()
    (tmp_path / "two" / "blue").rmdir()
    assert prepare("net.py:build", data, Path("out"), *options) == code
    assert message in error_of(capsys)
    assert sorted(entry.name for entry in (tmp_path / "two").iterdir()) == ["green", "red"]
    assert not (tmp_path / "out").exists(), "nothing is left behind"


def test_every_setting_of_the_warm_up_is_an_option() -> None:
    options = {parameter.name: parameter for parameter in command.params}
    config = WarmUpConfig()
    for field in fields(WarmUpConfig):
        if field.name == "augmentation":
            continue
        default, value = options[field.name].default, getattr(config, field.name)
        assert default == (",".join(map(str, value)) if isinstance(value, tuple) else value), field.name
    assert {field.name for field in fields(Augmentation)} == {*AUGMENTATION, "blur_sigma"} <= set(options)


def test_costs_in_accuracy_are_measured_and_ship(
    model: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    """On 72 held-out images; interrupted after three runs, it continues to what an uninterrupted one finds."""
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    options = (*QUICK, "--held-out", 0.3, "--input-size", 16)
    assert prepare(model, data, straight, *options) == 0
    printed = capsys.readouterr().out
    assert "slice 8" in printed and "instead of learning from 32 of 64 images at once" in printed
    original, calls = accuracy_costs._run, [0]

    def stops(*arguments: Any) -> dict[str, Any]:
        calls[0] += 1
        if calls[0] == 4:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(accuracy_costs, "_run", stops)
    assert prepare(model, data, stopped, *options) == 130
    assert len(list((stopped / "stages").glob("cost-*.json"))) == 3
    monkeypatch.setattr(accuracy_costs, "_run", lambda *arguments: calls.append(1) or original(*arguments))
    assert prepare(model, data, stopped, *options) == 0
    assert len(calls) == 1 + 1 + len(accuracy_costs.CHOICES) - 3, "what was measured is not measured again"
    reports = [json.loads((folder / "report.json").read_text()) for folder in (straight, stopped)]
    assert reports[0]["costs"] == reports[1]["costs"]
    assert "What choices cost in accuracy" in (stopped / "report.html").read_text()
    assert main(["export", str(stopped), "-o", str(tmp_path / "bundle"), "--no-measure", "--quiet"]) == 0
    costs = read_bundle(tmp_path / "bundle").accuracy_costs
    assert costs is not None and costs.to_json() == reports[1]["costs"]
    assert costs.doubt is not None and "times as often as they say" in (stopped / "report.html").read_text()
    assert costs.source["images"] == "288" and costs.source["corruptions"].count(",") == 3


def test_costs_only_where_they_can_be_measured(model: str, data: Path, tmp_path: Path, capsys: Captured) -> None:
    for options, words in (
        ((), "images of less than 16 pixels are too small for corruptions"),
        (("--input-size", 16), "they need 64 held-out images, and there are 24"),
    ):
        assert prepare(model, data, tmp_path / "a", "--no-warm-up", "--costs", *options) == 2
        assert f"--costs: {words}" in error_of(capsys)
    options = ("--no-warm-up", "--no-costs", "--held-out", 0.3, "--input-size", 16)
    assert prepare(model, data, tmp_path / "b", *options) == 0
    assert "costs" not in json.loads((tmp_path / "b" / "report.json").read_text())
