"""Graphs that would exhaust the machine that looks at them: refused from their shapes, in one line, at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from edgetta.bundle.graph_limits import MAX_NODES, check_limits
from edgetta.segments.graph import Graph, GraphBuilder
from tests.small_bundle import edit_graphs, edit_manifest, refused, replace_file

NAME = "programs/forward.json"


def graph_of(build: Any) -> Graph:
    builder = GraphBuilder()
    x = builder.input("x", (-1, 4, 8, 8))
    return builder.graph([build(builder, x)])


def test_a_graph_that_may_run() -> None:
    check_limits(graph_of(lambda b, x: b.emit("Relu", b.emit("Add", x, b.emit("Neg", x)))))


def pad(b: GraphBuilder, x: str) -> str:
    return b.emit("Pad", x, pads=[0, 0, 0, 0, 0, 0, 1 << 13, 1 << 13], value=0.0)


def many_held(b: GraphBuilder, x: str) -> str:
    wide = [b.emit("Pad", x, pads=[0, 0, 0, 0, 0, 0, 3000, 3000], value=float(i)) for i in range(20)]
    total = wide[0]
    for other in wide[1:]:
        total = b.emit("Add", total, other)
    return total


def much_work(b: GraphBuilder, x: str) -> str:
    y = b.emit("Pad", x, pads=[0, 0, 0, 0, 0, 0, 1024, 1024], value=0.0)
    weight = b.constant("w", torch.zeros(1).expand(4, 4, 513, 513))
    for _ in range(20):
        y = b.emit("Conv", y, weight, strides=[1, 1], pads=[256] * 4, dilations=[1, 1], group=1)
    return y


@pytest.mark.parametrize(
    ("build", "words"), [(pad, "has shape"), (many_held, "numbers per image"), (much_work, "operations")]
)
def test_graphs_that_take_too_much(build: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_limits(graph_of(build))


def test_numbers_and_names_beyond_any() -> None:
    graph = graph_of(lambda b, x: b.emit("Clip", x, min=-3e38, max=3e38))
    check_limits(graph)
    odd = Graph.from_json({**graph.to_json(), "outputs": ["v1"]}, {})
    node = odd.nodes[0]
    for attributes in ({"min": 0.0, "max": 1.0, "more": 1 << 50}, {"min": 0.0, "max": 1.0, "axes": [1] * 17}):
        wrong = type(node)(node.op, node.inputs, node.output, attributes)
        with pytest.raises(ValueError, match="beyond any that edgetta writes"):
            check_limits(Graph(odd.inputs, odd.outputs, (wrong,), odd.values, {}))
    renamed = GraphBuilder()
    renamed.input("x\x1b[2J", (-1, 4))
    with pytest.raises(ValueError, match="is no name"):
        check_limits(renamed.graph(["x\x1b[2J"]))


def dangling(graphs: dict[str, Any], count: int) -> None:
    """Nodes that nothing needs, beside the graph."""
    forward = graphs
    shape, kind = next((v[1], v[2]) for v in forward["values"] if v[0] == "x")
    for k in range(count):
        forward["nodes"].append(["Neg", ["x"], f"idle{k}", {}])
        forward["values"].append([f"idle{k}", shape, kind])


def test_dangling_nodes(folder: Path) -> None:
    edit_graphs(folder, NAME, lambda graphs: dangling(graphs, 1))
    refused(folder, NAME, "nothing needs 'idle0'")
    edit_graphs(folder, NAME, lambda graphs: dangling(graphs, 60_000))
    refused(folder, NAME, f"at most {MAX_NODES} nodes are read")


def test_sixty_mebibytes_of_json(folder: Path) -> None:
    replace_file(folder, NAME, b'{"forward": [' + b"[]," * (20 << 20) + b"[]]}")
    refused(folder, "manifest.json", "bytes of JSON, more than the")
    replace_file(folder, NAME, b'{"forward": [' + b"[]," * (3 << 20) + b"[]]}")
    refused(folder, NAME, "larger than the")
    replace_file(folder, NAME, b'{"forward": [' + b"[]," * (2 << 20) + b"[]]}")
    refused(folder, NAME, "more parts than any file of edgetta")


def test_many_texts_are_as_long_as_one(folder: Path) -> None:
    """A hundred files of allowed length would take minutes."""

    def list_them(manifest: dict[str, Any]) -> None:
        manifest["files"] |= {f"more/{k}.json": {"bytes": 7 << 20, "sha256": "0" * 64} for k in range(5)}

    edit_manifest(folder, list_them)
    refused(folder, "manifest.json", "bytes of JSON, more than the")


@pytest.mark.parametrize(
    ("setting", "value"), [("window", 10**12), ("statistics_images", 10**9), ("regulariser", 1e300)]
)
def test_settings_that_no_device_can_follow(folder: Path, setting: str, value: float) -> None:
    edit_manifest(folder, lambda manifest: manifest["adaptation"].update({setting: value}))
    refused(folder, "manifest.json", f"adaptation.{setting}", "beyond what any device can follow")


def test_settings_of_another_kind(folder: Path) -> None:
    for setting, value in (("window", "64"), ("window", 2.5), ("window", True), ("momentum", []), ("when", 3)):
        copy = json.loads((folder / "manifest.json").read_bytes())["adaptation"][setting]
        edit_manifest(folder, lambda manifest, s=setting, v=value: manifest["adaptation"].update({s: v}))  # type: ignore[misc]
        refused(folder, "manifest.json", f"adaptation.{setting}")
        edit_manifest(folder, lambda manifest, s=setting, v=copy: manifest["adaptation"].update({s: v}))  # type: ignore[misc]


def test_a_forward_without_an_input_called_x(folder: Path) -> None:
    """A traceback once, in the segment's own description."""

    def rename(graphs: dict[str, Any]) -> None:
        text = json.dumps(graphs).replace('"x"', '"z"')
        graphs.update(json.loads(text))

    edit_graphs(folder, NAME, rename)
    refused(folder, "programs/layout.json", "malformed")
