"""Manifests that are damaged, newer, or forged and sealed again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgetta.bundle import manifest as bundle_manifest
from edgetta.bundle import read_bundle
from edgetta.errors import BundleError
from tests.small_bundle import edit_manifest, refused, zipped


def test_manifests_that_are_not(folder: Path) -> None:
    path = folder / "manifest.json"
    deep = b"[" * 200_000
    for raw in (b"", b"{", b"\xff\xfe", deep, b'{"a": NaN}', b'{"schema": 1, "schema": 1}'):
        path.write_bytes(raw)
        refused(folder, "manifest.json", "not JSON")
    for raw in (b"[]", b"7", b'"text"', b"{}", b'{"format": "other"}'):
        path.write_bytes(raw)
        refused(folder, "manifest.json", "not a manifest of edgetta")
    path.write_bytes(b" " * ((16 << 20) + 1))
    refused(folder, "manifest.json", "larger than")


def test_an_edited_manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    raw = path.read_bytes()
    for edited in (raw.replace(b'"seeded"', b'"Seeded"'), raw + b"\n", raw.replace(b'"manifest_sha256"', b'"sha256"')):
        assert edited != raw
        path.write_bytes(edited)
        refused(folder, "manifest.json", "damaged or was edited")


def test_a_newer_schema(folder: Path, tmp_path: Path) -> None:
    edit_manifest(folder, lambda manifest: manifest.update(schema=3, segments="in another form"))
    refused(folder, "schema version 3", "reads up to 2", "update edgetta")
    refused(zipped(folder, tmp_path / "newer.zip"), "schema version 3", "update edgetta")
    for odd in (0, -1, "1", None, True, 1.0):
        edit_manifest(folder, lambda manifest, odd=odd: manifest.update(schema=odd))
        refused(folder, "schema version")
    (folder / "manifest.json").write_text(json.dumps({"format": "edgetta.bundle", "schema": 3, "seal": "another"}))
    refused(folder, "schema version 3", "update edgetta")


def test_an_older_schema(folder: Path) -> None:
    edit_manifest(folder, lambda manifest: manifest.update(schema=1) or manifest.pop("programs"))
    refused(folder, "made by an earlier edgetta", "export it again")


HASH = "0" * 64
FORGERIES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no field": (lambda m: m.pop("programs"), "'programs' is missing"),
    "name": (lambda m: m.update(name=7), "'name' must be str"),
    "shape": (lambda m: m["input"].update(shape=[3, 16]), "input.shape"),
    "size": (lambda m: m["input"].update(shape=[3, 16, 10**9]), "input.shape"),
    "truth": (lambda m: m["classes"].update(count=True), "classes.count"),
    "classes": (lambda m: m["classes"].update(names=["a"]), "1 names for 5 classes"),
    "form": (lambda m: m.update(batch_norm="never"), "batch_norm"),
    "programs": (lambda m: m["programs"].update(layout=7), "it uses the file 7"),
    "setting": (lambda m: m["adaptation"].update(unheard=1), "unknown setting 'unheard'"),
    "rate": (lambda m: m["adaptation"].update(learning_rate=-1), "learning_rate"),
    "rate text": (lambda m: m["adaptation"].update(learning_rate="fast"), "manifest.json"),
    "rate law": (lambda m: m.update(rate_law={"version": 1}), "rate law"),
    "not listed": (lambda m: m.update(content="other.safetensors"), "'other.safetensors', which its list"),
    "pickle": (lambda m: m.update(content="reference.npz"), "ends in .safetensors"),
    "traversal": (lambda m: m["files"].update({"../evil": {"bytes": 1, "sha256": HASH}}), "unsafe file name"),
    "absolute": (lambda m: m["files"].update({"/etc/passwd": {"bytes": 1, "sha256": HASH}}), "unsafe file name"),
    "inner": (lambda m: m["files"].update({"a/../../b": {"bytes": 1, "sha256": HASH}}), "unsafe file name"),
    "backslash": (lambda m: m["files"].update({"a\\b": {"bytes": 1, "sha256": HASH}}), "unsafe file name"),
    "drive": (lambda m: m["files"].update({"C:x": {"bytes": 1, "sha256": HASH}}), "unsafe file name"),
    "hidden": (lambda m: m["files"].update({".ssh/x": {"bytes": 1, "sha256": HASH}}), "unsafe file name"),
    "itself": (lambda m: m["files"].update({"manifest.json": {"bytes": 1, "sha256": HASH}}), "is not allowed"),
    "file and folder": (lambda m: m["files"].update({"programs": {"bytes": 1, "sha256": HASH}}), "both a file and"),
    "two cases": (lambda m: m["files"].update({"Reference.npz": m["files"]["reference.npz"]}), "upper and lower"),
    "huge": (lambda m: m["files"]["reference.npz"].update(bytes=10**18), "size of 'reference.npz'"),
    "negative": (lambda m: m["files"]["reference.npz"].update(bytes=-1), "size of 'reference.npz'"),
    "sum": (lambda m: [e.update(bytes=(16 << 30) - 1) for e in m["files"].values()], "add up to"),
    "no hash": (lambda m: m["files"]["reference.npz"].update(sha256="abc"), "the SHA-256 of"),
    "many": (lambda m: m["files"].update({f"f{i}": {} for i in range(5000)}), "more than the 4096 allowed"),
    "entry": (lambda m: m["files"].update({"f": 7}), "is not allowed"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forged_manifests(folder: Path, tmp_path: Path, name: str) -> None:
    edit, words = FORGERIES[name]
    edit_manifest(folder, edit)
    refused(folder, words)
    refused(zipped(folder, tmp_path / "forged.zip"), words)


def test_every_field_may_be_of_another_type(whole: Path, folder: Path) -> None:
    """Whatever stands in place of a field, the answer is a line and no traceback."""
    manifest = json.loads((whole / "manifest.json").read_bytes())
    del manifest["manifest_sha256"]
    for key in manifest:
        for odd in (None, 7, "text", [], {}, [[]], {"a": {}}, -1.5):
            (folder / "manifest.json").write_bytes(bundle_manifest.seal({**manifest, key: odd}))
            try:
                read_bundle(folder)
            except BundleError as error:
                assert "\n" not in str(error)
            else:
                missing = key in ("cost_model", "accuracy_costs", "content") and odd is None
                assert missing or key in ("provenance", "preprocessing", "rate_law", "cuts", "name", "adaptation")
