"""What `open_source` makes of what the user wrote."""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path

import numpy as np
import pytest

from edgetta.errors import UsageError
from edgetta.sources import SourceError, open_source

SIZE = (2, 2)


@pytest.mark.parametrize("size", [(0, 2), (2, -1), (2.5, 2), (2, 2, 2)])
def test_impossible_sizes(size: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match=re.escape("is not (height, width)")):
        open_source("x.npy", size=size)


def test_missing_paths(tmp_path: Path) -> None:
    np.save(tmp_path / "digits.npy", np.zeros((2, 2, 2)))
    with pytest.raises(SourceError, match=r"there is no .*digit\.npy; did you mean .*digits\.npy\?"):
        open_source(tmp_path / "digit.npy", size=SIZE)
    with pytest.raises(SourceError, match=r"there is no .*; check the path"):
        open_source(tmp_path / "something else", size=SIZE)
    with pytest.raises(SourceError, match=r"\(nor its folder .*nowhere\)"):
        open_source(tmp_path / "nowhere" / "x.png", size=SIZE)


@pytest.mark.parametrize("spec", ["", "a\0b"])
def test_names_that_are_none(spec: str) -> None:
    with pytest.raises(SourceError, match="is no source"):
        open_source(spec, size=SIZE)


def test_unknown_kinds(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("text")
    with pytest.raises(SourceError, match=r"cannot tell from its suffix what .*notes\.txt is; images end in \.jpg"):
        open_source(tmp_path / "notes.txt", size=SIZE)
    with pytest.raises(SourceError, match=r"no source of the kind ftp://; streams are rtsp"):
        open_source("ftp://host/x.png", size=SIZE)


def test_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    np.savez(tmp_path / "x.npz", fog=np.zeros((3, 2, 2), np.uint8))
    assert len(list(open_source("~/x.npz", size=SIZE))) == 3
    assert len(list(open_source("~/x.npz:fog", size=SIZE))) == 3


def test_path_that_may_not_be_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*arguments: object, **options: object) -> os.stat_result:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "exists", denied)
    with pytest.raises(SourceError, match=r"cannot read x\.npy: Permission denied"):
        open_source("x.npy", size=SIZE)


def test_repetition_of_files(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 2, 2), np.uint8))
    source = open_source(tmp_path / "x.npy", size=SIZE, loop=True)
    assert [frame.index for frame in itertools.islice(source, 5)] == [0, 1, 0, 1, 0]
