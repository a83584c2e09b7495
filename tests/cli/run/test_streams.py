"""`edgetta run`: predictions, summary and state, and how options and settings reach the runtime."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgetta.adaptation.step_plan import StepPlan
from edgetta.cli.adaptation_options import OPTIONS
from edgetta.runtime import Runtime
from edgetta.state_files import Contents, StateFile
from tests.cli.run.verb import Captured, rows_of, run
from tests.small_bundle import NAMES


def test_predictions_summary_and_state(array: Path, tmp_path: Path, capsys: Captured) -> None:
    out, state, summary = tmp_path / "out.jsonl", tmp_path / "state", tmp_path / "summary.json"
    assert run(array, "-o", out, "--state", state, "--json", summary, "--batch", 16, "--entropy-margin", 1) == 0
    printed = capsys.readouterr()
    rows = rows_of(out)
    assert [row["index"] for row in rows] == list(range(40)) and {row["class"] for row in rows} <= set(NAMES)
    wrong = sum(row["class"] != NAMES[row["index"] % 5] for row in rows)
    told = json.loads(summary.read_text())
    assert (told["frames"], told["steps"], told["errors"], told["labelled"]) == (40, 3, wrong, 40)
    assert told["ended"] == "done" and told["engine"] == "torch" and told["batch_norm"] == "stream"
    assert sum(told["classes"].values()) == 40 and told["kept_bytes"] > 0
    assert told["adapted"] == 1, "every 2, as the bundle says; the last batch is small and waits"
    for words in ("40 predicted", f"({wrong} of 40 labelled frames)", "1 update in 3 steps (every 2"):
        assert words in printed.out
    assert "stream: shift followed " in printed.out and str(state) in printed.out
    assert "small <- 40 frames of 16 x 16" in printed.err


def test_the_state_is_continued(array: Path, tmp_path: Path, capsys: Captured) -> None:
    frames = np.load(array)["images"]
    np.save(tmp_path / "first.npy", frames[:16])
    np.save(tmp_path / "second.npy", frames[16:32])
    np.save(tmp_path / "both.npy", frames[:32])
    options = ("--batch", 16, "--when", "always", "--entropy-margin", 1, "--quiet")
    assert run(tmp_path / "both.npy", "--state", tmp_path / "straight", *options) == 0
    assert run(tmp_path / "first.npy", "--state", tmp_path / "stopped", *options) == 0
    assert run(tmp_path / "second.npy", "--state", tmp_path / "stopped", *options[:-1]) == 0
    assert "continuing from" in capsys.readouterr().err
    assert (tmp_path / "straight").read_bytes() == (tmp_path / "stopped").read_bytes()


def test_csv_and_standard_output(photos: Path, tmp_path: Path, capsys: Captured) -> None:
    assert run(photos, "-o", tmp_path / "out.csv") == 0
    with (tmp_path / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["frame"] for row in rows] == [f"{number}.png" for number in range(10)]
    capsys.readouterr()
    assert run(photos, "-o", "-", "--batch", 10) == 0
    printed = capsys.readouterr()
    lines = [json.loads(line) for line in printed.out.splitlines()]
    assert [line["class"] for line in lines] == [row["class"] for row in rows]
    assert "10 predicted" in printed.err, "the summary does not mix with the rows"


def test_quiet_is_quiet(photos: Path, tmp_path: Path, capsys: Captured) -> None:
    assert run(photos, "-o", tmp_path / "out.csv", "--state", tmp_path / "state", "--quiet") == 0
    assert run(photos, "--state", tmp_path / "state", "--quiet") == 0
    assert capsys.readouterr() == ("", "")


def test_options_reach_the_runtime_by_their_own_names(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Runtime] = []
    initialise = Runtime.__init__
    monkeypatch.setattr(Runtime, "__init__", lambda self, *a, **k: (made.append(self), initialise(self, *a, **k))[1])
    values = {
        "learning_rate": 0.25,
        "momentum": 0.5,
        "regulariser": 0.75,
        "anchor": 0.125,
        "entropy_margin": 0.625,
        "when": "every 3",
        "window": 7,
        "small_batch": 2,
        "watched": 5,
        "batch_norm": "batch",
        "learn_images": 24,
        "measure_images": 12,
        "hold_back": False,
        "statistics_images": 300,
        "change": 0.75,
        "adapt_affine": False,
        "mirrored": True,
    }
    assert set(values) == set(OPTIONS)
    spelled = {"batch_norm": "--bn"}
    flags = [
        part for name, value in values.items() for part in (spelled.get(name, f"--{name.replace('_', '-')}"), value)
    ]
    assert run(photos, *flags, "--recompute", "--slice", 4, "--quiet") == 0
    (tmp_path / "settings.toml").write_text(
        "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items())
        + "[run]\nrecompute = true\nslice = 4\nquiet = true\n"
    )
    assert run(photos, "--config", tmp_path / "settings.toml") == 0
    for runtime in made:
        assert {name: getattr(runtime.config, name) for name in values} == values
        assert runtime.keeper.choice.plan == StepPlan(keep=False, slice=4)


def test_the_default_batch_depends_on_the_source(photos: Path, tmp_path: Path, capsys: Captured) -> None:
    assert run(photos) == 0
    out = capsys.readouterr().out
    assert "64 (all frames are there already; --batch for another)" in out and "0 updates in 1 step (" in out
    assert run(photos, "--batch", 5) == 0
    out = capsys.readouterr().out
    assert "\nbatch       5\n" in out and "BatchNorm   stream: shift followed" in out


def test_a_live_source_is_predicted_frame_by_frame(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    from edgetta import sources
    from edgetta.sources import open_source

    def live(spec: str, **options: Any) -> Any:
        assert spec == "camera:0"
        source = open_source(photos, **options)
        source.length = None
        return source

    monkeypatch.setattr(sources, "open_source", live)
    assert run("camera:0", "--limit", 3, "--json", tmp_path / "summary.json") == 0
    assert json.loads((tmp_path / "summary.json").read_text())["steps"] == 3
    assert "1 (a live source: every frame is predicted at once" in capsys.readouterr().out


def test_what_adapts_is_told(array: Path, tmp_path: Path, capsys: Captured) -> None:
    summary = tmp_path / "summary.json"
    assert run(array, "--when", "off", "--json", summary) == 0
    out = capsys.readouterr().out
    assert "adaptation  off" in out and "stream: shift followed" in out
    assert json.loads(summary.read_text())["kept_bytes"] == json.loads(summary.read_text())["adapted"] == 0
    assert run(array, "--when", "off", "--bn", "source") == 0
    assert "source: as shipped" in capsys.readouterr().out
    assert run(array, "--bn", "batch", "--when", "always", "--recompute", "--json", summary) == 0
    assert "batch: of each batch alone" in capsys.readouterr().out
    assert json.loads(summary.read_text())["kept_bytes"] == 0 and json.loads(summary.read_text())["adapted"] == 1


def test_sub_folders_named_like_classes_are_labels(photos: Path, tmp_path: Path) -> None:
    for number, name in enumerate(("one", "four", "elsewhere")):
        (photos / name).mkdir()
        (photos / f"{number}.png").rename(photos / name / "x.png")
    assert run(photos, "--json", tmp_path / "summary.json", "-o", tmp_path / "out.jsonl", "--quiet") == 0
    told = json.loads((tmp_path / "summary.json").read_text())
    guesses = {row["frame"]: row["class"] for row in rows_of(tmp_path / "out.jsonl")}
    wrong = (guesses["one/x.png"] != "one") + (guesses["four/x.png"] != "four")
    assert (told["frames"], told["labelled"], told["errors"]) == (10, 2, wrong)


def test_the_state_is_saved_on_the_way(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []

    def save(self: StateFile, contents: Contents, digest: str = "") -> int:
        saved.append(contents.info["counters"]["steps"])
        return 1

    monkeypatch.setattr(StateFile, "save", save)
    assert run(photos, "--batch", 1, "--state", tmp_path / "state", "--save-every", 4, "--quiet") == 0
    assert saved == [4, 8, 10]
