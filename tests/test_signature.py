"""Signatures: whoever changes a bundle, or is somebody else, is found out; private keys are read by nobody else."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from edgetta.bundle import read_bundle
from edgetta.cli import main
from edgetta.errors import MissingDependencyError, UsageError
from edgetta.signature import SIGNATURE, SignatureError, Signer, Verifier
from tests.small_bundle import copy_of_it, edit_manifest, names, replace_file, whole_bundle, zipped

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    for name in ("ours", "theirs"):
        Signer.new(folder / name)
    return folder


@pytest.fixture
def signed(tmp_path: Path, keys: Path) -> Path:
    bundle = copy_of_it(tmp_path / "bundle")
    assert main(["sign", str(bundle), "--key", str(keys / "ours")]) == 0
    return bundle


def verify(bundle: Path, key: Path) -> int:
    return main(["verify", str(bundle), "--key", str(key)])


def test_a_signed_bundle(signed: Path, keys: Path, capsys: Captured) -> None:
    assert verify(signed, keys / "ours.pub") == 0
    out = capsys.readouterr().out
    assert "is whole" in out and Verifier.read(keys / "ours.pub").name in out
    assert sorted({*names(whole_bundle()), SIGNATURE}) == names(signed)
    assert read_bundle(signed).identity == read_bundle(whole_bundle()).identity and read_bundle(signed).unlisted == ()


def test_a_zip_is_signed_too(tmp_path: Path, keys: Path) -> None:
    for prefix in ("", "small/"):
        path = zipped(whole_bundle(), tmp_path / f"b{len(prefix)}.zip", prefix)
        assert verify(path, keys / "ours.pub") == 4
        for _ in range(2):
            assert main(["sign", str(path), "--key", str(keys / "ours")]) == 0
        assert verify(path, keys / "ours.pub") == 0 and verify(path, keys / "theirs.pub") == 4
        bundle = read_bundle(path)
        assert verify(bundle.files.folder, keys / "ours.pub") == 0, "what it is extracted to is a signed bundle, too"


def test_whoever_changes_it_is_found_out(signed: Path, keys: Path, capsys: Captured) -> None:
    ours = Verifier.read(keys / "ours.pub")
    replace_file(signed, "meta.safetensors", b"other weights, with their hash in the manifest")
    with pytest.raises(SignatureError, match=f"was changed after key {ours.name} signed it; do not use it"):
        read_bundle(signed, ours)
    assert verify(signed, keys / "ours.pub") == 4


def test_another_key_and_none(signed: Path, keys: Path) -> None:
    with pytest.raises(SignatureError, match="is signed, but not with key"):
        read_bundle(signed, Verifier.read(keys / "theirs.pub"))
    with pytest.raises(SignatureError, match="is not signed"):
        read_bundle(whole_bundle(), Verifier.read(keys / "theirs.pub"))
    assert main(["sign", str(signed), "--key", str(keys / "theirs")]) == 0
    for name in ("ours.pub", "theirs.pub"):
        read_bundle(signed, Verifier.read(keys / name))


def test_a_signature_of_another_bundle_is_none(signed: Path, keys: Path, tmp_path: Path) -> None:
    other = copy_of_it(tmp_path / "other")
    edit_manifest(other, lambda manifest: manifest.update(name="other"))
    (other / SIGNATURE).write_bytes((signed / SIGNATURE).read_bytes())
    assert verify(other, keys / "ours.pub") == 4


@pytest.mark.parametrize(
    "content",
    [b"", b"x", b"{}", b'{"format": "edgetta.signature", "version": 1, "signatures": [{"key": 3}]}', b" " * 100_000],
)
def test_signatures_that_are_none(signed: Path, keys: Path, content: bytes, capsys: Captured) -> None:
    (signed / SIGNATURE).write_bytes(content)
    assert verify(signed, keys / "ours.pub") == 4
    error = capsys.readouterr().err
    assert error.startswith("edgetta: error: ") and error.count("\n") == 1


def test_a_signature_that_is_cut_or_flipped(signed: Path, keys: Path) -> None:
    data = json.loads((signed / SIGNATURE).read_bytes())
    good = data["signatures"][0]["signature"]
    for wrong in (good[:-4], "A" + good[1:] if good[0] != "A" else "B" + good[1:], "not base64", ""):
        data["signatures"][0]["signature"] = wrong
        (signed / SIGNATURE).write_text(json.dumps(data))
        assert verify(signed, keys / "ours.pub") == 4


def test_run_and_deploy_require_it(signed: Path, keys: Path, tmp_path: Path, capsys: Captured) -> None:
    for verb in (
        ["run", str(whole_bundle()), str(tmp_path)],
        ["deploy", str(whole_bundle()), "me@pi", "--no-service"],
    ):
        assert main([*verb, "--require-signature", str(keys / "ours.pub")]) == 4
        assert "is not signed" in capsys.readouterr().err
    assert main(["run", str(signed), str(tmp_path / "none"), "--require-signature", str(keys / "ours.pub")]) == 1
    assert "there is no" in capsys.readouterr().err, "the bundle was taken, the source was not"


def test_keys(keys: Path, tmp_path: Path, capsys: Captured) -> None:
    assert stat.S_IMODE((keys / "ours").stat().st_mode) == 0o600
    assert main(["sign", "--new-key", str(keys / "ours")]) == 2
    assert "keys are not replaced" in capsys.readouterr().err
    shared = tmp_path / "shared"
    shared.write_bytes((keys / "ours").read_bytes())
    shared.chmod(0o644)
    for read, path, words in (
        (Signer.read, shared, "others may read the private key"),
        (Signer.read, tmp_path / "none", "cannot read the key"),
        (Verifier.read, keys / "ours", "this is a private one"),
        (Verifier.read, tmp_path / "none", "cannot read the key"),
    ):
        with pytest.raises(UsageError, match=words):
            read(path)
    for arguments in ([], ["bundle"], ["--key", "a", "--new-key", "b"]):
        assert main(["sign", *arguments]) == 2


def test_without_cryptography(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("cryptography")]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match=r"edgetta\[sign\]"):
        Verifier.read(keys / "ours.pub")
    read_bundle(whole_bundle())


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl, with which it is compared")
def test_openssl_agrees(signed: Path, keys: Path, tmp_path: Path) -> None:
    """A key of OpenSSL's own serves, and the signature is a plain one of Ed25519."""
    openssl = subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519"], capture_output=True, check=True).stdout
    key = tmp_path / "openssl.key"
    key.touch(0o600)
    key.write_bytes(openssl)
    public = subprocess.run(["openssl", "pkey", "-pubout"], input=openssl, capture_output=True, check=True).stdout
    (tmp_path / "openssl.pub").write_bytes(public)
    assert main(["sign", str(signed), "--key", str(key)]) == 0
    assert verify(signed, tmp_path / "openssl.pub") == 0
