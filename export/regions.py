"""Put `with torch.no_grad()` and `with torch.autocast()` back in line, which torch.export makes calls of graphs of.

Left alone they would be taken apart together with the operators that have no rule, and which module made which value
would be lost: a block inside could not be cut. Values that leave a region without gradients are detached there. What
autocast would round is computed in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.fx import Graph, Node

REGIONS = ("wrap_with_set_grad_enabled", "wrap_with_autocast")


def has_regions(program: torch.export.ExportedProgram) -> bool:
    """Whether anything was written inside a `with` that torch.export keeps."""
    return any(_is_region(node) for node in program.graph.nodes)


def put_in_line(program: torch.export.ExportedProgram) -> None:
    """Replace every region by its calls, in place."""
    graph = program.graph_module.graph
    while True:  # one region may lie inside another
        region = next((node for node in graph.nodes if _is_region(node)), None)
        if region is None:
            break
        _replace(graph, region)
    named = [a.name for a in next(iter(reversed(graph.nodes))).args[0] if isinstance(a, Node)]
    for spec, name in zip(program.graph_signature.output_specs, named, strict=False):
        spec.arg.name = name  # type: ignore[misc]
    graph.eliminate_dead_code()
    program.graph_module.recompile()


def _is_region(node: Node) -> bool:
    return node.op == "call_function" and str(node.target) in REGIONS


def _replace(graph: Graph, region: Node) -> None:
    at = next(i for i, a in enumerate(region.args) if isinstance(a, Node) and a.op == "get_attr")
    inner: Any = graph.owning_module
    for name in str(region.args[at].target).split("."):  # type: ignore[union-attr]
        inner = getattr(inner, name)
    stops = str(region.target) == "wrap_with_set_grad_enabled" and region.args[0] is False
    outside: Mapping[str, Any] = region.meta.get("nn_module_stack") or {}
    given = iter(region.args[at + 1 :])
    copies: dict[Node, Any] = {}
    results: list[Any] = []
    with graph.inserting_before(region):
        for node in inner.graph.nodes:
            if node.op == "placeholder":
                copies[node] = next(given)
            elif node.op == "output":
                results = [copies[a] if isinstance(a, Node) else a for a in node.args[0]]
            elif node.op == "get_attr":
                copies[node] = graph.get_attr(f"{region.args[at].target}.{node.target}")  # type: ignore[union-attr]
            else:
                copies[node] = copy = graph.node_copy(node, lambda n: copies[n])
                copy.meta["nn_module_stack"] = _stack(outside, node.meta.get("nn_module_stack") or {})
        for number, result in enumerate(results if stops else []):
            if isinstance(result, Node) and isinstance(result.meta.get("val"), torch.Tensor):
                results[number] = detached = graph.call_function(torch.ops.aten.detach.default, (result,))
                detached.meta = dict(result.meta)
    for reader in list(region.users):
        reader.replace_all_uses_with(results[reader.args[1]])  # type: ignore[index]
        graph.erase_node(reader)
    graph.erase_node(region)


def _stack(outside: Mapping[str, Any], inside: Mapping[str, Any]) -> dict[str, Any]:
    """The modules around a call. torch names those at its border alone: a path implies those that it begins with."""
    paths = {path: kind for path, kind in outside.values()}
    for path, kind in inside.values():
        names = path.split(".") if path else []
        paths |= {prefix: "" for i in range(1, len(names)) if (prefix := ".".join(names[:i])) not in paths}
        paths[path] = kind
    return {f"region.{path}": (path, kind) for path, kind in sorted(paths.items(), key=lambda item: len(item[0]))}
