"""`edgetta run`: predictions, summary and state; and every bad input, each with its line and its exit code."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgetta.bundle import read_bundle
from edgetta.cli import main
from edgetta.cli.adaptation_options import OPTIONS
from edgetta.runtime import Runtime
from tests.memory.costs import cost_model
from tests.small_bundle import NAMES, copy_of_it, edit_manifest, whole_bundle

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def torch_engine_without_self_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tested here is the verb; engines and self-test have tests of their own."""
    monkeypatch.setattr("edgetta.runtime.self_test", lambda bundle, network, source, gradients: None)
    monkeypatch.delenv("EDGETTA_DEBUG", raising=False)


def picture(seed: int, shape: tuple[int, ...] = (16, 16, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of ten pictures."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(10):
        Image.fromarray(picture(number)).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def array(tmp_path: Path) -> Path:
    """Forty frames with labels."""
    path = tmp_path / "frames.npz"
    np.savez(path, images=picture(0, (40, 16, 16, 3)), labels=np.arange(40) % 5)
    return path


def run(*arguments: object, bundle: Path | None = None) -> int:
    return main(["run", str(bundle or whole_bundle()), *map(str, arguments), "--engine", "torch"])


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def error_of(capsys: Captured) -> str:
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("edgetta: error: ")
    return line


def test_predictions_summary_and_state(array: Path, tmp_path: Path, capsys: Captured) -> None:
    out, state, summary = tmp_path / "out.jsonl", tmp_path / "state", tmp_path / "summary.json"
    assert run(array, "-o", out, "--state", state, "--json", summary, "--batch", 16, "--entropy-margin", 1) == 0
    printed = capsys.readouterr()
    rows = rows_of(out)
    assert [row["index"] for row in rows] == list(range(40)) and {row["class"] for row in rows} <= set(NAMES)
    wrong = sum(row["class"] != NAMES[row["index"] % 5] for row in rows)
    told = json.loads(summary.read_text())
    assert (told["frames"], told["steps"], told["errors"], told["labelled"]) == (40, 3, wrong, 40)
    assert told["ended"] == "done" and told["engine"] == "torch" and told["gradient"] == ["exact"]
    assert sum(told["classes"].values()) == 40 and told["kept_bytes"] > 0
    assert told["adapted"] == 1, "every 2, as the bundle says; the last batch is small and waits"
    for words in ("40 predicted", f"({wrong} of 40 labelled frames)", "1 update in 3 steps (every 2", "exact (auto"):
        assert words in printed.out
    assert "stream (auto: averaged over all images since" in printed.out and str(state) in printed.out
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
        "passes": 2,
        "when": "every 3",
        "window": 7,
        "small_batch": 2,
        "watched": 5,
        "statistics": "batch",
        "statistics_images": 300,
        "change": 0.75,
        "mirrored": True,
    }
    assert set(values) == set(OPTIONS)
    flags = [part for name, value in values.items() for part in (f"--{name.replace('_', '-')}", value)]
    assert run(photos, *flags, "--gradient", "recompute", "--bn", "ema", "--quiet") == 0
    (tmp_path / "settings.toml").write_text(
        "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items())
        + '[run]\ngradient = "recompute"\nbn = "ema"\nquiet = true\n'
    )
    assert run(photos, "--config", tmp_path / "settings.toml") == 0
    for runtime in made:
        assert {name: getattr(runtime.config, name) for name in values} == values
        assert runtime.network.batch_norm == "ema"
        assert {part.gradient for part in runtime.network.parts} == {"recompute"}


def test_the_default_batch_depends_on_the_source(photos: Path, tmp_path: Path, capsys: Captured) -> None:
    assert run(photos) == 0
    assert "64 (all frames are there already; --batch for another)" in capsys.readouterr().out
    assert run(photos, "--batch", 5) == 0
    out = capsys.readouterr().out
    assert "\nbatch       5\n" in out and "stream (auto: averaged over all images since" in out


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


def test_adaptation_off_and_local_gradients_are_told(array: Path, tmp_path: Path, capsys: Captured) -> None:
    summary = tmp_path / "summary.json"
    assert run(array, "--when", "off", "--json", summary) == 0
    assert "adaptation  off" in capsys.readouterr().out
    assert json.loads(summary.read_text())["kept_bytes"] == json.loads(summary.read_text())["adapted"] == 0
    assert run(array, "--gradient", "local", "--bn", "batch", "--json", summary) == 0
    out = capsys.readouterr().out
    assert "local (as asked)" in out and "batch (as asked)" in out
    local = json.loads(summary.read_text())["kept_bytes"]
    memory = read_bundle(whole_bundle()).manifest["memory"]
    assert local == pytest.approx(40 * memory["local"]["per_image"] + memory["local"]["fixed"], rel=0.03)
    assert local < 40 * memory["exact"]["per_image"]
    assert run(array, "--storage", "recompute-int8", "--json", summary) == 0
    assert json.loads(summary.read_text())["kept_bytes"] < 0.4 * local


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
    monkeypatch.setattr(Runtime, "save_state", lambda self, path: saved.append(self.adapter.steps))
    assert run(photos, "--batch", 1, "--state", tmp_path / "state", "--save-every", 4, "--quiet") == 0
    assert saved == [4, 8, 10]


# Bad input: images.


def test_pictures_of_other_sizes_and_modes_are_used(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(picture(0, (20, 31, 3))).save(folder / "large.jpg")
    Image.fromarray(picture(1, (16, 16))).save(folder / "grey.png")
    Image.fromarray(picture(2, (16, 16, 4)), "RGBA").save(folder / "rgba.png")
    Image.fromarray(picture(3, (16, 16)).astype(np.uint16) * 257).save(folder / "deep.png")
    assert run(folder, "-o", tmp_path / "out.jsonl", "--quiet") == 0
    rows = rows_of(tmp_path / "out.jsonl")
    assert [row["frame"] for row in rows] == ["deep.png", "grey.png", "large.jpg", "rgba.png"]
    assert all(0.2 <= row["confidence"] <= 1 for row in rows)


def test_truncated_and_renamed_pictures_are_skipped_and_named(photos: Path, tmp_path: Path, capsys: Captured) -> None:
    (photos / "3.png").write_bytes((photos / "3.png").read_bytes()[:100])
    (photos / "4.png").write_text("a text under another name")
    (photos / "5.png").write_bytes(b"")
    assert run(photos, "-o", tmp_path / "out.jsonl", "--json", tmp_path / "summary.json") == 0
    out = capsys.readouterr().out
    for words in ("7 predicted", "3.png: cannot be decoded", "4.png: not an image", "5.png: the file is empty"):
        assert words in out
    assert [row["frame"] for row in rows_of(tmp_path / "out.jsonl")] == [f"{n}.png" for n in (0, 1, 2, 6, 7, 8, 9)]
    told = json.loads((tmp_path / "summary.json").read_text())
    assert told["skipped"] == 3 and [frame["name"] for frame in told["skipped_frames"]] == ["3.png", "4.png", "5.png"]


def test_many_skipped_frames_are_summed_up(photos: Path, capsys: Captured) -> None:
    for number in range(8):
        (photos / f"{number}.png").write_bytes(b"")
    assert run(photos) == 0
    out = capsys.readouterr().out
    assert "4.png: the file is empty" in out and "5.png" not in out and "and 3 more" in out


def test_nan_in_an_array(tmp_path: Path, capsys: Captured) -> None:
    frames = picture(0, (20, 16, 16, 3)) / np.float32(255)
    frames[7, 3, 3, 1] = np.nan
    np.save(tmp_path / "x.npy", frames)
    assert run(tmp_path / "x.npy", "-o", tmp_path / "out.jsonl", "--entropy-margin", 1) == 0
    out = capsys.readouterr().out
    assert "19 predicted" in out and "x.npy[7]: NaN in 1 of 768 values" in out
    assert "refused" not in out and len(rows_of(tmp_path / "out.jsonl")) == 19


def test_no_frame_that_can_be_used(photos: Path, tmp_path: Path, capsys: Captured) -> None:
    for file in photos.iterdir():
        file.write_bytes(b"")
    assert run(photos, "-o", tmp_path / "out.jsonl") == 1
    assert "no frame of" in (line := error_of(capsys)) and "(10 skipped; the first, 0.png: the file is empty)" in line
    assert (tmp_path / "out.jsonl").read_bytes() == b""


def test_another_size_may_be_refused_and_earlier_rows_stay(photos: Path, tmp_path: Path, capsys: Captured) -> None:
    Image.fromarray(picture(0, (20, 31, 3))).save(photos / "7.png")
    out, state = tmp_path / "out.jsonl", tmp_path / "state"
    assert run(photos, "-o", out, "--state", state, "--batch", 2, "--no-resize") == 1
    printed = capsys.readouterr()
    assert printed.err.endswith(
        "7.png is 31 x 20 pixels and the model takes 16 x 16; resize the images first, or allow resizing\n"
    )
    assert "6 predicted until it failed" in printed.out and len(rows_of(out)) == 6
    Runtime(read_bundle(whole_bundle()), "torch", check=False).load_state(state)


# Bad input: sources.


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("photos/empty", "holds no images"),
        ("photos/none", "there is no"),
        ("photos/*.jpg", "matches nothing"),
        ("text.txt", "cannot tell from its suffix what"),
        ("broken.npy", "is no .npy array"),
        ("gopher://x", "no source of the kind gopher://"),
    ],
)
def test_sources_that_are_none_replace_nothing(
    photos: Path, tmp_path: Path, capsys: Captured, source: str, message: str
) -> None:
    (photos / "empty").mkdir()
    (tmp_path / "text.txt").write_text("x")
    (tmp_path / "broken.npy").write_bytes(b"no array")
    out = tmp_path / "out.jsonl"
    out.write_text("earlier\n")
    place = source if ":" in source else tmp_path / source
    assert run(place, "-o", out, "--overwrite") == 1
    assert message in error_of(capsys) and out.read_text() == "earlier\n"


# Bad input: bundles and states.


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: _flip(b / "meta.safetensors"), "meta.safetensors in bundle"),
        (lambda b: _flip(b / "segments" / "01.forward.onnx"), "segments/01.forward.onnx in bundle"),
        (lambda b: (b / "reference.npz").unlink(), "reference.npz is missing from bundle"),
        (lambda b: edit_manifest(b, lambda m: m.update(schema=99)), "has schema version 99"),
        (lambda b: (b / "manifest.json").unlink(), "is no bundle: it has no manifest.json"),
    ],
)
def test_damaged_bundles(
    photos: Path, tmp_path: Path, capsys: Captured, damage: Callable[[Path], object], message: str
) -> None:
    bundle, out = copy_of_it(tmp_path / "bundle"), tmp_path / "out.jsonl"
    damage(bundle)
    assert run(photos, "-o", out, bundle=bundle) == 4
    assert message in error_of(capsys) and not out.exists()


def test_a_bundle_that_is_not_there(photos: Path, tmp_path: Path, capsys: Captured) -> None:
    assert run(photos, bundle=tmp_path / "none") == 4
    assert "none does not exist; give the folder or zip that `edgetta export` wrote" in error_of(capsys)


def test_a_damaged_state_stays_as_it_is(photos: Path, tmp_path: Path, capsys: Captured) -> None:
    state, out = tmp_path / "state", tmp_path / "out.jsonl"
    assert run(photos, "--state", state, "--quiet") == 0
    _flip(state)
    damaged = state.read_bytes()
    assert run(photos, "--state", state, "-o", out) == 4
    assert "is not an edgetta state file or is damaged" in error_of(capsys)
    assert state.read_bytes() == damaged and not out.exists()


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


# Bad input: options and disks.


def test_files_that_are_in_the_way(photos: Path, tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("earlier\n")
    assert run(photos, "-o", out) == 2
    assert "exists and would be overwritten" in error_of(capsys) and out.read_text() == "earlier\n"
    assert run(photos, "-o", out, "--overwrite", "--quiet") == 0 and len(rows_of(out)) == 10


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--state", "none/state"), 2, "--state none/state: there is no folder none; create it"),
        (("--json", "none/x.json"), 2, "--json none/x.json: there is no folder none"),
        (("-o", "x.jsonl", "--state", "x.jsonl"), 2, "--state and --output name the same file x.jsonl"),
        (("--save-every", "3"), 2, "--save-every needs a file: add --state FILE"),
        (("-o", "x.txt"), 2, "cannot tell the format of x.txt"),
        (("--learning-rate", "-1"), 2, "learning_rate must be a number of at least 0"),
        (("--when", "sometimes"), 2, "unknown schedule 'sometimes'; use 'always', 'off', 'on-drift' or 'every N'"),
        (("--batch", "0"), 2, "Invalid value for '--batch'"),
        (("--gradient", "wrong"), 2, "Invalid value for '--gradient'"),
    ],
)
def test_options_that_cannot_be(
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Captured,
    options: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(photos, *options) == code
    assert message in error_of(capsys) and sorted(entry.name for entry in tmp_path.iterdir()) == ["photos"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_for_rows_still_saves_the_state(photos: Path, tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "out.jsonl").symlink_to("/dev/full")
    assert run(photos, "-o", tmp_path / "out.jsonl", "--state", tmp_path / "state", "--batch", 2) == 1
    assert "the disk is full" in error_of(capsys)
    Runtime(read_bundle(whole_bundle()), "torch", check=False).load_state(tmp_path / "state")


def test_a_full_disk_for_the_state_keeps_the_earlier_one(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    state, out = tmp_path / "state", tmp_path / "out.jsonl"
    assert run(photos, "--state", state, "--quiet") == 0
    earlier = state.read_bytes()

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edgetta.storage.os.fsync", full)
    with monkeypatch.context() as patch:
        patch.setattr("edgetta.predictions.os", _with(os, fsync=lambda descriptor: None))
        assert run(photos, "--state", state, "-o", out) == 1
    printed = capsys.readouterr()
    assert "the disk is full" in printed.err and "the earlier file is unchanged" in printed.err
    assert "10 predicted" in printed.out, "the summary is told all the same"
    assert state.read_bytes() == earlier and len(rows_of(out)) == 10
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out.jsonl", "photos", "state"]


def _with(module: Any, **changes: Any) -> Any:
    """A module with some names replaced."""
    import types

    changed = types.SimpleNamespace(**{name: getattr(module, name) for name in dir(module)})
    vars(changed).update(changes)
    return changed


# Interruptions.


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_in_the_middle(tmp_path: Path) -> None:
    np.save(tmp_path / "frames.npy", picture(0, (20_000, 16, 16, 3)))
    options = ["--batch", "1", "--when", "always", "-o", "-", "--state", str(tmp_path / "state")]
    process = subprocess.Popen(
        [sys.executable, "-m", "edgetta", "run", str(whole_bundle()), str(tmp_path / "frames.npy"), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None and process.stderr is not None
    first = [process.stdout.readline() for _ in range(3)]
    process.send_signal(signal.SIGINT)
    rest, errors = process.stdout.read(), process.stderr.read()  # `communicate` would miss what is read ahead
    process.wait(timeout=120)
    rows = [json.loads(line) for line in "".join([*first, rest]).splitlines()]
    assert process.returncode == 130 and errors.endswith("edgetta: interrupted\n")
    assert [row["index"] for row in rows] == list(range(len(rows))) and 3 <= len(rows) < 20_000
    assert f"{len(rows):,} predicted until it was interrupted" in errors
    runtime = Runtime(read_bundle(whole_bundle()), "torch", check=False)
    runtime.load_state(tmp_path / "state")
    assert runtime.adapter.steps == len(rows), "state and rows are of the same steps"


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_sigterm_in_the_middle_of_a_step(
    array: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    step = Runtime.step

    def terminated(self: Runtime, images: Any) -> Any:
        if self.adapter.steps == 2:
            signal.raise_signal(signal.SIGTERM)
        return step(self, images)

    monkeypatch.setattr(Runtime, "step", terminated)
    out, state = tmp_path / "out.jsonl", tmp_path / "state"
    assert run(array, "-o", out, "--state", state, "--batch", 8) == 143
    printed = capsys.readouterr()
    assert printed.err.endswith("edgetta: terminated\n") and "24 predicted until it was terminated" in printed.out
    assert len(rows_of(out)) == 24, "the step was finished first"
    runtime = Runtime(read_bundle(whole_bundle()), "torch", check=False)
    runtime.load_state(state)
    assert runtime.adapter.steps == 3


def test_a_reader_that_has_gone_still_saves_the_state(
    array: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgetta import predictions

    written: list[bytes] = []

    def write(self: object, data: bytes) -> None:
        if written:
            raise BrokenPipeError
        written.append(data)

    monkeypatch.setattr(predictions._StandardOutput, "write", write)
    assert run(array, "-o", "-", "--state", tmp_path / "state", "--batch", 8) == 141
    runtime = Runtime(read_bundle(whole_bundle()), "torch", check=False)
    runtime.load_state(tmp_path / "state")
    assert runtime.adapter.steps == 2


def test_help_is_quick_and_teaches() -> None:
    program = (
        "import sys\n"
        "from edgetta.cli import main\n"
        "for verb in (['run'], ['export'], ['prepare'], ['bench']):\n"
        "    assert main([*verb, '--help']) == 0\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for example in (
        "edgetta run bundle/ camera:0 --state learnt.safetensors",
        "edgetta export prepared/ -o bundle/",
        "edgetta prepare wrn40_2 --weights wrn.pt --data cifar10-jpeg -o prepared/",
        "edgetta bench latency --model wrn40_2",
    ):
        assert example in done.stdout


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    """The small bundle with a cost model."""
    path = copy_of_it(tmp_path / "measured")
    edit_manifest(path, lambda manifest: manifest.update(cost_model=cost_model().to_json()))
    return path


def test_a_budget_is_planned_measured_and_told(measured: Path, array: Path, tmp_path: Path, capsys: Captured) -> None:
    summary = tmp_path / "summary.json"
    assert run(array, "--budget", "60MiB", "--batch", 20, "--json", summary, bundle=measured) == 0
    captured = capsys.readouterr()
    assert "planned" in captured.err and "20 images per update" in captured.err
    memory = json.loads(summary.read_text())["memory"]
    assert memory["plan"]["budget_bytes"] == 60 << 20 and memory["plan"]["choice"]["batch"] == 20
    assert 0 < memory["measured_peak_bytes"] < memory["plan"]["predicted_bytes"]
    assert memory["changes"] == [] and memory["failures"] == 0
    assert "MiB planned, " in captured.out and " measured at most, budget 60.0 MiB" in captured.out


def test_a_small_budget_splits_batches(measured: Path, array: Path, tmp_path: Path) -> None:
    rows, summary = tmp_path / "rows.jsonl", tmp_path / "summary.json"
    assert run(array, "--budget", "20MiB", "--batch", 40, "-o", rows, "--json", summary, "-q", bundle=measured) == 0
    data = json.loads(summary.read_text())
    assert len(rows.read_text().splitlines()) == 40 and data["steps"] == 1
    assert data["memory"]["plan"]["choice"]["batch"] < 40 and data["memory"]["split"] == 1


def test_a_budget_that_is_too_small(measured: Path, array: Path, capsys: Captured) -> None:
    assert run(array, "--budget", "1MiB", bundle=measured) == 2
    assert "a budget of 1.0 MiB is too small to adapt small: the smallest that does is" in capsys.readouterr().err


def test_a_budget_in_the_settings(measured: Path, array: Path, tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "edgetta.toml").write_text('[run]\nbudget = "60MiB"\n')
    assert run(array, "--config", tmp_path / "edgetta.toml", bundle=measured) == 0
    assert "budget 60.0 MiB" in capsys.readouterr().out


def test_a_step_without_memory_is_told(array: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgetta.adaptation.network import AdaptiveNetwork

    backward, calls = AdaptiveNetwork.backward, [0]

    def scarce(*arguments: Any, **options: Any) -> None:
        calls[0] += 1
        if calls[0] == 1:
            raise MemoryError("injected")
        backward(*arguments, **options)

    monkeypatch.setattr(AdaptiveNetwork, "backward", scarce)
    rows, summary = tmp_path / "rows.jsonl", tmp_path / "summary.json"
    settings = ("--batch", 20, "--when", "always", "--json", summary, "-o", rows)
    assert run(array, *settings) == 0
    data = json.loads(summary.read_text())
    assert len(rows.read_text().splitlines()) == 40
    assert data["memory"]["failures"] == 1 and data["memory"]["down"] == 1 and data["adapted"] == 1
    assert "memory ran out in it (injected)" in data["memory"]["changes"][0]["reason"]
