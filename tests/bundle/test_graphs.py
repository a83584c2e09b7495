"""Tensors, graphs and arrays, forged and hashed again: nothing is unpickled, nothing that does not fit is used."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from edgetta.bundle import build_network, read_bundle, self_test
from edgetta.errors import BundleError
from tests.small_bundle import edit_graphs, edit_manifest, names, refused, replace_file


class Evil:
    """Unpickling this makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_nothing_is_unpickled(folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    buffer = io.BytesIO()
    torch.save({"a": Evil(mark)}, buffer)
    arrays = io.BytesIO()
    np.savez(arrays, images=np.array([Evil(mark)], dtype=object))
    pickled = pickle.dumps(Evil(mark))
    originals = {name: (folder / name).read_bytes() for name in names(folder)}
    for name in ("meta.safetensors", "segments/01.safetensors", "segments/01.json", "segments/01.forward.onnx"):
        for data in (buffer.getvalue(), pickled):
            replace_file(folder, name, data)
            _fails(folder, name)
            replace_file(folder, name, originals[name])
    for data in (buffer.getvalue(), pickled, arrays.getvalue()):
        replace_file(folder, "reference.npz", data)
        _fails(folder, "reference.npz")
    assert not mark.exists()
    pickle.loads(pickled)
    assert mark.exists(), "the trap works"


def _fails(folder: Path, *words: str) -> None:
    """Some step from the files to a tested network fails with one line."""
    with pytest.raises(BundleError) as error:
        bundle = read_bundle(folder)
        self_test(bundle, build_network(bundle, "torch"))
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value), str(error.value)


def test_tensors_of_other_shapes_and_types(whole: Path, folder: Path) -> None:
    good = load((whole / "meta.safetensors").read_bytes())
    name = "metas.0.norm_weight"
    for tensor, words in (
        (torch.ones(7), "shape (7,)"),
        (torch.ones(6, dtype=torch.float64), "F64, not F32"),
        (torch.ones(6, dtype=torch.int8), "I8, not F32"),
        (torch.full((6,), float("nan")), "not finite"),
    ):
        replace_file(folder, "meta.safetensors", save({**good, name: tensor}))
        _fails(folder, "meta.safetensors", name, words)
    for tensors in ({k: t for k, t in good.items() if k != name}, {**good, "more": torch.ones(1)}):
        replace_file(folder, "meta.safetensors", save(tensors))
        _fails(folder, "meta.safetensors", "does not belong to this network")
    weights = load((whole / "segments/02.safetensors").read_bytes())
    convolution = next(k for k in weights if k.startswith("block2.conv1.weight"))
    state = next(k for k in weights if k.startswith("state."))
    for key, tensor in ((convolution, torch.ones(8, 5, 3, 3)), (state, torch.ones(3)), (state, torch.ones(6, 1))):
        replace_file(folder, "segments/02.safetensors", save({**weights, key: tensor}))
        refused(folder, "segments/02.json")
    replace_file(folder, "segments/02.safetensors", save({k: t for k, t in weights.items() if k != convolution}))
    refused(folder, "segments/02.json", convolution)


def test_safetensors_that_declare_what_they_do_not_hold(folder: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
    for data in (len(header).to_bytes(8, "little") + header, (1 << 62).to_bytes(8, "little") + b"{}", b""):
        replace_file(folder, "meta.safetensors", data)
        _fails(folder, "meta.safetensors")


def _nodes(graphs: dict[str, Any], op: str, direction: str = "forward") -> list[Any]:
    return [node for node in graphs[direction]["nodes"] if node[0] == op]


def _value(graphs: dict[str, Any], name: str, direction: str = "forward") -> list[Any]:
    (value,) = [value for value in graphs[direction]["values"] if value[0] == name]
    return value  # type: ignore[no-any-return]


GRAPH_FORGERIES: dict[str, Callable[[dict[str, Any]], object]] = {
    "operator": lambda g: _nodes(g, "Conv")[0].__setitem__(0, "System"),
    "attribute": lambda g: _nodes(g, "Conv")[0][3].update(strides="ab"),
    "attributes": lambda g: _nodes(g, "Conv")[0][3].update(evil=1),
    "stride": lambda g: _nodes(g, "Conv")[0][3].update(strides=[3, 3]),
    "order": lambda g: g["forward"]["nodes"].reverse(),
    "undefined": lambda g: _nodes(g, "Conv")[0][1].__setitem__(0, "nothing"),
    "constant": lambda g: g["forward"]["constants"].append("nothing"),
    "size": lambda g: _value(g, "x").__setitem__(1, [-1, 1 << 20, 1 << 10, 1 << 10]),
    "rank": lambda g: _value(g, "x").__setitem__(1, [-1, *[1] * 40]),
    "dtype": lambda g: _value(g, "x").__setitem__(2, "complex"),
    "shape": lambda g: _value(g, g["forward"]["outputs"][0]).__setitem__(1, [-1, 8, 9, 9]),
    "negative": lambda g: _value(g, "x").__setitem__(1, [-1, -1, 16, 16]),
    "text": lambda g: _value(g, "x").__setitem__(1, ["a"]),
    "no forward": lambda g: g.update(forward=None),
    "no backward": lambda g: g.update(backward=None),
    "number": lambda g: g.update(backward=7),
    "outputs": lambda g: g["forward"]["outputs"].reverse(),
    "gradient outputs": lambda g: g["backward"].update(outputs=[]),
    "state": lambda g: g.update(state={}),
    "state list": lambda g: g.update(state=[1, 2]),
    "state tensor": lambda g: g.update(initial_state={}),
    "residuals": lambda g: g["residuals"].pop(),
    "residual kind": lambda g: g["residuals"][0].update(kind="scale"),
    "residual range": lambda g: g["residuals"][0].update(low=1, high=0),
    "residual name": lambda g: g["residuals"][0].update(name="nothing"),
    "residual": lambda g: g.update(residuals=7),
}


@pytest.mark.parametrize("name", GRAPH_FORGERIES)
def test_forged_graphs(folder: Path, name: str) -> None:
    edit_graphs(folder, "segments/02.json", GRAPH_FORGERIES[name])
    refused(folder, "segments/02")


def test_segments_of_another_model(folder: Path) -> None:
    """Segment 2 in the place of segment 3: each is good, together they are not."""

    def swap(manifest: dict[str, Any]) -> None:
        second, third = manifest["segments"][2], manifest["segments"][3]
        second["name"], third["name"] = third["name"], second["name"]
        manifest["segments"][2], manifest["segments"][3] = third, second

    edit_manifest(folder, swap)
    refused(folder, "segment part2 takes")


def test_graphs_that_are_no_json(folder: Path) -> None:
    for data in (b"", b"[]", b"{", b"[" * 100_000):
        replace_file(folder, "segments/source.json", data)
        refused(folder, "segments/source.json")


def _npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def test_forged_references(whole: Path, folder: Path) -> None:
    with np.load(whole / "reference.npz", allow_pickle=False) as opened:
        good = dict(opened)
    compressed = io.BytesIO()
    np.savez_compressed(compressed, **good)
    huge = io.BytesIO()
    with zipfile.ZipFile(huge, "w") as archive:
        header = io.BytesIO()
        declared = {"descr": "<f4", "fortran_order": False, "shape": (1 << 40,)}
        np.lib.format.write_array_header_1_0(header, declared)
        archive.writestr("images.npy", header.getvalue() + b"\0" * 64)
    cases: dict[str, tuple[bytes, str]] = {
        "compressed": (compressed.getvalue(), "compressed"),
        "huge": (huge.getvalue(), "of the size that it declares"),
        "float64": (_npz(**{**good, "logits": good["logits"].astype(np.float64)}), "no float32 array"),
        "images": (_npz(**{**good, "images": good["images"][:, :, :8]}), "its images have shape"),
        "rows": (_npz(**{**good, "logits": good["logits"][:2]}), "logits has shape"),
        "absent": (_npz(images=good["images"]), "source_logits"),
        "no zip": (b"no zip at all", "reference.npz"),
        "wrong": (_npz(**{**good, "logits": good["logits"] + 1}), "adapted network's logits"),
        "not finite": (_npz(**{**good, "logits": good["logits"] * np.float32("nan")}), "adapted network's logits"),
    }
    for data, words in cases.values():
        replace_file(folder, "reference.npz", data)
        _fails(folder, words)
