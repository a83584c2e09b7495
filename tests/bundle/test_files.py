"""The files of a bundle, folder or zip: no damage, no link and no attack gets through."""

from __future__ import annotations

import os
import shutil
import stat
import struct
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from edgetta.bundle import Bundle, open_engine, read_bundle, self_test
from edgetta.bundle import files as bundle_files
from edgetta.errors import BundleError, EdgettaError
from tests.small_bundle import edit_manifest, names, refused, replace_file, zipped


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("prefix", ["", "small/"])
def test_zips(whole: Path, tmp_path: Path, prefix: str, compression: int) -> None:
    bundle = read_bundle(zipped(whole, tmp_path / "small.zip", prefix, compression))
    assert bundle.identity == read_bundle(whole).identity
    self_test(bundle, open_engine(bundle, "onnxruntime"))


def test_an_extracted_zip_lives_as_long_as_the_bundle(
    whole: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    path = zipped(whole, tmp_path / "small.zip")
    bundle: Bundle | None = read_bundle(path)
    assert bundle is not None
    (extracted,) = tmp_path.glob("edgetta-bundle-*")
    assert stat.S_IMODE(extracted.stat().st_mode) == 0o700
    assert bundle.files.folder == extracted.resolve()
    del bundle
    assert not extracted.exists()
    replace_file(folder, "programs/measure.json", b"{}")
    refused(zipped(folder, tmp_path / "broken.zip"), "programs/measure.json")
    assert not list(tmp_path.glob("edgetta-bundle-*"))


def test_no_room_to_extract(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = zipped(whole, tmp_path / "small.zip")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(EdgettaError, match="there is no folder"):
        read_bundle(path)


@pytest.mark.parametrize(
    "name", ["../evil", "/evil", "segments/../../evil", "segments\\..\\evil", "C:evil", "./evil", "a//evil"]
)
def test_zip_names_that_leave_it(whole: Path, tmp_path: Path, name: str) -> None:
    path = zipped(whole, tmp_path / "small.zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(zipfile.ZipInfo(name), b"evil")
    refused(path, "unsafe file name", "leads out of the bundle")
    assert not list(tmp_path.rglob("evil"))


def test_links_and_devices_in_a_zip(whole: Path, tmp_path: Path) -> None:
    for kind in (stat.S_IFLNK, stat.S_IFIFO, stat.S_IFBLK):
        path = zipped(whole, tmp_path / "small.zip")
        info = zipfile.ZipInfo("segments/extra")
        info.external_attr = (kind | 0o777) << 16
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(info, b"/etc/passwd")
        refused(path, "segments/extra", "link or a device")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_other_attacks_by_zip(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = zipped(whole, tmp_path / "small.zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("content.safetensors", b"another")
    refused(path, "content.safetensors", "occurs twice")

    path = zipped(whole, tmp_path / "encrypted.zip")
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(bytes(raw))
    refused(path, "encrypted")

    monkeypatch.setattr(bundle_files, "MAX_ENTRIES", 5)
    refused(zipped(whole, tmp_path / "many.zip"), "more than the 5 allowed")


def test_zip_bombs(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_files, "MIN_LIMITED", 1 << 20)
    size = 48 << 20
    bomb = {"bomb.onnx": bytes(size)}
    path = zipped(folder, tmp_path / "bomb.zip", compression=zipfile.ZIP_DEFLATED, more=bomb)
    assert size > bundle_files.MAX_RATIO * path.stat().st_size
    assert read_bundle(path).unlisted == ("bomb.onnx",), "what is not listed is never extracted"
    # Listed, with the size that it has: it grows too much. With a smaller one: it is not read at all.
    for declared, words in ((size, "as no bundle does"), (1000, f"has {size} bytes where the manifest says 1000")):
        edit_manifest(folder, lambda m, n=declared: m["files"].update({"bomb.onnx": {"bytes": n, "sha256": "0" * 64}}))
        zipped(folder, path, compression=zipfile.ZIP_DEFLATED, more=bomb)
        refused(path, words)


def test_a_zip_that_lies_about_its_sizes(folder: Path, tmp_path: Path) -> None:
    """The directory of the zip, and the manifest, say 1,000 bytes; the stream goes on for longer."""
    edit_manifest(folder, lambda m: m["files"].update({"long.onnx": {"bytes": 1000, "sha256": "0" * 64}}))
    path = zipped(folder, tmp_path / "lying.zip", compression=zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("long.onnx", bytes(5_000_000))
    raw = bytearray(path.read_bytes())
    at = raw.rindex(b"long.onnx") - 46 + 24
    assert int.from_bytes(raw[at : at + 4], "little") == 5_000_000
    raw[at : at + 4] = (1000).to_bytes(4, "little")
    path.write_bytes(bytes(raw))
    refused(path, "lying.zip")


def test_flipped_bits_anywhere_in_a_zip(whole: Path, tmp_path: Path) -> None:
    good = zipped(whole, tmp_path / "small.zip", compression=zipfile.ZIP_DEFLATED).read_bytes()
    identity = read_bundle(tmp_path / "small.zip").identity
    generator = np.random.default_rng(0)
    caught = 0
    # The last bytes are the directory of the zip, where a flip is most varied in its effects.
    for at in (*generator.integers(0, len(good), 12), *(len(good) - 1 - generator.integers(0, 2000, 12))):
        raw = bytearray(good)
        raw[at] ^= 1 << generator.integers(0, 8)
        path = tmp_path / "flipped.zip"
        path.write_bytes(bytes(raw))
        try:
            assert read_bundle(path).identity == identity, "a date or a comment"
        except BundleError as error:
            assert "\n" not in str(error)
            caught += 1
    assert caught >= 10


def test_one_flipped_byte_in_each_file(whole: Path, folder: Path) -> None:
    assert len(names(folder)) == 10
    for position in (0.0, 0.37, 0.999):
        for name in names(folder):
            raw = bytearray((whole / name).read_bytes())
            raw[int(len(raw) * position)] ^= 4
            (folder / name).write_bytes(bytes(raw))
            refused(folder, name, str(folder))
            shutil.copy(whole / name, folder / name)
    read_bundle(folder)


def test_truncated_longer_and_missing_files(whole: Path, folder: Path) -> None:
    for name in names(folder):
        raw = (whole / name).read_bytes()
        for damaged in (raw[:-1], raw[: len(raw) // 2], b"", raw + b"\0"):
            (folder / name).write_bytes(damaged)
            refused(folder, name)
        (folder / name).unlink()
        refused(folder, name, "no bundle" if name == "manifest.json" else "missing")
        shutil.copy(whole / name, folder / name)


def test_damage_in_a_zip_is_named(folder: Path, tmp_path: Path) -> None:
    for name in ("programs/backward.json", "content.safetensors", "manifest.json"):
        raw = (folder / name).read_bytes()
        for damaged in (raw[:-1], raw[:-3] + bytes([raw[-3] ^ 1]) + raw[-2:]):
            (folder / name).write_bytes(damaged)
            refused(zipped(folder, tmp_path / "damaged.zip"), name, "damaged.zip")
        (folder / name).unlink()
        refused(zipped(folder, tmp_path / "damaged.zip"), name)
        (folder / name).write_bytes(raw)
    raw = zipped(folder, tmp_path / "cut.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(raw[: len(raw) // 2])
    refused(tmp_path / "cut.zip", "neither a folder nor a readable zip")
    within = raw.rindex(b"PK\x05\x06", 0, len(raw) - 100) + 22  # behind reference.npz, which is a zip of its own
    (tmp_path / "cut.zip").write_bytes(raw[:within])
    refused(tmp_path / "cut.zip", "cut short")


def test_paths_that_are_no_bundle(tmp_path: Path) -> None:
    refused(tmp_path / "missing", "does not exist", "edgetta export")
    refused(tmp_path, "no manifest.json")
    (tmp_path / "file").write_bytes(b"text")
    refused(tmp_path / "file", "neither a folder nor a readable zip")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as archive:
        archive.writestr("readme", "nothing")
    refused(tmp_path / "empty.zip", "it has no manifest.json")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="POSIX files")
def test_links_and_pipes_in_a_folder(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    for name in ("reference.npz", "programs/weights.safetensors", "manifest.json"):
        shutil.move(folder / name, outside / "file")
        (folder / name).symlink_to(outside / "file")
        refused(folder, name, "link")
        (folder / name).unlink()
        os.mkfifo(folder / name)
        refused(folder, name, "not a regular file")
        (folder / name).unlink()
        (folder / name).mkdir()
        refused(folder, name)
        (folder / name).rmdir()
        shutil.move(outside / "file", folder / name)
    for link, target in (("extra", "/etc/passwd"), ("programs/05.json", "forward.json"), ("more", str(outside))):
        (folder / link).symlink_to(target)
        refused(folder, link, "link")
        (folder / link).unlink()
    shutil.move(folder / "programs", outside / "programs")
    (folder / "programs").symlink_to(outside / "programs")
    refused(folder, "programs", "link")


def test_a_link_to_a_bundle_and_files_beside_it_are_fine(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(folder)
    (folder / "notes.txt").write_text("mine")
    (folder / ".DS_Store").write_bytes(b"x")
    assert read_bundle(tmp_path / "current").unlisted == (".DS_Store", "notes.txt")


def test_too_many_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_files, "MAX_ENTRIES", 8)
    refused(folder, "more than 8 files")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_files_that_may_not_be_read(folder: Path) -> None:
    (folder / "reference.npz").chmod(0)
    refused(folder, "reference.npz", "Permission denied")


def test_a_zip_of_a_million_names_is_not_even_listed(whole: Path, tmp_path: Path) -> None:
    """Forty-six bytes an entry in the file, and a kilobyte in memory: refused from what the end of the file says."""
    path = zipped(whole, tmp_path / "small.zip")
    data = path.read_bytes()
    at = data.rfind(b"PK\x05\x06")
    count, length = 60_000, int.from_bytes(data[at + 12 : at + 16], "little")
    many = data[:at] + b"\0" * 46 * count
    path.write_bytes(many + data[at : at + 10] + struct.pack("<HL", count, length + 46 * count) + data[at + 16 :])
    refused(path, f"holds {count} entries")
    end64 = b"PK\x06\x06" + struct.pack("<QHHLLQQQQ", 44, 45, 45, 0, 0, 1 << 20, 1 << 20, 1 << 30, 0)
    locator = b"PK\x06\x07" + struct.pack("<LQL", 0, at, 1)
    path.write_bytes(data[:at] + end64 + locator + data[at : at + 8] + b"\xff" * 8 + data[at + 16 :])
    refused(path, f"holds {1 << 20} entries")
    path.write_bytes(data[:at] + data[at : at + 8] + b"\xff" * 8 + data[at + 16 :])
    refused(path, "no table of contents")


EXTRACTS = """
import os, signal, sys, tempfile
tempfile.tempdir = sys.argv[2]
from edgetta.bundle.files import open_bundle
from pathlib import Path
files = open_bundle(Path(sys.argv[1]))
print(files.folder, flush=True)
if len(sys.argv) > 3: sys.stdin.read()
else: os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such locks")
def test_what_killed_processes_extracted_is_removed(whole: Path, tmp_path: Path) -> None:
    path = zipped(whole, tmp_path / "small.zip")
    folder = tmp_path / "tmp"
    folder.mkdir()
    command = [sys.executable, "-c", EXTRACTS, str(path), str(folder)]
    living = subprocess.Popen([*command, "lives"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert living.stdout is not None
    kept = Path(living.stdout.readline().strip())
    dead = Path(subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip())
    (folder / "edgetta-bundle-foreign").mkdir()
    assert dead.is_dir()
    assert bundle_files.remove_extracted(folder) == [dead]
    assert kept.is_dir() and not dead.exists() and (folder / "edgetta-bundle-foreign").is_dir()
    living.communicate("")
    assert not kept.exists(), "removed by its own process"
