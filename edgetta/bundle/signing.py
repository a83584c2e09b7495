"""Put a signature into a bundle, folder or zip, and change nothing else of it."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from typing import BinaryIO

from edgetta.bundle.reading import read_bundle
from edgetta.errors import BundleError
from edgetta.signature import SIGNATURE, Signer
from edgetta.storage import atomic_write, atomic_write_bytes


def sign_bundle(path: Path, signer: Signer) -> str:
    """Check all of the bundle at `path`, and sign its manifest; signatures of other keys stay. Returns its identity.

    Raises `BundleError` for a bundle that fails its checks, `StorageError` where the signature cannot be written.
    """
    bundle = read_bundle(path)
    data = signer.sign(bundle.files.raw, bundle.files.signatures)
    if path.is_dir():
        atomic_write_bytes(path / SIGNATURE, data)
    else:
        atomic_write(path, lambda file: _zip_with(file, path, data))
    check = read_bundle(path, signer.verifier)
    if check.identity != bundle.identity:
        raise BundleError(f"bundle {path} changed while it was signed; sign it again")
    return bundle.identity


def _zip_with(file: BinaryIO, path: Path, signature: bytes) -> None:
    with zipfile.ZipFile(path) as earlier, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as out:
        prefix = next(name for name in earlier.namelist() if name.endswith("manifest.json")).removesuffix(
            "manifest.json"
        )
        for info in earlier.infolist():
            if info.filename == prefix + SIGNATURE:
                continue
            with earlier.open(info) as source, out.open(info, "w") as target:
                shutil.copyfileobj(source, target, 1 << 20)
        out.writestr(zipfile.ZipInfo(prefix + SIGNATURE), signature)
