"""A cost model from formulas, so that tests know what must come out."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from edgetta.adaptation.config import AdaptConfig
from edgetta.memory.cost_model import CostModel, ProgramPoint

MB = 1_000_000
IMAGE = 4 * 3 * 16 * 16
PARAMETERS = 8_000
KEPT = 0.4
"""MB kept per image."""


@dataclass(frozen=True)
class Formula:
    """One engine: peaks in MB per image beside `fixed`, seconds per image of a prediction."""

    engine: str
    predict: float
    measure: float
    forward: float
    backward: float
    recompute: float
    fixed: float
    seconds: float

    def peak(self, program: str, images: int) -> float:
        return MB * (self.fixed + images * float(getattr(self, program)))

    def time(self, program: str, images: int) -> float:
        times = {"predict": 1.0, "measure": 1.2, "forward": 1.4, "backward": 2.0, "recompute": 3.0}[program]
        return self.seconds * (images * times + 0.5)  # of a call, whatever it is given

    def points(self) -> list[ProgramPoint]:
        return [
            ProgramPoint(
                self.engine,
                program,
                images,
                round(self.peak(program, images)),
                round(MB * KEPT * images) if program in ("forward", "backward") else 0,
                self.time(program, images),
            )
            for program in ("predict", "measure", "forward", "backward", "recompute")
            for images in (8, 32)
        ]


FAST = Formula("onnxruntime", 0.5, 0.6, 4.0, 3.5, 5.0, 3.0, 0.002)
LEAN = Formula("torch", 0.4, 0.5, 3.0, 2.5, 4.0, 2.0, 0.003)


def cost_model(*formulas: Formula) -> CostModel:
    return CostModel(
        IMAGE,
        PARAMETERS,
        tuple(point for formula in formulas or (FAST, LEAN) for point in formula.points()),
        {"date": "2026-11-27", "architecture": "x86_64", "threads": 2, "versions": {"torch": "2.13.0"}},
    )


def planned_bundle(*formulas: Formula, **fields: Any) -> Any:
    """What a plan reads of a bundle, as if it had been measured."""
    read = {
        "name": "small",
        "path": "small.bundle",
        "config": AdaptConfig(learning_rate=3e-3),
        "rate_law": None,
        "cost_model": cost_model(*formulas),
        "accuracy_costs": None,
    }
    return SimpleNamespace(**(read | fields))
