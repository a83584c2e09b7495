"""Atomic files and safe names."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import BinaryIO

import pytest

from edgetta.errors import EdgettaError
from edgetta.process_lock import try_lock
from edgetta.storage import (
    StorageError,
    atomic_write,
    atomic_write_bytes,
    atomic_write_json,
    atomic_write_text,
    inside,
    remove_leftovers,
    safe_name,
)


def files_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_writes_a_new_file_and_replaces_an_old_one(tmp_path: Path) -> None:
    target = tmp_path / "state.bin"
    assert atomic_write_bytes(target, b"first") == target
    atomic_write_bytes(target, b"second")
    assert target.read_bytes() == b"second"
    assert files_in(tmp_path) == ["state.bin"]


def test_text_keeps_its_line_ends_and_json_is_readable(tmp_path: Path) -> None:
    atomic_write_text(tmp_path / "a.txt", "é\r\n")
    assert (tmp_path / "a.txt").read_bytes() == "é\r\n".encode()
    atomic_write_json(tmp_path / "a.json", {"error": 12.5, "name": "é"})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"error": 12.5, "name": "é"}
    with pytest.raises(ValueError):
        atomic_write_json(tmp_path / "a.json", {"error": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["error"] == 12.5


def test_the_file_can_be_sought_while_it_is_written(tmp_path: Path) -> None:
    def write(file: BinaryIO) -> None:
        file.write(b"????body")
        file.seek(0)
        file.write(b"head")

    assert atomic_write(tmp_path / "f", write).read_bytes() == b"headbody"


def test_the_bytes_are_on_the_disk_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "state.bin"
    target.write_bytes(b"old")
    order: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def recorded_fsync(descriptor: int) -> None:
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        size = os.fstat(descriptor).st_size
        order.append(f"fsync {kind} {size}" if kind == "file" else "fsync folder")
        fsync(descriptor)

    def recorded_replace(source: Path, destination: Path) -> Path:
        order.append("rename")
        return replace(source, destination)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(Path, "replace", recorded_replace)
    atomic_write_bytes(target, b"new!!")
    assert order == ["fsync file 5", "rename", "fsync folder"]


def full_disk(file: BinaryIO) -> None:
    file.write(b"half of it")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def interrupted(file: BinaryIO) -> None:
    file.write(b"half of it")
    raise KeyboardInterrupt


def test_full_disk_leaves_the_old_file_and_says_what_to_do(tmp_path: Path) -> None:
    target = tmp_path / "state.bin"
    target.write_bytes(b"old")
    with pytest.raises(
        StorageError, match=r"disk is full \([\d,.]+ MiB free.*another folder; the earlier file is unch"
    ):
        atomic_write(target, full_disk)
    assert target.read_bytes() == b"old"
    assert files_in(tmp_path) == ["state.bin"]
    with pytest.raises(StorageError) as caught:
        atomic_write(tmp_path / "new.bin", full_disk)
    assert "earlier file" not in str(caught.value)
    assert files_in(tmp_path) == ["state.bin"]
    assert issubclass(StorageError, EdgettaError)


def test_interruption_leaves_the_old_file_and_no_temporary_one(tmp_path: Path) -> None:
    target = tmp_path / "state.bin"
    target.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        atomic_write(target, interrupted)
    assert target.read_bytes() == b"old"
    assert files_in(tmp_path) == ["state.bin"]


def test_failing_rename_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, destination: Path) -> Path:
        raise PermissionError(errno.EACCES, "denied")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(StorageError, match="permission denied; choose a folder"):
        atomic_write_bytes(tmp_path / "f", b"x")
    assert files_in(tmp_path) == []


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX limits")
def test_the_system_refuses_more_bytes(tmp_path: Path) -> None:
    """A real refusal in the middle of a write, by a limit on the size of files."""
    (tmp_path / "state.bin").write_bytes(b"old")
    program = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))\n"
        "from edgetta.errors import EdgettaError\n"
        "from edgetta.storage import atomic_write_bytes\n"
        "try:\n"
        "    atomic_write_bytes(sys.argv[1], bytes(1 << 20))\n"
        "except EdgettaError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "state.bin")], capture_output=True, text=True, check=True
    )
    assert "ulimit -f" in done.stdout
    assert (tmp_path / "state.bin").read_bytes() == b"old"
    assert files_in(tmp_path) == ["state.bin"]


def test_missing_folder_folder_and_file_as_folder(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"there is no folder .*nowhere; create it"):
        atomic_write_bytes(tmp_path / "nowhere" / "f", b"x")
    with pytest.raises(StorageError, match="it is a folder; name a file in it"):
        atomic_write_bytes(tmp_path, b"x")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="is a file, not a folder"):
        atomic_write_bytes(tmp_path / "file" / "f", b"x")
    with pytest.raises(StorageError, match="NUL"):
        atomic_write_bytes("a\0b", b"x")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_or_device_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StorageError, match="no regular file"):
        atomic_write_bytes(tmp_path / "pipe", b"x")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_link_keeps_pointing_and_permissions_stay(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "real").chmod(0o640)
    (tmp_path / "link").symlink_to("real")
    atomic_write_bytes(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"
    assert stat.S_IMODE((tmp_path / "real").stat().st_mode) == 0o640


def test_a_new_file_follows_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        atomic_write_bytes(tmp_path / "f", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o640


def test_the_longest_name_still_has_room_for_its_temporary_file(tmp_path: Path) -> None:
    name = "é" * 127
    assert atomic_write_bytes(tmp_path / name, b"x").name == name
    with pytest.raises(StorageError, match="too long"):
        atomic_write_bytes(tmp_path / ("n" * 300), b"x")


@pytest.mark.parametrize("name", ["manifest.json", "segments/00.forward.onnx", "a/b/c-1_2+3"])
def test_safe_names(name: str) -> None:
    assert safe_name(name).as_posix() == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/etc/passwd",
        "../up",
        "a/../b",
        "a//b",
        "a/",
        ".hidden",
        "a/.b",
        "C:\\x",
        "a\\b",
        "a\nb",
        "a\0b",
        "é",
        "-rf",
        "nul",
        "COM1.txt",
        "dots.",
        "x" * 256,
    ],
)
def test_unsafe_names(name: str) -> None:
    with pytest.raises(StorageError, match="unsafe file name"):
        safe_name(name)


def test_inside_refuses_links(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "bundle" / "segments").symlink_to("../outside")
    assert inside(tmp_path / "bundle", "manifest.json") == tmp_path / "bundle" / "manifest.json"
    with pytest.raises(StorageError, match="symbolic link"):
        inside(tmp_path / "bundle", "segments/00.onnx")


def test_leftovers_of_killed_processes(tmp_path: Path) -> None:
    """Only our own, only plain files, only what no process holds, and nothing of this very minute."""
    old = time.time() - 3600
    names = {
        ".state.0123abcd.tmp": "goes",
        "..0123abcd.tmp": "goes",
        ".state.0123abcd.tmp.more": "stays",
        "state.0123abcd.tmp": "stays",
        ".state.0123ABCD.tmp": "stays",
    }
    for name in names:
        (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / name, (old, old))
    (tmp_path / ".young.0123abcd.tmp").write_bytes(b"x")
    (tmp_path / ".folder.0123abcd.tmp").mkdir()
    (tmp_path / ".link.0123abcd.tmp").symlink_to(tmp_path / "state.0123abcd.tmp")
    held = tmp_path / ".held.0123abcd.tmp"
    with held.open("wb") as file:
        os.utime(held, (old, old))
        assert try_lock(file.fileno())
        gone = remove_leftovers(tmp_path)
    assert sorted(path.name for path in gone) == sorted(name for name, fate in names.items() if fate == "goes")
    assert held.exists() and len(list(tmp_path.iterdir())) == 7
    assert remove_leftovers(tmp_path) == [held]
    assert remove_leftovers(tmp_path / "missing") == []


def test_a_file_that_is_being_written_is_no_leftover(tmp_path: Path) -> None:
    def write(file: BinaryIO) -> None:
        (temporary,) = tmp_path.glob(".*.tmp")
        os.utime(temporary, (0, 0))
        assert remove_leftovers(tmp_path) == []
        file.write(b"whole")

    assert atomic_write(tmp_path / "state", write).read_bytes() == b"whole"
