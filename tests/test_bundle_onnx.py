"""ONNX files that point elsewhere, or hold what edgetta never writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgetta.bundle import build_network, read_bundle, self_test
from edgetta.errors import BundleError
from tests.small_bundle import (
    copy_of_it,
    refused,
    replace_file,
    whole_bundle,
)


@pytest.fixture(scope="module")
def whole() -> Path:
    """A bundle that no test changes."""
    return whole_bundle()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle to damage."""
    return copy_of_it(tmp_path / "copy")


def test_forged_onnx(whole: Path, folder: Path, tmp_path: Path) -> None:
    import onnx
    from onnx import helper

    name = "segments/02.forward.onnx"
    (tmp_path / "secret").write_bytes(bytes(1 << 16))

    def model() -> onnx.ModelProto:
        return onnx.load(whole / name, load_external_data=False)

    def location(text: str) -> onnx.ModelProto:
        forged = model()
        tensor = next(t for t in forged.graph.initializer if t.external_data)
        tensor.external_data[0].value = text
        return forged

    def entry(key: str, value: str) -> onnx.ModelProto:
        forged = model()
        tensor = next(t for t in forged.graph.initializer if t.external_data)
        next(e for e in tensor.external_data if e.key == key).value = value
        return forged

    forgeries = {
        "outside": location("../../secret"),
        "absolute": location(str(tmp_path / "secret")),
        "device": location("/dev/zero"),
        "neighbour": location("00.safetensors"),
        "offset": entry("offset", "99999999"),
        "negative": entry("offset", "-5"),
        "length": entry("length", "99999999999999999999"),
    }
    forged = model()
    forged.functions.add(name="f", domain="evil")
    forgeries["function"] = forged
    forged = model()
    forged.opset_import.add(domain="com.evil", version=1)
    forgeries["opset"] = forged
    forged = model()
    forged.graph.node[0].domain = "com.evil"
    forgeries["domain"] = forged
    forged = model()
    forged.graph.node[0].attribute.append(helper.make_attribute("body", helper.make_graph([], "g", [], [])))
    forgeries["sub-graph"] = forged
    forged = model()
    tensor = onnx.TensorProto(name="t", data_type=1, dims=[4], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="02.safetensors")
    forged.graph.node[0].attribute.append(helper.make_attribute("value", tensor))
    forgeries["tensor in an attribute"] = forged
    forged = model()
    forged.graph.sparse_initializer.add()
    forgeries["sparse"] = forged
    forged = model()
    del forged.graph.output[-1]
    forgeries["outputs"] = forged
    forged = model()
    forged.ClearField("graph")
    forgeries["no graph"] = forged
    for what, forged in forgeries.items():
        replace_file(folder, name, forged.SerializeToString())
        refused(folder, name, "export the bundle again"), what
    raw = (whole / name).read_bytes()
    for data in (b"", raw[:-7], raw[: len(raw) // 2], b"\xff" * 100, b"\x0f" + raw):
        replace_file(folder, name, data)
        refused(folder, name)


def test_weights_that_name_their_place_in_two_ways(whole: Path, folder: Path) -> None:
    """Parsers differ in which of two entries counts, so two are none."""
    import onnx

    name = "segments/02.forward.onnx"
    forged = onnx.load(whole / name, load_external_data=False)
    tensor = next(t for t in forged.graph.initializer if t.external_data)
    tensor.external_data.add(key="location", value="02.safetensors")
    replace_file(folder, name, forged.SerializeToString())
    refused(folder, name, "twice")


def test_a_graph_that_onnxruntime_refuses(whole: Path, folder: Path) -> None:
    import onnx

    name = "segments/02.forward.onnx"
    forged = onnx.load(whole / name, load_external_data=False)
    forged.graph.node[0].op_type = "NoSuchOperator"
    replace_file(folder, name, forged.SerializeToString())
    bundle = read_bundle(folder)
    with pytest.raises(BundleError, match="ONNX Runtime refuses segment 'part2'") as error:
        build_network(bundle, "onnxruntime")
    assert "\n" not in str(error.value)
    self_test(bundle, build_network(bundle, "torch"))
