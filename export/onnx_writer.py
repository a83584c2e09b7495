"""Write a `Graph` as ONNX, opset 17 and IR version 8 by default, which JetPack 5's runtimes still read.

Weights are not repeated in every file: the ONNX files of a segment point into its one `.safetensors` file, which the
torch engine reads too. How each operator is spelled is said in `edgetta.segments.onnx_spelling`.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgetta.errors import MissingDependencyError, UsageError
from edgetta.segments.graph import BATCH, Graph
from edgetta.segments.onnx_spelling import IR_VERSION, OPSET, spelled

if TYPE_CHECKING:
    import onnx


def to_onnx(graph: Graph, name: str, weights: Path | None = None, opset: int = OPSET) -> onnx.ModelProto:
    """The graph as an ONNX model whose activations are float32 and whose batch is dynamic.

    With `weights`, the path of a `.safetensors` file that holds the graph's constants, they are external data in that
    file (its name only: it must lie beside the ONNX file). Without it they are stored inside. `opset` may be 17 or
    later, as far as the installed onnx package knows it.
    Raises `UsageError` for another opset, `MissingDependencyError` where the onnx package is absent.
    """
    try:
        import onnx
        from onnx import TensorProto, helper, numpy_helper
    except ImportError as error:
        raise MissingDependencyError("writing ONNX needs the onnx package: pip install 'edgetta[export]'") from error
    newest = onnx.defs.onnx_opset_version()
    if not OPSET <= opset <= newest:
        raise UsageError(f"opset {opset} cannot be written; choose one from {OPSET} to {newest}")

    offsets = tensor_offsets(weights) if weights else {}
    model = spelled(graph, opset)
    initializers = []
    for constant, array in model.weights.items():
        if weights and constant in offsets and constant in graph.constants:
            kind = TensorProto.INT8 if array.dtype == np.int8 else TensorProto.FLOAT
            proto = TensorProto(name=constant, data_type=kind, dims=list(array.shape))
            start, length = offsets[constant]
            if length != array.nbytes or array.dtype not in (np.float32, np.int8):
                raise UsageError(f"{constant!r} in {weights} is not the graph's own tensor; write that file anew")
            proto.data_location = TensorProto.EXTERNAL
            for key, value in (("location", weights.name), ("offset", start), ("length", length)):
                proto.external_data.add(key=key, value=str(value))
        else:
            proto = numpy_helper.from_array(array, constant)
        initializers.append(proto)

    def info(value_name: str) -> onnx.ValueInfoProto:
        value = graph.values[value_name]
        kind = TensorProto.BOOL if value.dtype == "bool" else TensorProto.FLOAT
        return helper.make_tensor_value_info(
            value_name, kind, ["batch" if s == BATCH else f"batch_{-s}" if s < 0 else s for s in value.shape]
        )

    proto_graph = helper.make_graph(
        [onnx.NodeProto.FromString(node.to_bytes()) for node in model.nodes],
        name,
        [info(n) for n in graph.inputs],
        [info(n) for n in graph.outputs],
        initializers,
    )
    proto_model = helper.make_model(
        proto_graph, opset_imports=[helper.make_opsetid("", opset)], producer_name="edgetta"
    )
    proto_model.ir_version = IR_VERSION
    return proto_model


def tensor_offsets(path: Path) -> dict[str, tuple[int, int]]:
    """Absolute offset and length in bytes of every tensor in a `.safetensors` file."""
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
    return {
        name: (8 + size + entry["data_offsets"][0], entry["data_offsets"][1] - entry["data_offsets"][0])
        for name, entry in header.items()
        if name != "__metadata__"
    }
