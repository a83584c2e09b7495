"""ONNX files are read, changed and written without the onnx package, and onnx reads the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file

from edgetta.errors import BundleError
from edgetta.export.onnx_writer import to_onnx
from edgetta.segments.onnx_model import cast, parse_onnx, read_onnx
from tests.engines.tensorrt.test_engine import part


@pytest.mark.parametrize(("name", "policy"), [("wide_resnet", "ema"), ("gates", "source"), ("transformer", "source")])
def test_what_is_read_is_what_was_written(name: str, policy: str) -> None:
    graphs = part(name, policy)
    for graph in (graphs.forward, graphs.backward):
        assert graph is not None
        original = to_onnx(graph, "graph")
        copy = onnx.load_from_string(parse_onnx(original.SerializeToString()).to_bytes())
        onnx.checker.check_model(copy, full_check=True)
        assert (copy.ir_version, copy.opset_import) == (original.ir_version, original.opset_import)
        assert list(copy.graph.node) == list(original.graph.node)
        assert list(copy.graph.input) == list(original.graph.input)
        assert list(copy.graph.output) == list(original.graph.output)
        weights = {t.name: numpy_helper.to_array(t) for t in copy.graph.initializer}
        assert list(weights) == [t.name for t in original.graph.initializer]
        for tensor in original.graph.initializer:
            expected = numpy_helper.to_array(tensor)
            assert weights[tensor.name].dtype == expected.dtype and np.array_equal(weights[tensor.name], expected)


def test_weights_beside_the_file_are_taken_in(tmp_path: Path) -> None:
    graph = part("vgg", "source", "meta").forward
    constants = {name: tensor.float().clone() for name, tensor in graph.constants.items()}
    save_file(constants, tmp_path / "weights.safetensors")
    (tmp_path / "a.onnx").write_bytes(to_onnx(graph, "g", tmp_path / "weights.safetensors").SerializeToString())
    model = read_onnx(tmp_path / "a.onnx")
    for name, tensor in constants.items():
        assert np.array_equal(model.weights[name], tensor.numpy())
    copy = onnx.load_from_string(model.to_bytes())
    assert not any(tensor.external_data for tensor in copy.graph.initializer)


def test_only_some_outputs(tmp_path: Path) -> None:
    graph = part("wide_resnet", "ema").forward
    model = parse_onnx(to_onnx(graph, "g").SerializeToString())
    predicts = model.only(graph.outputs[:1])
    assert [value.name for value in predicts.outputs] == [graph.outputs[0]]
    assert len(predicts.nodes) < len(model.nodes)
    assert not any(node.op == "Greater" for node in predicts.nodes)
    onnx.checker.check_model(predicts.to_bytes(), full_check=True)


def test_packed_and_unpacked_sizes_and_negative_numbers() -> None:
    weight = helper.make_tensor("w", TensorProto.INT64, [2], np.array([-1, 3], np.int64).tobytes(), raw=True)
    node = helper.make_node("Reshape", ["x", "w"], ["y"], name="n")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])
    graph = helper.make_graph([node], "g", [x], [y], [weight])
    model = parse_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString())
    assert model.weights["w"].tolist() == [-1, 3] and model.weights["w"].shape == (2,)
    assert model.inputs[0].shape == (None, 3) and model.inputs[0].per_sample
    assert cast("a", "b", 10).integer("to") == 10
    with pytest.raises(ValueError, match="has no attribute 'axis'"):
        model.nodes[0].integer("axis")


@pytest.mark.parametrize("content", [b"", b"\x08", b"no onnx at all", b"\x3a\x02\x0a\x00"])
def test_what_is_no_onnx_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.onnx").write_bytes(content)
    with pytest.raises(BundleError, match=r"a.onnx cannot be read as ONNX: .*export the bundle again"):
        read_onnx(tmp_path / "a.onnx")


def test_the_device_needs_no_onnx_package() -> None:
    code = "import sys, edgetta.bundle.tensorrt_engines; "
    code += "assert not {'onnx', 'tensorrt', 'tensorrt_rtx'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_weights_may_come_from_elsewhere() -> None:
    """A file without some weights says so; what is given in their place must be what the graph says."""
    graph = part("vgg", "source", "meta").forward
    data = to_onnx(graph, "graph").SerializeToString()
    whole = parse_onnx(data)
    name, weight = max(whole.weights.items(), key=lambda item: item[1].nbytes)
    light = whole.to_bytes(without={name})
    assert len(light) < len(data) - weight.nbytes // 2
    again = parse_onnx(light, None, {name: weight})
    assert again.weights[name] is weight and again.to_bytes() == whole.to_bytes()
    with pytest.raises(ValueError, match="not what its graph says"):
        parse_onnx(data, None, {name: weight[:1]})
