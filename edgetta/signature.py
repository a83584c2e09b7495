"""Who made a bundle: Ed25519 signatures over its manifest, which names the SHA-256 of every other file.

Kept in `manifest.sig` beside the manifest, so that signing changes nothing that was exported. The keys are PEM files,
as OpenSSL writes them (`openssl genpkey -algorithm ed25519`).

The model_signing format of OpenSSF was not taken: its package brings sigstore, TUF and some twenty more onto a device,
most of them for certificates of a public service, and it hashes every file anew where the manifest has done so
already. `cryptography` alone does what is needed here.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetta.bounded_json import parse_json
from edgetta.errors import BundleError, MissingDependencyError, UsageError
from edgetta.storage import storage_error

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNATURE = "manifest.sig"
MAX_BYTES = 1 << 16
MAX_SIGNATURES = 16
_FORMAT = "edgetta.signature"
_VERSION = 1
_CONTEXT = b"edgetta bundle manifest, version 1\n"
"""Before what is signed: a signature of something else is none of a bundle."""


class SignatureError(BundleError):
    """A bundle without the signature that was asked for."""


class Signer:
    """A private key. `Signer.read(path)` takes it from a file; `Signer.new(path)` makes one."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    @staticmethod
    def read(path: Path) -> Signer:
        """Raises `UsageError`: no such file, one that others may read, or no Ed25519 key without a password."""
        from_pem = _cryptography("serialization").load_pem_private_key
        data = _key_file(path, secret=True)
        try:
            key = from_pem(data, None)
        except (ValueError, TypeError) as error:
            raise UsageError(f"{path} holds no private key in PEM without a password ({error})") from error
        if not isinstance(key, _cryptography("ed25519").Ed25519PrivateKey):
            raise UsageError(f"the key in {path} is not Ed25519: make one with `edgetta sign --new-key FILE`")
        return Signer(key)

    @staticmethod
    def new(path: Path) -> Signer:
        """Make a key at `path`, for its owner alone, and its public half at `path`.pub. Replaces nothing."""
        serialization = _cryptography("serialization")
        key = _cryptography("ed25519").Ed25519PrivateKey.generate()
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        for file, data, mode in ((path, private, 0o600), (path.with_name(f"{path.name}.pub"), public, 0o644)):
            try:
                descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            except FileExistsError as error:
                raise UsageError(f"{file} exists, and keys are not replaced; choose another name") from error
            except OSError as error:
                raise storage_error(error, file) from error
            with os.fdopen(descriptor, "wb") as out:
                out.write(data)
        return Signer(key)

    @property
    def verifier(self) -> Verifier:
        """The public half."""
        return Verifier(self._key.public_key())

    def sign(self, manifest: bytes, earlier: bytes | None = None) -> bytes:
        """The content of `manifest.sig` for a manifest, with the signatures of other keys that were there."""
        others = [] if earlier is None else _signatures(earlier)
        name = self.verifier.name
        signatures = [item for item in others if item["key"] != name]
        value = base64.b64encode(self._key.sign(_CONTEXT + manifest)).decode()
        signatures.append({"key": name, "algorithm": "ed25519", "signature": value})
        if len(signatures) > MAX_SIGNATURES:
            raise UsageError(f"a bundle has at most {MAX_SIGNATURES} signatures")
        return (
            json.dumps({"format": _FORMAT, "version": _VERSION, "signatures": signatures}, indent=2).encode() + b"\n"
        )


class Verifier:
    """A public key; `Verifier.read(path)` takes it from a file."""

    def __init__(self, key: Ed25519PublicKey) -> None:
        self._key = key

    @staticmethod
    def read(path: Path) -> Verifier:
        """Raises `UsageError`: no such file, or no public Ed25519 key."""
        from_pem = _cryptography("serialization").load_pem_public_key
        data = _key_file(path)
        try:
            key = from_pem(data)
        except (ValueError, TypeError) as error:
            hint = "; this is a private one" if b"PRIVATE KEY" in data else ""
            raise UsageError(f"{path} holds no public key in PEM{hint}; give the .pub file of the signer") from error
        if not isinstance(key, _cryptography("ed25519").Ed25519PublicKey):
            raise UsageError(f"the key in {path} is not Ed25519")
        return Verifier(key)

    @property
    def name(self) -> str:
        """What a key is called: the first 32 digits of its SHA-256."""
        serialization = _cryptography("serialization")
        raw = self._key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        return hashlib.sha256(raw).hexdigest()[:32]

    def check(self, manifest: bytes, signatures: bytes | None, where: str | Path) -> None:
        """Raise `SignatureError` unless one of the signatures is this key's, of this very manifest."""
        invalid = _cryptography("exceptions").InvalidSignature
        if signatures is None:
            raise SignatureError(f"bundle {where} is not signed, and a signature of key {self.name} is required")
        for item in _signatures(signatures):
            if item["key"] != self.name:
                continue
            try:
                self._key.verify(base64.b64decode(item["signature"], validate=True), _CONTEXT + manifest)
            except (invalid, binascii.Error, ValueError) as error:
                raise SignatureError(
                    f"bundle {where} was changed after key {self.name} signed it; do not use it"
                ) from error
            return
        raise SignatureError(f"bundle {where} is signed, but not with key {self.name}, which is required")


def _signatures(data: bytes) -> list[dict[str, str]]:
    """What a `manifest.sig` holds. Raises `SignatureError`."""
    try:
        found = parse_json(data, MAX_BYTES)
        if found["format"] != _FORMAT or found["version"] != _VERSION or len(found["signatures"]) > MAX_SIGNATURES:
            raise ValueError("it is of another kind or version")
        items = [{key: item[key] for key in ("key", "algorithm", "signature")} for item in found["signatures"]]
        if not all(isinstance(text, str) for item in items for text in item.values()):
            raise ValueError("it holds something else than texts")
    except (ValueError, KeyError, TypeError) as error:
        raise SignatureError(f"{SIGNATURE} holds no signatures ({error}); sign the bundle again") from error
    return [item for item in items if item["algorithm"] == "ed25519"]


def _key_file(path: Path, secret: bool = False) -> bytes:
    try:
        with path.open("rb") as file:
            shared = secret and os.name == "posix" and os.fstat(file.fileno()).st_mode & 0o077
            data = file.read(MAX_BYTES)
    except OSError as error:
        raise UsageError(f"cannot read the key {path}: {error.strerror or error}") from error
    if shared:
        raise UsageError(f"others may read the private key {path}: chmod 600 {path}")
    return data


def _cryptography(module: str) -> Any:
    """A module of the cryptography package. Raises `MissingDependencyError`."""
    import importlib

    places = {
        "serialization": "cryptography.hazmat.primitives.serialization",
        "ed25519": "cryptography.hazmat.primitives.asymmetric.ed25519",
        "exceptions": "cryptography.exceptions",
    }
    try:
        return importlib.import_module(places[module])
    except ImportError as error:
        raise MissingDependencyError("signatures need cryptography: pip install 'edgetta[sign]'") from error
