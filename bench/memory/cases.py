"""Which rows there are: methods on engines, and for edgetta the ways to keep what a step needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from edgetta.adaptation.step_memory import STORAGES
from edgetta.errors import UsageError

METHODS = ("inference", "bn", "tent", "eata", "cotta", "ecotta-stock", "edgetta")
ENGINES = ("onnxruntime", "torch")
OWN = "edgetta"
STOCK = METHODS[1:-1]
"""Methods that are written for torch, and run there alone."""

SLICES = 8
"""A step in slices has so many of them."""


@dataclass(frozen=True)
class Case:
    """One row: what runs, and how. Names and values as in `edgetta.load`, "-" where they say nothing."""

    method: str
    model: str
    batch: int
    engine: str
    gradient: str = "-"
    bn: str = "-"
    storage: str = "-"
    slice: int = 0

    @staticmethod
    def of(row: Mapping[str, Any]) -> Case:
        """The case that a row of the result file was measured for."""
        return Case(**{field.name: row[field.name] for field in fields(Case)})

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def inference(self) -> Case:
        """What it is compared with: plain inference of the same images on the same engine."""
        return Case("inference", self.model, self.batch, self.engine, bn="source")


def cases(
    models: Mapping[str, int], methods: Sequence[str], engines: Sequence[str], storages: Sequence[str] = STORAGES
) -> list[Case]:
    """All rows for these models (name -> batch), inference first: the others stand beside it."""
    found: dict[Case, None] = {}
    for model, batch in models.items():
        for engine in engines:
            found[Case("inference", model, batch, engine, bn="source")] = None
        for method in methods:
            if method in STOCK:
                found[Case(method, model, batch, "torch").inference] = None
                gradient = "-" if method == "bn" else "autograd"
                found[Case(method, model, batch, "torch", gradient, "batch")] = None
            elif method == OWN:
                ways = (way for engine in engines for way in _own(model, batch, engine))
                found |= dict.fromkeys(way for way in ways if way.storage in storages)
    return list(found)


def _own(model: str, batch: int, engine: str) -> Iterator[Case]:
    """edgetta, the storages whole and in slices, then other gradients, then another policy."""
    size = max(1, batch // SLICES)
    for storage in STORAGES:
        for images in dict.fromkeys((0, size % batch)):
            yield Case(OWN, model, batch, engine, "exact", "batch", storage, images)
    for storage in ("recompute", "recompute-int8"):
        yield Case(OWN, model, batch, engine, "recompute", "batch", storage, size % batch)
    yield Case(OWN, model, batch, engine, "local", "batch", "recompute-int8", size % batch)


def chosen(text: str, known: Sequence[str], option: str) -> list[str]:
    """The names in a comma-separated option, in the order of `known`. Raises `UsageError` for an unknown one."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            raise UsageError(f"{option} {name!r} is unknown; choose from {', '.join(known)}")
    return [name for name in known if name in names]
