"""The files of a bundle, folder or zip, opened safely: nothing is used before its size and SHA-256 were checked.

A folder is read where it stands. Of a zip the files that the manifest lists are extracted to a temporary folder, each
no longer than the manifest says. No name may leave the bundle, no link is followed, only regular files are read.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import struct
import tempfile
import weakref
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from edgetta.bundle.manifest import MANIFEST, MAX_MANIFEST_BYTES, FileEntry, Manifest, parse_manifest
from edgetta.errors import BundleError
from edgetta.process_lock import try_lock
from edgetta.signature import MAX_BYTES as MAX_SIGNATURE_BYTES
from edgetta.signature import SIGNATURE
from edgetta.storage import StorageError, inside, safe_name, storage_error

if TYPE_CHECKING:
    from edgetta.signature import Verifier

MAX_ENTRIES = 20_000  # files and folders that may lie in a bundle, listed or not
MAX_DIRECTORY_BYTES = 8 << 20  # table of contents of a zip
MAX_RATIO = 200  # extracted bytes per byte of zip; above MIN_LIMITED only
MIN_LIMITED = 64 << 20
ALIVE = ".alive"
"""In an extracted folder: locked as long as its process lives."""

_PREFIX = "edgetta-bundle-"
_CHUNK = 1 << 20
_TAIL = 1 << 17  # bytes at the end of a zip in which its table of contents is announced
_READ = os.O_RDONLY
for _flag in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY", "O_CLOEXEC"):  # each exists on some systems only
    _READ |= getattr(os, _flag, 0)
_AGAIN = "copy the bundle again, or export it again"


@dataclass(frozen=True)
class BundleFiles:
    """The verified files of a bundle.

    folder     where they lie: the bundle itself, or the folder that a zip was extracted to
               (an extracted folder is removed when this object goes, or when Python ends)
    unlisted   names that lie in the bundle and are not part of it (nothing reads them)
    extracted  whether the folder is a temporary one
    raw        the bytes of the manifest
    signatures the bytes of `manifest.sig`, None where the bundle is not signed
    """

    path: Path
    folder: Path
    manifest: Manifest
    unlisted: tuple[str, ...] = ()
    extracted: bool = False
    raw: bytes = b""
    signatures: bytes | None = None

    def read(self, name: str) -> bytearray:
        """The content of a listed file, in memory of this process, and checked there: what is used is what was hashed,
        whatever becomes of the file."""
        entry = self.manifest.files[name]
        data = bytearray(entry.size)
        with _open(self.folder, name, self.path) as file:
            whole = file.readinto(data) == entry.size and not file.read(1)  # type: ignore[attr-defined]
        if not whole or hashlib.sha256(data).hexdigest() != entry.sha256:
            raise BundleError(f"{name} in bundle {self.path} changed while it was read; {_AGAIN}")
        return data

    def file(self, name: str) -> Path:
        """The path of a listed file."""
        if name not in self.manifest.files:
            raise BundleError(f"bundle {self.path} lists no file {name!r}; {_AGAIN}")
        return self.folder / name

    def discard(self) -> None:
        """Remove an extracted folder now: the bundle turned out to be unusable."""
        if self.extracted:
            shutil.rmtree(self.folder, ignore_errors=True)


def open_bundle(path: Path, signed_by: Verifier | None = None) -> BundleFiles:
    """Find, check and, for a zip, extract a bundle. Raises `BundleError` for everything that is wrong with it.

    signed_by   a key whose signature is required; it is checked before anything in the manifest is looked at
    """
    try:
        if path.is_dir():
            return _open_folder(path, signed_by)
        if path.is_file():
            return _open_zip(path, signed_by)
    except OSError as error:
        raise BundleError(
            f"cannot read bundle {path}: {error.strerror or error}; check the path and the disk"
        ) from error
    kind = "is neither a folder nor a file" if path.exists() else "does not exist"
    raise BundleError(f"bundle {path} {kind}; give the folder or zip that `edgetta export` wrote")


def _open_folder(path: Path, signed_by: Verifier | None) -> BundleFiles:
    folder = path.resolve()
    if not (folder / MANIFEST).exists() and not (folder / MANIFEST).is_symlink():
        raise BundleError(f"{path} is no bundle: it has no {MANIFEST}; give what `edgetta export` wrote")
    with _open(folder, MANIFEST, path) as file:
        raw = _limited(file, MAX_MANIFEST_BYTES, MANIFEST, path)
    signatures = None
    if (folder / SIGNATURE).exists():
        with _open(folder, SIGNATURE, path) as file:
            signatures = _limited(file, MAX_SIGNATURE_BYTES, SIGNATURE, path)
    if signed_by is not None:
        signed_by.check(raw, signatures, path)
    manifest = parse_manifest(raw, path)
    present = set(_walk(folder, path))
    for name, entry in manifest.files.items():
        if name not in present:
            raise BundleError(f"{name} is missing from bundle {path}; {_AGAIN}")
        with _open(folder, name, path) as file:
            size = os.fstat(file.fileno()).st_size
            if size != entry.size:
                raise _wrong_size(name, size, entry, path)
            _verify(file, name, entry, path)
    unlisted = tuple(sorted(present - {MANIFEST, SIGNATURE, *manifest.files}))
    return BundleFiles(path, folder, manifest, unlisted, raw=raw, signatures=signatures)


def _open_zip(path: Path, signed_by: Verifier | None) -> BundleFiles:
    try:
        _check_directory(path)
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise BundleError(f"{path} is neither a folder nor a readable zip ({error}); {_AGAIN}") from error
    extracted: list[Path] = []
    try:
        with archive:
            members = _members(archive, path)
            if MANIFEST not in members:
                raise BundleError(f"{path} is no bundle, or is cut short: it has no {MANIFEST}; {_AGAIN}")
            with archive.open(members[MANIFEST]) as file:
                raw = _limited(file, MAX_MANIFEST_BYTES, MANIFEST, path)
            signatures = None
            if SIGNATURE in members:
                with archive.open(members[SIGNATURE]) as file:
                    signatures = _limited(file, MAX_SIGNATURE_BYTES, SIGNATURE, path)
            if signed_by is not None:
                signed_by.check(raw, signatures, path)
            manifest = parse_manifest(raw, path)
            total = sum(entry.size for entry in manifest.files.values())
            if total > max(MIN_LIMITED, MAX_RATIO * path.stat().st_size):
                raise BundleError(f"{path} would grow to {total} bytes when extracted, as no bundle does; {_AGAIN}")
            folder, lock = _temporary_folder()
            extracted.append(folder)
            (folder / MANIFEST).write_bytes(raw)  # so that the folder is a bundle itself
            if signatures is not None:
                (folder / SIGNATURE).write_bytes(signatures)
            for name, entry in manifest.files.items():
                if name not in members:
                    raise BundleError(f"{name} is missing from bundle {path}; {_AGAIN}")
                if members[name].file_size != entry.size:
                    raise _wrong_size(name, members[name].file_size, entry, path)
                with archive.open(members[name]) as file:
                    _extract(file, folder, name, entry, path)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        _discard(extracted)
        raise BundleError(f"zip {path} is damaged ({error}); {_AGAIN}") from error
    except BaseException:
        _discard(extracted)
        raise
    unlisted = tuple(sorted(set(members) - {MANIFEST, SIGNATURE, *manifest.files}))
    files = BundleFiles(path, folder, manifest, unlisted, True, raw, signatures)
    weakref.finalize(files, _remove, folder, lock)
    return files


def _check_directory(path: Path) -> None:
    """Refuse a zip whose table of contents is larger than that of any bundle, before it is read: each of its entries
    takes a kilobyte once it is."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        start = max(0, size - _TAIL)
        file.seek(start)
        tail = file.read(_TAIL)
        at = tail.rfind(b"PK\x05\x06")
        if at < 0 or at + 22 > len(tail):
            return  # no zip at all, as will be said
        entries, length = struct.unpack("<HL", tail[at + 10 : at + 16])
        if entries == 0xFFFF or length == 0xFFFFFFFF:
            before = tail.rfind(b"PK\x06\x06", 0, at)
            if before < 0 or before + 56 > len(tail):
                raise BundleError(f"zip {path} has no table of contents where one belongs; {_AGAIN}")
            entries, length = struct.unpack("<QQ", tail[before + 32 : before + 48])
    if entries > MAX_ENTRIES or length > MAX_DIRECTORY_BYTES:
        raise BundleError(f"{path} holds {entries} entries, more than the {MAX_ENTRIES} allowed; {_AGAIN}")


def _members(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    """Files by name, folders left out. A single folder around the bundle, as file managers make it, is taken off."""
    entries = archive.infolist()
    if len(entries) > MAX_ENTRIES:
        raise BundleError(f"{path} holds {len(entries)} entries, more than the {MAX_ENTRIES} allowed; {_AGAIN}")
    members: dict[str, zipfile.ZipInfo] = {}
    for info in entries:
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise BundleError(f"{info.filename!r} in {path} is a link or a device; a bundle holds plain files only")
        name = info.filename.rstrip("/") if info.is_dir() else info.filename
        parts = name.split("/")
        if name.startswith("/") or "\\" in name or ":" in parts[0] or ".." in parts or "" in parts or "." in parts:
            raise BundleError(
                f"unsafe file name {info.filename!r} in {path}: it leads out of the bundle; do not use it"
            )
        if info.is_dir():
            continue
        if info.flag_bits & 1:
            raise BundleError(f"{info.filename!r} in {path} is encrypted; zip the bundle without a password")
        if name in members:
            raise BundleError(f"{info.filename!r} occurs twice in {path}; {_AGAIN}")
        members[name] = info
    tops = {name.split("/")[0] for name in members if not name.startswith("__MACOSX/")}
    if MANIFEST not in members and len(tops) == 1:
        prefix = tops.pop() + "/"
        members = {name.removeprefix(prefix): info for name, info in members.items() if name.startswith(prefix)}
    return members


def _extract(file: IO[bytes], folder: Path, name: str, entry: FileEntry, path: Path) -> None:
    target = folder.joinpath(*safe_name(name).parts)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as out:
            _verify(file, name, entry, path, out)
    except OSError as error:
        raise storage_error(error, target) from error


def _verify(file: IO[bytes], name: str, entry: FileEntry, path: Path, copy: IO[bytes] | None = None) -> None:
    """Hash `file`, never reading past the size that the manifest gives, and copy it on the way where asked."""
    digest = hashlib.sha256()
    left = entry.size
    while left >= 0:
        chunk = file.read(min(_CHUNK, left + 1))
        if not chunk:
            break
        left -= len(chunk)
        digest.update(chunk)
        if copy is not None and left >= 0:
            copy.write(chunk)
    if left:
        size = "more" if left < 0 else str(entry.size - left)
        raise BundleError(f"{name} in bundle {path} has {size} bytes where the manifest says {entry.size}; {_AGAIN}")
    if digest.hexdigest() != entry.sha256:
        raise BundleError(f"{name} in bundle {path} is damaged (its SHA-256 is not the manifest's); {_AGAIN}")


def _wrong_size(name: str, size: int, entry: FileEntry, path: Path) -> BundleError:
    return BundleError(f"{name} in bundle {path} has {size} bytes where the manifest says {entry.size}; {_AGAIN}")


def _open(folder: Path, name: str, path: Path) -> IO[bytes]:
    """Open a regular file inside `folder` without following a link."""
    try:
        target = inside(folder, name)
    except StorageError as error:
        raise BundleError(f"bundle {path}: {error}") from error
    try:
        # Opening a pipe would wait for its other end.
        descriptor = os.open(target, _READ)
    except OSError as error:
        raise BundleError(f"cannot read {name} in bundle {path}: {error.strerror}; {_AGAIN}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BundleError(f"{name} in bundle {path} is not a regular file; {_AGAIN}")
    return os.fdopen(descriptor, "rb")


def _limited(file: IO[bytes], limit: int, name: str, path: Path) -> bytes:
    data = file.read(limit + 1)
    if len(data) > limit:
        raise BundleError(f"{name} of bundle {path} is larger than the {limit} bytes allowed; {_AGAIN}")
    return data


def _walk(folder: Path, path: Path) -> Iterator[str]:
    """Names of all files in the bundle; a link or a device anywhere in it is refused, listed or not."""
    count = 0
    waiting = [folder]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                count += 1
                name = Path(entry.path).relative_to(folder).as_posix()
                if count > MAX_ENTRIES:
                    raise BundleError(f"bundle {path} holds more than {MAX_ENTRIES} files and folders; {_AGAIN}")
                if entry.is_symlink():
                    raise BundleError(f"{name} in bundle {path} is a link; a bundle holds plain files only: remove it")
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(Path(entry.path))
                elif entry.is_file(follow_symlinks=False):
                    yield name
                else:
                    raise BundleError(f"{name} in bundle {path} is not a regular file; remove it")


def remove_extracted(root: Path | None = None) -> list[Path]:
    """Remove folders that killed processes extracted zips to, below the folder for temporary files. Returns which.

    A folder is one of a living process where a lock on its file `ALIVE` is held; those without one are left alone.
    """
    removed: list[Path] = []
    with suppress(OSError):
        for folder in sorted((root or Path(tempfile.gettempdir())).glob(f"{_PREFIX}*")):
            with suppress(OSError):
                if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                    continue
                lock = os.open(folder / ALIVE, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
                try:
                    dead = try_lock(lock)
                finally:
                    os.close(lock)
                if dead:
                    shutil.rmtree(folder, ignore_errors=True)
                    removed.append(folder)
    return removed


def _temporary_folder() -> tuple[Path, int]:
    """A new folder, and the lock that says that it is in use."""
    if hasattr(os, "getuid"):
        remove_extracted()
    try:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX)).resolve()
        # Locked before it has its name: whoever sees it sees that it is held.
        descriptor, name = tempfile.mkstemp(dir=folder)
        try_lock(descriptor)
        Path(name).rename(folder / ALIVE)
        return folder, descriptor
    except OSError as error:
        raise storage_error(error, Path(tempfile.gettempdir()) / "edgetta-bundle") from error


def _remove(folder: Path, lock: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        os.close(lock)


def _discard(folders: list[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
