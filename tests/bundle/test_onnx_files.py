"""ONNX files that point elsewhere, or hold what edgetta never writes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgetta.bundle.onnx_files import check_onnx
from edgetta.errors import BundleError
from tests.small_bundle import refused, replace_file, whole_bundle

NAME = "segments/02.forward.onnx"


def model() -> Any:
    """The ONNX model of a segment, its weights left where they are."""
    import onnx

    return onnx.load(whole_bundle() / NAME, load_external_data=False)


def with_entries(**entries: str) -> Any:
    """The model, one of whose weights names another place."""
    forged = model()
    tensor = next(t for t in forged.graph.initializer if t.external_data)
    for entry in tensor.external_data:
        entry.value = entries.pop(entry.key, entry.value)
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    return forged


def with_external_attribute() -> Any:
    import onnx

    forged = model()
    tensor = onnx.TensorProto(name="t", data_type=1, dims=[4], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="02.safetensors")
    forged.graph.node[0].attribute.append(onnx.helper.make_attribute("value", tensor))
    return forged


def with_sub_graph(many: bool) -> Any:
    import onnx

    forged = model()
    body = onnx.helper.make_graph([], "body", [], [])
    forged.graph.node[0].attribute.append(onnx.helper.make_attribute("body", [body] if many else body))
    return forged


def changed(change: Callable[[Any], object]) -> Any:
    forged = model()
    change(forged)
    return forged


def twice_named() -> Any:
    """Parsers differ in which of two entries counts, so two are none."""
    forged = model()
    tensor = next(t for t in forged.graph.initializer if t.external_data)
    tensor.external_data.add(key="location", value="02.safetensors")
    return forged


FORGERIES: dict[str, tuple[Callable[[], Any], str]] = {
    "outside": (lambda: with_entries(location="../../secret"), "'../../secret'"),
    "absolute": (lambda: with_entries(location="/etc/passwd"), "'/etc/passwd'"),
    "device": (lambda: with_entries(location="/dev/zero"), "'/dev/zero'"),
    "dotted": (lambda: with_entries(location="./02.safetensors"), "only '02.safetensors' is allowed"),
    "neighbour": (lambda: with_entries(location="00.safetensors"), "only '02.safetensors' is allowed"),
    "nowhere": (lambda: with_entries(location=""), "only '02.safetensors' is allowed"),
    "offset": (lambda: with_entries(offset="99999999"), "outside"),
    "negative": (lambda: with_entries(offset="-5"), "outside"),
    "digits": (lambda: with_entries(offset="\u0661"), "outside"),
    "length": (lambda: with_entries(length="9" * 30), "outside"),
    "checksum": (lambda: with_entries(checksum="0"), "only '02.safetensors' is allowed"),
    "twice": (twice_named, "twice"),
    "function": (lambda: changed(lambda m: m.functions.add(name="f", domain="evil")), "functions"),
    "training": (lambda: changed(lambda m: m.training_info.add()), "training"),
    "opset": (lambda: changed(lambda m: m.opset_import.add(domain="com.evil", version=1)), "com.evil"),
    "domain": (lambda: changed(lambda m: setattr(m.graph.node[0], "domain", "com.evil")), "com.evil"),
    "sub-graph": (lambda: with_sub_graph(False), "sub-graphs"),
    "sub-graphs": (lambda: with_sub_graph(True), "sub-graphs"),
    "attribute": (with_external_attribute, "weights lie in '02.safetensors'"),
    "sparse": (lambda: changed(lambda m: m.graph.sparse_initializer.add()), "sparse"),
    "no graph": (lambda: changed(lambda m: m.ClearField("graph")), "not an ONNX model"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forged_onnx(name: str) -> None:
    forge, words = FORGERIES[name]
    with pytest.raises(BundleError, match="cannot be used") as error:
        check_onnx(forge().SerializeToString(), "02.safetensors", 8000, "segments/02.forward.onnx in bundle x")
    assert words in str(error.value) and "segments/02.forward.onnx in bundle x" in str(error.value)


def test_every_file_that_is_written_passes() -> None:
    folder = whole_bundle() / "segments"
    files = sorted(folder.glob("*.onnx"))
    assert len(files) == 14
    for file in files:
        weights = folder / f"{file.name.split('.')[0]}.safetensors"
        found = check_onnx(file.read_bytes(), weights.name, weights.stat().st_size, file.name)
        assert "x" in found.inputs or "grad_y" in found.inputs


def test_bytes_that_are_no_onnx() -> None:
    raw = (whole_bundle() / NAME).read_bytes()
    size = (whole_bundle() / "segments/02.safetensors").stat().st_size
    generator = np.random.default_rng(0)
    cut = [raw[:at] for at in generator.integers(1, len(raw), 30)]
    for data in (b"", b"\xff" * 100, b"\x0f" + raw, raw + raw, b"\x80" * 9 + b"\x01" + raw, *cut):
        with pytest.raises(BundleError, match="cannot be used"):
            check_onnx(data, "02.safetensors", size, "it")
    for at in generator.integers(0, len(raw), 300):  # whatever stands there, it is taken or refused in one line
        data = bytearray(raw)
        data[at] ^= 1 << generator.integers(0, 8)
        with contextlib.suppress(BundleError):
            check_onnx(bytes(data), "02.safetensors", size, "it")


def test_forged_onnx_in_a_bundle(folder: Path) -> None:
    replace_file(folder, NAME, with_entries(location="../../secret").SerializeToString())
    refused(folder, NAME, "'../../secret'", "export the bundle again")
    replace_file(folder, NAME, changed(lambda m: m.graph.output.pop()).SerializeToString())
    refused(folder, NAME, "is not the forward graph of segments/02.json")
    replace_file(folder, NAME, (folder / "segments/03.forward.onnx").read_bytes())
    refused(folder, NAME)


def test_what_the_graph_lacks_does_not_run(folder: Path) -> None:
    """A node that makes a gibibyte out of nothing, beside the graph that was checked, or within it."""
    import onnx

    def bomb(m: Any) -> None:
        m.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1 << 28], np.int64), "size"))
        m.graph.node.insert(0, onnx.helper.make_node("ConstantOfShape", ["size"], ["gibibyte"], name="bomb"))

    replace_file(folder, NAME, changed(bomb).SerializeToString())
    refused(folder, NAME, "its node 0 is 'ConstantOfShape' where its graph has")
    forged = changed(lambda m: setattr(m.graph.node[0], "op_type", "NoSuchOperator"))
    replace_file(folder, NAME, forged.SerializeToString())
    refused(folder, NAME, "its node 0 is 'NoSuchOperator' where its graph has 'Conv'")


def test_a_large_file_is_not_even_read(folder: Path) -> None:
    """Thirty million empty fields: their number alone would take minutes."""
    replace_file(folder, NAME, (folder / NAME).read_bytes() + b"\x30\x00" * (15 << 20))
    refused(folder, NAME, "bytes, and its graph needs no more than")
