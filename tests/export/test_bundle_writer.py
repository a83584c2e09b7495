"""Writing bundles: complete, the same every time, checked before they take their place, all or nothing."""

from __future__ import annotations

import errno
import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from edgetta.adaptation.config import AdaptConfig
from edgetta.bundle import build_network, read_bundle, self_test
from edgetta.errors import BundleError, EdgettaError, UsageError
from edgetta.export import bundle_writer
from edgetta.export.bundle_writer import write_bundle
from edgetta.rate_law import RateLaw
from edgetta.storage import StorageError
from tests.adaptation.backbones import small_model
from tests.small_bundle import names, small_network, whole_bundle, write_small

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
        assert name.endswith((".safetensors", ".json", ".onnx", ".npz"))
    assert [segment["name"] for segment in manifest["segments"]] == ["stem", "part1", "part2", "part3", "classifier"]
    part = manifest["segments"][2]
    assert part["signatures"]["forward"]["inputs"][0] == {"name": "x", "shape": ["batch", 6, 16, 16], "dtype": "float"}
    assert {residual["kind"] for residual in part["residuals"]} == {"mask", "scale"}
    assert "backward" not in manifest["segments"][0]["onnx"] and set(manifest["source"]["onnx"]) == {"forward"}


def test_weights_are_stored_once() -> None:
    folder = whole_bundle()
    for file in folder.glob("segments/*.onnx"):
        weights = load_file(folder / "segments" / f"{file.name.split('.')[0]}.safetensors")
        data = file.read_bytes()
        large = [name for name, tensor in weights.items() if tensor.numel() >= 32]
        assert not any(weights[name].numpy().tobytes() in data for name in large)


def test_onnx_files_stand_on_their_own(tmp_path: Path) -> None:
    import onnx

    folder = whole_bundle()
    for file in sorted(folder.glob("segments/*.onnx")):
        onnx.checker.check_model(str(file), full_check=True)
        model = onnx.load(str(file), load_external_data=False)
        assert model.opset_import[0].version == 17 and model.ir_version == 8
    opset = 18
    newer = write_small(tmp_path / "newer", opset=opset)
    model = onnx.load(str(newer / "segments/01.forward.onnx"), load_external_data=False)
    assert model.opset_import[0].version == opset
    self_test(read_bundle(newer), build_network(read_bundle(newer), "onnxruntime"))


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
        preprocessing={"resize": 16, "range": [0, 1]},
        provenance={"data": {"name": "digits", "images": 1000}},
        rate_law=LAW,
        golden=golden,
        config=AdaptConfig(passes=2, window=7),
    )
    bundle = read_bundle(path)
    assert bundle.classes is None and bundle.config == AdaptConfig(passes=2, window=7)
    assert bundle.preprocessing["resize"] == 16 and bundle.preprocessing["layout"] == "NCHW"
    assert bundle.provenance == {"data": {"name": "digits", "images": 1000}}
    assert bundle.rate_law == LAW
    assert torch.equal(bundle.reference()["images"], golden)
    assert read_bundle(write_small(tmp_path / "json", rate_law=LAW.to_json())).rate_law == LAW


def test_the_state_of_the_network_is_shipped(tmp_path: Path) -> None:
    model = small_model()
    network = small_network(model, "ema")
    network.forward(torch.rand(8, 3, 16, 16))  # running statistics move away from those of the backbone
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    bundle = read_bundle(write_small(tmp_path / "small", network=network))
    state = build_network(bundle, "torch").state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in before.items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items()), "left as it was"
    initial = {f"{k}.{n}": t for k, graphs in model.segments().items() for n, t in graphs.initial_state.items()}
    assert initial and not any(torch.equal(state[name], tensor) for name, tensor in initial.items())


def test_the_reference_is_that_of_float64() -> None:
    bundle = read_bundle(whole_bundle())
    reference = bundle.reference()
    assert reference["images"].shape == (8, 3, 16, 16) and reference["logits"].shape == (8, 5)
    compared = {name.removeprefix("gradient.") for name in reference if name.startswith("gradient.")}
    assert compared >= {
        f"metas.{k}.{name}" for k in range(3) for name in ("norm_weight", "norm_bias", "scale", "conv")
    }
    assert all(float(reference[f"gradient.{name}"].norm()) > 0 for name in compared)


# ---- what the manifest says about memory ----


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
@pytest.mark.parametrize("where", ["to_onnx", "_reference", "_check_what_was_written"])
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
    model, network = small_model(), small_network(small_model())
    other = small_network(small_model(adapt="bias"))
    cases: list[tuple[dict[str, Any], str]] = [
        ({"classes": ["a", "b"]}, "2 class names were given for a model with 5 classes"),
        ({"golden": torch.rand(2, 3, 8, 8)}, "golden images have shape"),
        ({"provenance": {"loss": float("nan")}}, "not JSON"),
        ({"provenance": {"model": model}}, "not JSON"),
        ({"network": other}, "does not belong to the model"),
    ]
    for options, words in cases:
        with pytest.raises(UsageError, match=words):
            write_small(tmp_path / "small", model, **{"network": network, **options})
    with pytest.raises(BundleError, match="rate law"):
        write_small(tmp_path / "small", model, rate_law={"version": 1})
    assert not list(tmp_path.iterdir())


def test_a_network_that_is_not_finite(tmp_path: Path) -> None:
    network = small_network(small_model())
    with torch.no_grad():
        network.metas[1].norm_weight[2] = float("inf")  # type: ignore[index,operator]
    with pytest.raises(UsageError, match="not finite on the golden images"):
        write_small(tmp_path / "small", network=network)


def test_a_bundle_that_fails_its_self_test_is_not_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.savez

    def spoil(file: Any, **arrays: Any) -> None:
        arrays["logits"] = arrays["logits"] + 1
        whole(file, **arrays)

    monkeypatch.setattr(bundle_writer.np, "savez", spoil)
    with pytest.raises(BundleError, match=r"bundle .*/small fails its self-test"):
        write_bundle(tmp_path / "small", small_model(), small_network(small_model()), name="x", config=AdaptConfig())
    assert not list(tmp_path.iterdir())
