"""One state as bytes: a safetensors file whose values are checksummed, read within bounds, never unpickled."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgetta.bounded_json import parse_json
from edgetta.errors import BundleError
from edgetta.tensor_file import KINDS, parse_tensors

FORMAT = "edgetta.state"
VERSION = 2
MAX_BYTES = 1 << 30
MAX_INFO_BYTES = 1 << 20


class StateError(BundleError):
    """A state file that is damaged, or not one at all."""


@dataclass(frozen=True)
class Contents:
    """Arrays by name, and facts that JSON can hold.

    What is in them is their owner's to say; the fact "bundle" is the identity of the bundle that they belong to.
    """

    arrays: Mapping[str, np.ndarray[Any, Any]]
    info: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """SHA-256 of names, shapes, types and values of the arrays."""
        digest = hashlib.sha256()
        for name in sorted(self.arrays):
            array = np.ascontiguousarray(self.arrays[name])
            digest.update(f"{name} {self.arrays[name].shape} {array.dtype.str} ".encode())
            digest.update(array.reshape(-1).view(np.uint8).data)
        return digest.hexdigest()


def encode(contents: Contents, digest: str = "") -> bytes:
    """The bytes of a state file; the same contents give the same bytes. `digest` where it is known already."""
    from safetensors.numpy import save

    body = {"version": VERSION, "sha256": digest or contents.digest, "info": dict(contents.info)}
    text = json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    arrays = {name: np.asarray(array, order="C") for name, array in contents.arrays.items()}
    return bytes(save(arrays, {FORMAT: text}))


def decode(data: bytes | bytearray, where: str | Path = "the state") -> Contents:
    """What `encode` wrote. Raises `StateError`: damaged, or of another version. What values mean, and whether they may
    be infinite, is their owner's to judge."""
    try:
        arrays, texts = parse_tensors(data, tuple(KINDS))
        if FORMAT not in texts:
            raise ValueError("it is no state of edgetta")
        body = parse_json(texts[FORMAT].encode("utf-8", "replace"), MAX_INFO_BYTES)
        version = body.get("version") if isinstance(body, dict) else None
        if type(version) is not int or version != VERSION:
            age = "a newer" if isinstance(version, int) and version > VERSION else "an older"
            raise ValueError(f"it was written by {age} edgetta")
        if not isinstance(body.get("info"), dict):
            raise ValueError("it lacks its facts")
        contents = Contents(arrays, body["info"])
        if body.get("sha256") != contents.digest:
            raise ValueError("its SHA-256 differs")
    except ValueError as error:
        raise StateError(f"{where} is not a state file that can be used ({error})") from error
    return contents


def read(path: Path) -> Contents:
    """The contents of one file. Raises `StateError`, also where there is none or it cannot be read."""
    try:
        size = path.stat().st_size
        if not path.is_file() or size > MAX_BYTES:
            raise StateError(f"{path} is no state file: {'too large' if path.is_file() else 'not a file'}")
        data = bytearray(size)
        with path.open("rb") as file:
            if file.readinto(data) != size or file.read(1):
                raise StateError(f"{path} changed while it was read")
    except FileNotFoundError as error:
        raise StateError(f"there is no state file {path}") from error
    except OSError as error:
        raise StateError(f"cannot read {path}: {error.strerror or error}; check its owner and the disk") from error
    return decode(data, path)
