"""Writing bundles: complete, the same every time, checked before they take their place, all or nothing."""

from __future__ import annotations

import errno
import hashlib
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgetta.adaptation.config import AdaptConfig
from edgetta.bundle import open_engine, read_bundle, self_test
from edgetta.errors import BundleError, EdgettaError, UsageError
from edgetta.export import bundle_writer
from edgetta.export.bundle_writer import Shipment, write_bundle
from edgetta.rate_law import RateLaw
from edgetta.storage import StorageError
from tests.adaptation.backbones import SmallNet, small_programs
from tests.small_bundle import names, whole_bundle, write_small

LAW = RateLaw("momentum", "measured", (1, 64), (1e-3, 8e-3), (5e-4, 6e-3), (2e-3, 1e-2), momentum=0.9)


def content(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names(folder)}


def test_every_file_is_listed_with_size_and_hash() -> None:
    folder = whole_bundle()
    manifest = json.loads((folder / "manifest.json").read_bytes())
    assert sorted([*manifest["files"], "manifest.json"]) == names(folder)
    for name, entry in manifest["files"].items():
        data = (folder / name).read_bytes()
        assert entry == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        assert name.endswith((".safetensors", ".json", ".npz")), "weights, graphs and numbers: nothing that runs"
    assert set(manifest["programs"]["graphs"]) == {"predict", "measure", "forward", "backward", "recompute"}
    assert manifest["content"] == "content.safetensors" and "pickle" not in " ".join(manifest["files"])


def test_weights_are_stored_once() -> None:
    folder = whole_bundle()
    constants = small_programs().predict.constants
    once = sum(np.asarray(value).nbytes for value in constants.values())
    size = (folder / "programs" / "weights.safetensors").stat().st_size
    assert once < size < 1.7 * once + 20_000, "and not once for each program"


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    assert content(write_small(tmp_path / "again")) == content(whole_bundle())
    one, two = (write_small(tmp_path / f"{name}.zip").read_bytes() for name in ("one", "two"))
    assert one == two


def test_zips_hold_the_same_files(tmp_path: Path) -> None:
    path = write_small(tmp_path / "small.ZIP")
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert {i.filename: archive.read(i) for i in archive.infolist()} == content(whole_bundle())
    assert read_bundle(path).identity == read_bundle(whole_bundle()).identity
    assert [p.name for p in tmp_path.iterdir()] == ["small.ZIP"]


def test_everything_that_is_said_is_written(tmp_path: Path) -> None:
    golden = torch.rand(3, 3, 16, 16)
    path = write_small(
        tmp_path / "small",
        classes=None,
        preprocessing={"resize": "pad", "range": [0, 1]},
        provenance={"data": {"name": "digits", "images": 1000}},
        rate_law=LAW,
        golden=golden,
        config=AdaptConfig(mirrored=True, window=7),
    )
    bundle = read_bundle(path)
    assert bundle.classes is None and bundle.config == AdaptConfig(mirrored=True, window=7)
    assert bundle.preprocessing["resize"] == "pad" and bundle.preprocessing["layout"] == "NCHW"
    assert bundle.provenance == {"data": {"name": "digits", "images": 1000}}
    assert bundle.rate_law == LAW
    np.testing.assert_array_equal(bundle.reference()["images"], golden.numpy())
    assert read_bundle(write_small(tmp_path / "json", rate_law=LAW.to_json())).rate_law == LAW


def test_what_the_programs_ship_is_shipped(tmp_path: Path) -> None:
    programs = small_programs()
    programs = replace(programs, source=replace(programs.source, mean=programs.source.mean + 0.25))
    bundle = read_bundle(write_small(tmp_path / "small", programs, content=None))
    np.testing.assert_array_equal(bundle.programs.shipped, programs.shipped)
    np.testing.assert_array_equal(bundle.programs.source.mean, programs.source.mean)
    assert bundle.content is None
    for engine in ("torch", "onnxruntime"):
        assert self_test(bundle, open_engine(bundle, engine)).logits_error < 1e-3


def test_the_reference_is_that_of_float64() -> None:
    bundle = read_bundle(whole_bundle())
    reference = bundle.reference()
    assert reference["images"].shape == (8, 3, 16, 16) and reference["logits"].shape == (8, 5)
    compared = [name for name in reference if name.startswith("gradient.")]
    assert "gradient.metas.0.conv" in compared
    assert all(float(np.linalg.norm(reference[name])) > 0 for name in compared)


# ---- all or nothing ----


def test_a_path_that_is_taken(tmp_path: Path) -> None:
    for name in ("small", "small.zip"):
        path = write_small(tmp_path / name)
        before = content(tmp_path)
        with pytest.raises(UsageError, match="exists already"):
            write_small(path, name="other")
        assert content(tmp_path) == before
        write_small(path, name="other", overwrite=True)
        assert read_bundle(path).name == "other"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["small", "small.zip"]


def test_only_bundles_are_overwritten(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "holiday.jpg").write_bytes(b"dear")
    (tmp_path / "file").write_bytes(b"dear")
    (tmp_path / "folder.zip").mkdir()
    (tmp_path / "text.zip").write_bytes(b"dear")
    extension = tmp_path / "extension"
    extension.mkdir()
    (extension / "manifest.json").write_text('{"name": "of a browser"}')
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("holiday.jpg", "dear")
    before = content(tmp_path)
    for name in ("photos", "file", "folder.zip", "text.zip", "extension", "photos.zip"):
        with pytest.raises(UsageError, match="choose another path"):
            write_small(tmp_path / name, overwrite=True)
    assert content(tmp_path) == before
    (tmp_path / "empty").mkdir()
    read_bundle(write_small(tmp_path / "empty", overwrite=True))
    (tmp_path / "empty" / "state").write_bytes(b"learnt")
    with pytest.raises(UsageError, match="holds 'state', which is not part of the bundle; move it away"):
        write_small(tmp_path / "empty", overwrite=True)
    assert (tmp_path / "empty" / "state").read_bytes() == b"learnt"


def test_a_link_keeps_pointing(tmp_path: Path) -> None:
    write_small(tmp_path / "v1")
    (tmp_path / "current").symlink_to("v1")
    write_small(tmp_path / "current", name="v2", overwrite=True)
    assert (tmp_path / "current").is_symlink() and read_bundle(tmp_path / "v1").name == "v2"


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("name", ["small", "small.zip"])
@pytest.mark.parametrize("where", ["describe_layout", "_reference", "_check_what_was_written"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt(), EdgettaError("no")])
def test_failures_leave_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, where: str, error: BaseException, earlier: bool
) -> None:
    path = tmp_path / name
    if earlier:
        path.write_bytes(b"PK") if name.endswith("zip") else path.mkdir()
        monkeypatch.setattr(bundle_writer, "_check_target", lambda *_: None)

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(bundle_writer, where, fail)
    with pytest.raises(StorageError if isinstance(error, OSError) else type(error)) as caught:
        write_small(path, overwrite=True)
    if isinstance(error, OSError):
        assert "disk is full" in str(caught.value) and name in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ([name] if earlier else [])


def test_an_earlier_bundle_comes_back_when_the_last_step_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_small(tmp_path / "small")
    rename = Path.rename

    def fail_once(self: Path, target: Path) -> Path:
        if self.name.endswith(".tmp"):
            raise OSError(errno.EIO, "broken disk")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_once)
    with pytest.raises(StorageError, match="broken disk"):
        write_small(path, name="other", overwrite=True)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["small"] and read_bundle(path).name == "small"


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"there is no folder .*missing"):
        write_small(tmp_path / "missing" / "small")


# ---- what cannot be shipped ----


def test_arguments_that_do_not_fit(tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"classes": ["a", "b"]}, "2 class names were given for a model with 5 classes"),
        ({"golden": torch.rand(2, 3, 8, 8)}, "golden images have shape"),
        ({"provenance": {"loss": float("nan")}}, "not JSON"),
        ({"provenance": {"model": object()}}, "not JSON"),
    ]
    for options, words in cases:
        with pytest.raises(UsageError, match=words):
            write_small(tmp_path / "small", **options)
    with pytest.raises(BundleError, match="rate law"):
        write_small(tmp_path / "small", rate_law={"version": 1})
    assert not list(tmp_path.iterdir())


def test_a_network_that_is_not_finite(tmp_path: Path) -> None:
    programs = small_programs()
    shipped = programs.shipped.copy()
    shipped[programs.parameters.slice("metas.1.norm_weight")] = np.inf
    with pytest.raises(UsageError, match="not finite on the golden images"):
        write_small(tmp_path / "small", replace(programs, shipped=shipped))


def test_a_bundle_that_fails_its_self_test_is_not_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.savez

    def spoil(file: Any, **arrays: Any) -> None:
        arrays["logits"] = arrays["logits"] + 1
        whole(file, **arrays)

    monkeypatch.setattr(bundle_writer.np, "savez", spoil)
    with pytest.raises(BundleError, match=r"bundle .*/small fails its self-test"):
        shipment = Shipment(small_programs(), SmallNet.cuts)
        write_bundle(tmp_path / "small", shipment, name="x", config=AdaptConfig())
    assert not list(tmp_path.iterdir())
