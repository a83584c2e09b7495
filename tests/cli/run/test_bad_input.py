"""Bad input to `edgetta run`, each with its line and its exit code, and nothing lost."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgetta.bundle import read_bundle
from edgetta.runtime import Runtime
from tests.cli.run.verb import Captured, error_of, picture, rows_of, run
from tests.small_bundle import copy_of_it, edit_manifest, whole_bundle

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


def test_labels_that_the_bundle_has_no_class_for(tmp_path: Path, capsys: Captured) -> None:
    """Each would be counted as an error of the network."""
    np.savez(tmp_path / "x.npz", images=picture(0, (20, 16, 16, 3)), labels=np.arange(20))
    assert run(tmp_path / "x.npz") == 2
    assert "has labels from 0 to 19, and the bundle" in error_of(capsys)


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
        ("gstreamer:0", "a GStreamer pipeline must end in"),
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


def test_a_bare_number_is_hinted_to_be_a_camera(capsys: Captured) -> None:
    assert run("0") == 1
    assert error_of(capsys).endswith("there is no file 0; a camera is named camera:0")


# Bad input: bundles and states.


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: _flip(b / "content.safetensors"), "content.safetensors in bundle"),
        (lambda b: _flip(b / "programs" / "forward.json"), "programs/forward.json in bundle"),
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


def test_a_damaged_state_is_set_aside_as_it_is(photos: Path, tmp_path: Path, capsys: Captured) -> None:
    state, out = tmp_path / "state", tmp_path / "out.jsonl"
    assert run(photos, "--state", state, "--quiet") == 0
    _flip(state)
    damaged = state.read_bytes()
    assert run(photos, "--state", state, "-o", out) == 0
    told = capsys.readouterr().err
    assert "(its SHA-256 differs)" in told and "starting from what was shipped" in told
    (aside,) = tmp_path.glob("state.damaged-*")
    assert aside.read_bytes() == damaged and len(rows_of(out)) == 10


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-9] ^= 4
    path.write_bytes(data)


# Bad input: options and disks.


def test_files_that_are_in_the_way(photos: Path, tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("earlier\n")
    assert run(photos, "-o", out) == 2
    assert "exists: go on behind its rows with --append" in error_of(capsys) and out.read_text() == "earlier\n"
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
        (("--when", "sometimes"), 2, "unknown schedule 'sometimes'; use 'always', 'off', 'on-drift', 'every N'"),
        (("--batch", "0"), 2, "Invalid value for '--batch'"),
        (("--bn", "wrong"), 2, "Invalid value for '--bn'"),
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
    assert "the disk is full" in printed.err and "the earlier saves are unchanged" in printed.err
    assert "10 predicted" in printed.out, "the summary is told all the same"
    assert state.read_bytes() == earlier and len(rows_of(out)) == 10
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out.jsonl", "photos", "state"]


def _with(module: Any, **changes: Any) -> Any:
    """A module with some names replaced."""
    import types

    changed = types.SimpleNamespace(**{name: getattr(module, name) for name in dir(module)})
    vars(changed).update(changes)
    return changed
