"""Which file is damaged, and what reads it then: the readers themselves, on a bundle whose hashes fit the damage."""

from __future__ import annotations

import hashlib
import io
import json
import random
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from edgetta.bench.fuzzing.mutations import mutated, mutated_bytes, mutated_json
from edgetta.bundle import read_bundle
from edgetta.bundle.files import BundleFiles, open_bundle
from edgetta.bundle.malformed import malformed
from edgetta.bundle.manifest import MANIFEST, FileEntry, parse_manifest, seal
from edgetta.bundle.reading import assembled
from edgetta.runtime import Runtime
from edgetta.state_files import Contents, decode, encode

KINDS = {".json": "json", ".safetensors": "tensors", ".onnx": "onnx", ".npz": "bytes"}
SHARES = {"file": 80, "manifest": 6, "state": 9, "zip": 3, "whole": 2}
"""Of a hundred inputs: one damaged file of a bundle, read by its readers; the manifest, sealed again; a state; the
bytes of a zip; a whole bundle, opened as the command line opens it and self-tested where it is accepted."""


@dataclass(frozen=True)
class Input:
    """One damaged input. `read` has the readers at it, and raises what they raise."""

    kind: str
    name: str
    read: Callable[[], object]


class Targets:
    """A bundle and a state to damage; `folder` is written to."""

    def __init__(self, bundle: Path, folder: Path, state: Contents) -> None:
        self.bundle = read_bundle(bundle)
        self.folder = folder
        self.state = encode(state)
        self.files = self.bundle.files
        self.content = {name: bytes(self.files.read(name)) for name in self.files.manifest.files}
        self.names = sorted(self.content)
        self.reached = False
        for name, data in {**self.content, MANIFEST: self.files.raw}.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        self.zip = _zip(self.content, self.files.raw)

    def make(self, seed: int, number: int) -> Input:
        """Input `number` of a series."""
        rolled = random.Random(f"{seed}.{number}")
        (kind,) = rolled.choices(list(SHARES), list(SHARES.values()))
        self.reached = False
        if kind == "manifest":
            data = self._manifest(rolled)
            return Input(kind, MANIFEST, lambda: self._read_manifest(data))
        if kind == "state":
            data = mutated(self.state, "tensors", rolled, [self.files.raw])
            return Input(kind, "state", lambda: self._read_state(data))
        if kind == "zip":
            data = mutated_bytes(self.zip, rolled, [self.files.raw])
            return Input(kind, "zip", lambda: self._read_zip(data))
        name = rolled.choice(self.names)
        others = [self.content[rolled.choice(self.names)]]
        data = mutated(self.content[name], KINDS[Path(name).suffix], rolled, others)
        if kind == "whole":
            return Input(kind, name, lambda: self._read_whole(name, data))
        return Input(kind, name, lambda: self._read_file(name, data))

    def _read_file(self, name: str, data: bytes) -> None:
        """The readers that a file of a bundle has, with size and hash put right."""
        entry = FileEntry(len(data), hashlib.sha256(data).hexdigest())
        manifest = replace(self.files.manifest, files={**self.files.manifest.files, name: entry})
        files = Noting(replace(self.files, folder=self.folder, manifest=manifest), name, self)
        path = self.folder / name
        path.write_bytes(data)
        try:
            with malformed(self.folder):
                bundle = assembled(files)
                if name == manifest.reference:
                    bundle.reference()
        finally:
            path.write_bytes(self.content[name])

    def _manifest(self, rolled: random.Random) -> bytes:
        if rolled.random() < 0.2:
            return mutated_bytes(self.files.raw, rolled, [self.zip])
        data = json.loads(mutated_json(self.files.raw, rolled))
        if isinstance(data, dict):
            data.pop("manifest_sha256", None)
            return seal(data)
        return json.dumps(data).encode()

    def _read_manifest(self, data: bytes) -> None:
        self.reached = True
        with malformed(self.folder):
            parse_manifest(data, self.folder)

    def _read_state(self, data: bytes) -> None:
        self.reached = True
        with malformed(self.folder):
            decode(data)

    def _read_zip(self, data: bytes) -> None:
        path = self.folder.with_suffix(".zip")
        path.write_bytes(data)
        files = open_bundle(path)
        files.discard()

    def _read_whole(self, name: str, data: bytes) -> None:
        """As the command line does it; what is accepted is put on both engines and tested."""
        entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        manifest = json.loads(self.files.raw)
        del manifest["manifest_sha256"]
        manifest["files"][name] = entry
        self.reached = True
        (self.folder / name).write_bytes(data)
        (self.folder / MANIFEST).write_bytes(seal(manifest))
        try:
            bundle = read_bundle(self.folder)
            for engine in ("torch", "onnxruntime"):
                Runtime(bundle, engine)
        finally:
            (self.folder / name).write_bytes(self.content[name])
            (self.folder / MANIFEST).write_bytes(self.files.raw)


class Noting(BundleFiles):
    """Files of a bundle that note whether the damaged one got as far as its reader."""

    def __init__(self, files: BundleFiles, name: str, targets: Targets) -> None:
        super().__init__(**{field: getattr(files, field) for field in files.__dataclass_fields__})
        object.__setattr__(self, "_noted", (name, targets))

    def read(self, name: str) -> bytearray:
        data = super().read(name)
        noted, targets = self._noted  # type: ignore[attr-defined]
        targets.reached = targets.reached or name == noted
        return data


def _zip(content: dict[str, bytes], manifest: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in {MANIFEST: manifest, **content}.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return buffer.getvalue()
