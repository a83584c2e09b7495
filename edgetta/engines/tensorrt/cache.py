"""Engines on disk: a name that people can read, and beside it a JSON file with everything that the engine depends on.

That file is compared before TensorRT sees the engine, which it would refuse in words that help nobody. What does not
fit is told in one line and built again. One process builds at a time; others wait for it and then find its engines.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from edgetta.engines.tensorrt.build import BuildOptions
from edgetta.engines.tensorrt.library import Target
from edgetta.storage import atomic_write_bytes, atomic_write_json, storage_error

FORMAT = 2
"""Of the JSON file and of how `build.py` makes engines; engines of another number are built again."""

_MAX_RECORD_BYTES = 1 << 20
_WORDS = {
    "format": "the form of engine files",
    "onnx_sha256": "the bundle's ONNX",
    "package": "the package",
    "tensorrt": "TensorRT",
    "gpu": "the GPU",
    "capability": "the GPU's compute capability",
    "precision": "the precision",
    "batch": "the batch range",
    "workspace": "the workspace",
    "level": "the optimisation level",
    "aux_streams": "the number of auxiliary streams",
    "tf32": "the use of TF32",
}


@dataclass(frozen=True)
class EngineKey:
    """Everything that one engine depends on.

    program       what it computes: "backward"
    onnx_sha256   of the float32 model that it is made from, weights included
    """

    program: str
    onnx_sha256: str
    target: Target
    options: BuildOptions

    @property
    def file(self) -> str:
        """`backward.fp16.b1-64-64.trt10.3.0.orin-sm87.engine`"""
        batch = "-".join(map(str, self.options.batch))
        return f"{self.program}.{self.options.precision}.b{batch}.{self.target.slug}.engine"

    def as_data(self) -> dict[str, Any]:
        """JSON-compatible; equal for engines that can stand for each other."""
        target = self.target
        options = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self.options).items()}
        return {
            "format": FORMAT,
            "program": self.program,
            "onnx_sha256": self.onnx_sha256,
            "package": target.package,
            "tensorrt": target.version,
            "gpu": target.gpu,
            "capability": list(target.capability),
            **options,
        }


@dataclass(frozen=True)
class Found:
    """What the cache has: an engine, or the reason why it has none. `refused` says why none shall be built."""

    data: bytes | None = None
    reason: str = ""
    refused: str = ""
    facts: Mapping[str, Any] | None = None  # of the build: seconds, errors of its test


class EngineCache:
    """The engines of one bundle, in `root / bundle`. What all bundles share lies in `root`."""

    def __init__(self, root: Path, bundle: str) -> None:
        self.root = root
        self.folder = root / bundle
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(error, self.folder) from error

    def find(self, key: EngineKey) -> Found:
        """The engine for a key, or why there is none. Nothing is deserialised."""
        path = self.folder / key.file
        record = _record(path)
        if record is None:
            if path.exists():
                return Found(reason="the file that describes the engine is missing or damaged")
            return Found(reason=self._nearest(key) or "not built yet")
        reason = _difference(record.get("key"), key)
        if reason:
            return Found(reason=reason)
        if isinstance(record.get("refused"), str):
            return Found(refused=record["refused"], reason="refused earlier", facts=record.get("facts"))
        try:
            data = path.read_bytes()
        except OSError as error:
            return Found(reason=f"the engine cannot be read ({error.strerror or error})")
        if hashlib.sha256(data).hexdigest() != record.get("sha256"):
            return Found(reason="the engine file is damaged (its SHA-256 differs)")
        return Found(data, facts=record.get("facts"))

    def store(self, key: EngineKey, data: bytes, facts: Mapping[str, Any]) -> Path:
        """Write an engine and its description, each in one step. Raises `StorageError` when the disk is full."""
        path = atomic_write_bytes(self.folder / key.file, data)
        digest = hashlib.sha256(data).hexdigest()
        atomic_write_json(_record_path(path), {"key": key.as_data(), "sha256": digest, "facts": dict(facts)})
        return path

    def refuse(self, key: EngineKey, why: str, facts: Mapping[str, Any]) -> None:
        """Remember that the engine for a key computes wrongly, so that it is not built at every start."""
        path = self.folder / key.file
        atomic_write_json(_record_path(path), {"key": key.as_data(), "refused": why, "facts": dict(facts)})
        path.unlink(missing_ok=True)

    def forget(self, key: EngineKey) -> None:
        """Remove an engine that TensorRT does not take."""
        for path in (_record_path(self.folder / key.file), self.folder / key.file):
            path.unlink(missing_ok=True)

    @contextmanager
    def building(self, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Held while building: two builds at once would slow each other's measurements and take twice the memory.

        `waiting` is called once where another process holds it.
        """
        lock = FileLock(self.root / "build.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            waiting()
            lock.acquire()
        except OSError as error:
            raise storage_error(error, self.root / "build.lock") from error
        try:
            yield
        finally:
            lock.release()

    def timing(self, target: Target) -> TimingFile:
        """The timing cache for a TensorRT and a GPU, shared by all bundles."""
        return TimingFile(self.root / f"timing.{target.slug}.cache")

    def last_build(self) -> Any:
        """What `remember` wrote; None where nothing was built."""
        return _json(self.folder / "build.json")

    def remember(self, settings: Mapping[str, Any]) -> None:
        """Keep the settings of a build, so that the runtime asks for what was built."""
        atomic_write_json(self.folder / "build.json", dict(settings))

    def _nearest(self, key: EngineKey) -> str:
        """How the newest engine of the same program differs; "" where there is none."""
        records = [_record_path(p) for p in self.folder.glob(f"{key.program}.*.engine")]
        for path in sorted((p for p in records if p.exists()), key=lambda p: p.stat().st_mtime, reverse=True):
            record = _json(path)
            if isinstance(record, dict):
                return _difference(record.get("key"), key)
        return ""


@dataclass(frozen=True)
class TimingFile:
    """A timing cache as a file; what several processes measure is merged."""

    path: Path

    def read(self) -> bytes:
        """Its content; nothing where there is none."""
        try:
            return self.path.read_bytes()
        except OSError:
            return b""

    def merge(self, combine: Callable[[bytes], bytes]) -> None:
        """Replace the content by what `combine` makes of it, while no other process does the same."""
        with FileLock(f"{self.path}.lock"):
            atomic_write_bytes(self.path, combine(self.read()))


def default_root() -> Path:
    """`edgetta/engines` in the user's cache folder (XDG_CACHE_HOME, or ~/.cache)."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(home) if Path(home).is_absolute() else Path.home() / ".cache"
    return base / "edgetta" / "engines"


def folder_name(bundle: str, identity: str) -> str:
    """The folder of a bundle's engines: its name and the beginning of its identity, for people and for certain."""
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in bundle).strip(".-")
    return f"{kept[:60] or 'bundle'}-{identity[:8]}"


def _record_path(engine: Path) -> Path:
    return engine.with_name(f"{engine.name}.json")


def _record(engine: Path) -> dict[str, Any] | None:
    record = _json(_record_path(engine))
    return record if isinstance(record, dict) else None


def _json(path: Path) -> Any:
    try:
        if path.stat().st_size > _MAX_RECORD_BYTES:
            return None
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def _difference(found: Any, key: EngineKey) -> str:
    """The first thing in which an engine's description differs from what is wanted, in words; "" for none."""
    if not isinstance(found, dict):
        return "the file that describes the engine is damaged"
    wanted = key.as_data()
    if found == wanted:
        return ""
    for name, words in _WORDS.items():
        old, new = found.get(name), wanted[name]
        if old == new:
            continue
        if name == "onnx_sha256":
            return "it was built from another export of the bundle"
        return f"it was built with other settings: {words} was {_plain(old)} and is {_plain(new)}"
    return "the file that describes the engine is damaged"


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ("." if len(value) == 2 else ",").join(map(str, value))
    return "automatic" if value is None else str(value)
