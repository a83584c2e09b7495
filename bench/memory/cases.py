"""Which rows there are: methods on engines, and for edgetta the ways to keep what a step needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from edgetta.adaptation.step_plan import KEEP, StepPlan
from edgetta.errors import UsageError

METHODS = ("inference", "bn", "tent", "eata", "cotta", "ecotta-stock", "edgetta")
ENGINES = ("onnxruntime", "torch")
OWN = "edgetta"
LEARN = 32
"""Images that an update learns from by default."""
STOCK = METHODS[1:-1]
"""Methods that are written for torch, and run there alone."""

WAYS = (
    KEEP,
    StepPlan(slice=8),
    StepPlan(slice=4, predict=8),
    StepPlan(False, slice=4, predict=8),
    StepPlan(False, slice=1, predict=2),
)
"""What there is to choose from, from that of no budget to the smallest."""


@dataclass(frozen=True)
class Case:
    """One row: what runs, and how. Names and values as in `StepPlan`, and 0 where they say nothing."""

    method: str
    model: str
    batch: int
    engine: str
    keep: bool = True
    learn: int = 0
    slice: int = 0
    predict: int = 0

    @staticmethod
    def of(row: Mapping[str, Any]) -> Case:
        """The case that a row of the result file was measured for."""
        return Case(**{field.name: row[field.name] for field in fields(Case)})

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def inference(self) -> Case:
        """What it is compared with: plain inference of the same images on the same engine."""
        return Case("inference", self.model, self.batch, self.engine)

    @property
    def plan(self) -> StepPlan:
        return StepPlan(self.keep, self.learn, self.slice, self.predict)


def cases(models: Mapping[str, int], methods: Sequence[str], engines: Sequence[str]) -> list[Case]:
    """All rows for these models (name -> batch), inference first: the others stand beside it."""
    found: dict[Case, None] = {}
    for model, batch in models.items():
        for engine in engines:
            found[Case("inference", model, batch, engine)] = None
        for method in methods:
            if method in STOCK:
                found[Case("inference", model, batch, "torch")] = None
                found[Case(method, model, batch, "torch")] = None
            elif method == OWN:
                found |= dict.fromkeys(
                    Case(OWN, model, batch, engine, plan.keep, plan.learn, plan.slice, plan.predict)
                    for engine in engines
                    for plan in WAYS
                    if plan.slice < min(batch, LEARN)
                )
    return list(found)


def chosen(text: str, known: Sequence[str], option: str) -> list[str]:
    """The names in a comma-separated option, in the order of `known`. Raises `UsageError` for an unknown one."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            raise UsageError(f"{option} {name!r} is unknown; choose from {', '.join(known)}")
    return [name for name in known if name in names]
