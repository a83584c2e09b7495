"""Which way imports go: no module needs one that needs it, and no package needs one above it.

Imports inside functions and those for type checkers count too: they hide a circle, and do not undo it.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {"edgetta": "edgetta", "edgetta.export": "export", "edgetta.bench": "bench", "edgetta.devices": "devices"}
FACADES = ("edgetta", "edgetta.__main__")
"""What users import; everything may ask it for the version."""

UPWARDS: dict[tuple[str, str], str] = {
    ("edgetta.adaptation", "edgetta.export"): "edgetta.adapt derives on the fly; module.py moves up",
    ("edgetta.adaptation", "edgetta.offline"): "the same",
    ("edgetta.memory", "edgetta.bundle"): "measuring moves above the data that travels in a bundle",
    ("edgetta.memory", "edgetta.runtime"): "the same",
    ("edgetta.segments", "edgetta.memory"): "the allocator moves below the engines",
    ("edgetta.engines", "edgetta.memory"): "the same",
    ("edgetta.engines", "edgetta.devices"): "the machine's description moves below",
}
"""Imports that go the wrong way and are being undone, and how. Nothing may be added."""

SIDEWAYS: dict[tuple[str, str], str] = {}
"""The same within a package."""


@cache
def modules() -> Mapping[str, Path]:
    """Every module of the package by name."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            if folder != "edgetta" or parts[0] not in FOLDERS.values():  # those are links to the other folders
                found[".".join((package, *parts)).removesuffix(".__init__")] = path
    return found


def imported(tree: ast.AST) -> Iterator[str]:
    """The names that a module imports, wherever it does so."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in modules() else node.module


@cache
def graph() -> Mapping[str, frozenset[str]]:
    """Every module, and the modules of ours that it imports."""
    return {
        name: frozenset(other for other in imported(ast.parse(path.read_text())) if other in modules()) - {name}
        for name, path in modules().items()
    }


def circles(graph: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """The groups of nodes that reach one another (Tarjan's strongly connected components of more than one node)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    path: list[str] = []
    found = []

    def visit(node: str) -> None:
        order[node] = lowest[node] = len(order)
        path.append(node)
        for other in graph.get(node, ()):
            if other not in order:
                visit(other)
            if other in path:
                lowest[node] = min(lowest[node], lowest[other])
        if lowest[node] == order[node]:
            group = path[path.index(node) :]
            del path[path.index(node) :]
            if len(group) > 1:
                found.append(sorted(group))

    for node in graph:
        if node not in order:
            visit(node)
    return found


def package_of(module: str) -> str:
    """`edgetta.bench.memory.cases` -> `edgetta.bench`; a module beside the packages stands for itself."""
    return ".".join(module.split(".")[:2])


@cache
def packages() -> Mapping[str, Mapping[str, frozenset[str]]]:
    """Every package, the packages that it imports, and the modules that do so."""
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for module, others in graph().items():
        for other in others:
            own, its = package_of(module), package_of(other)
            if own != its and module not in FACADES and other not in FACADES:
                found[own][its].add(module)
    return {own: {its: frozenset(by) for its, by in others.items()} for own, others in found.items()}


def test_no_module_imports_what_imports_it() -> None:
    known = {own: {other for pair in SIDEWAYS for other in pair if pair[0] == own} for own in graph()}
    assert not circles({name: others - set(FACADES) - known[name] for name, others in graph().items()})


def test_no_package_imports_what_imports_it() -> None:
    downwards = {own: [its for its in others if (own, its) not in UPWARDS] for own, others in packages().items()}
    for group in circles(downwards):
        edges = {(a, b): sorted(packages()[a][b]) for a in group for b in group if b in packages().get(a, {})}
        pytest.fail(f"a circle of packages: {edges}")


@pytest.mark.parametrize("edge", sorted(UPWARDS))
def test_what_was_undone_leaves_the_list(edge: tuple[str, str]) -> None:
    own, its = edge
    assert its in packages().get(own, {}), f"{own} no longer imports {its}: take it out of UPWARDS"


def test_circles_are_found() -> None:
    assert circles({"a": ["b"], "b": ["c"], "c": ["a"], "d": ["a"]}) == [["a", "b", "c"]]
    assert circles({"a": ["b", "c"], "b": ["c"], "c": []}) == []
    assert circles({"a": ["b"], "b": ["a"], "c": ["d"], "d": ["c", "a"]}) == [["a", "b"], ["c", "d"]]
