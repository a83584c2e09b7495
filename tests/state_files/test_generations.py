"""A damaged save costs what was learnt since the one before it, and no start ends with an error for it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from edgetta import storage
from edgetta.errors import BundleError
from edgetta.state_files import Contents, StateFile
from edgetta.state_files.contents import StateError, read
from edgetta.storage import StorageError


def state(number: int) -> Contents:
    return Contents({"w": np.full(5, number, np.float32)}, {"number": number})


def number_of(file: StateFile) -> tuple[int | None, tuple[str, ...]]:
    """What a start finds, and what is said of it."""
    loaded: list[int] = []
    found = file.load(lambda contents: loaded.append(contents.info["number"]))
    assert len(loaded) == (found.path is not None)
    return (loaded[0] if loaded else None), found.told


@pytest.fixture
def file(tmp_path: Path) -> StateFile:
    made = StateFile(tmp_path / "learnt [1].safetensors")
    for number in range(5):
        made.save(state(number))
    return made


def test_the_three_latest_are_kept(file: StateFile) -> None:
    assert [read(path).info["number"] for path in file.generations] == [4, 3, 2]
    assert sorted(file.path.parent.iterdir()) == sorted(file.generations)
    assert number_of(file) == (4, ())


def test_no_save_yet(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "none")
    assert not file.exists() and number_of(file) == (None, ())


@pytest.mark.parametrize("damage", [b"", b"no state", None])
def test_the_newest_whole_one_is_loaded(file: StateFile, damage: bytes | None) -> None:
    if damage is None:
        data = bytearray(file.path.read_bytes())
        data[-1] ^= 1
        damage = bytes(data)
    file.path.write_bytes(damage)
    number, told = number_of(file)
    assert number == 3 and len(told) == 1 and "set aside as" in told[0] and "\n" not in told[0]
    assert len(file.damaged) == 1 and file.damaged[0].read_bytes() == damage and not file.path.exists()
    assert number_of(file) == (3, ()), "said once"
    file.save(state(9))
    assert number_of(file) == (9, ())


def test_none_is_whole(file: StateFile) -> None:
    for path in file.generations:
        path.write_bytes(b"x")
    number, told = number_of(file)
    assert number is None and len(told) == 4 and "starting from what was shipped" in told[-1]
    assert len(file.damaged) == 3
    file.save(state(7))
    for path in file.generations:
        path.write_bytes(b"y")
    number_of(file)
    assert len(file.damaged) == 3, "no more than three fill the disk"


def test_what_does_not_fit_is_set_aside_and_another_bundles_is_not(file: StateFile) -> None:
    def fits(contents: Contents) -> None:
        if contents.info["number"] > 3:
            raise ValueError("tensor 'w' has another shape")

    found = file.load(fits)
    assert found.path == file.generations[1] and "another shape" in found.told[0]

    def another(contents: Contents) -> None:
        raise BundleError("it belongs to another bundle")

    with pytest.raises(BundleError, match="another bundle"):
        file.load(another)
    assert number_of(file)[0] == 3, "it is still there"


def test_a_full_disk_leaves_every_generation(file: StateFile, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(storage.os, "fsync", full)
    with pytest.raises(StorageError, match="the disk is full"):
        file.save(state(5))
    monkeypatch.undo()
    assert [read(path).info["number"] for path in file.generations] == [4, 3, 2]
    assert sorted(file.path.parent.iterdir()) == sorted(file.generations)


@pytest.mark.parametrize("at", range(4))
def test_killed_at_every_moment_of_a_save(file: StateFile, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the renames of a save is the last thing that a process does."""
    replace, calls = Path.replace, [0]

    def killed(self: Path, target: Path) -> Path:
        if calls[0] == at:
            raise KeyboardInterrupt
        calls[0] += 1
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        file.save(state(5))
    monkeypatch.undo()
    assert number_of(file) == (4, ())
    file.save(state(6))
    assert number_of(file) == (6, ())


def test_going_back(file: StateFile) -> None:
    file.restore(2)
    assert [read(path).info["number"] for path in file.generations] == [2, 4, 3]
    for wrong in (0, 3):
        with pytest.raises(BundleError, match="no generation"):
            file.restore(wrong)
    file.generations[1].write_bytes(b"x")
    with pytest.raises(StateError):
        file.restore(1)
