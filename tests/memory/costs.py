"""A cost model from formulas, so that tests know what must come out."""

from __future__ import annotations

from dataclasses import dataclass, replace

from edgetta.bundle import Bundle, read_bundle
from edgetta.memory.calibration import WAYS
from edgetta.memory.cost_model import CostModel, PredictionPoint, StepPoint
from tests.small_bundle import whole_bundle

MB = 1_000_000
IMAGE = 4 * 3 * 16 * 16
KEPT = {"full": 1.2, "half": 0.66, "int8": 0.4, "recompute": 0.53, "recompute-int8": 0.21}
"""Bytes kept per image by storage, in MB."""


UPDATE = 40_000
"""Bytes of every update."""


@dataclass(frozen=True)
class Formula:
    """Peaks of one engine: linear in the batch, and in the images of a slice."""

    engine: str
    forward: float  # MB per image, beside what is kept
    backward: float  # MB per image of a slice, beside what is kept
    fixed: float  # MB
    seconds: float  # per image of a prediction

    def forward_bytes(self, storage: str, batch: int) -> int:
        return round(MB * (self.fixed + batch * (0.5 * KEPT[storage] + self.forward)))

    def backward_bytes(self, gradient: str, storage: str, batch: int, images: int) -> int:
        work = self.backward * (0.5 if gradient == "local" else 1.2 if gradient == "recompute" else 1.0)
        return round(MB * (self.fixed + batch * KEPT[storage] + (images or batch) * work))

    def step_seconds(self, gradient: str, storage: str, batch: int, images: int) -> float:
        times = {"full": 2.0, "half": 2.2, "int8": 2.6, "recompute": 2.5, "recompute-int8": 3.0}[storage]
        times *= {"local": 0.6, "recompute": 1.3, "auto": 1.0}[gradient] * (1.1 if images else 1.0)
        return self.seconds * batch * times

    def points(self) -> list[StepPoint]:
        return [
            StepPoint(
                self.engine,
                gradient,
                storage,
                images,
                batch,
                self.forward_bytes(storage, batch),
                self.backward_bytes(gradient, storage, batch, images),
                UPDATE,
                round(MB * batch * KEPT[storage]),
                self.step_seconds(gradient, storage, batch, images),
            )
            for gradient, storage, shares in WAYS
            for batch in (24, 48)
            for images in (0 if share == 1 else round(share * batch) for share in shares)
        ]

    def predictions(self) -> list[PredictionPoint]:
        return [
            PredictionPoint(self.engine, network, batch, round(MB * batch * size), batch * seconds)
            for batch in (24, 48)
            for network, size, seconds in (
                ("adapted", self.forward, 1.3 * self.seconds),
                ("source", 0.3, self.seconds),
            )
        ]


FAST = Formula("onnxruntime", 0.9, 1.6, 3.0, 0.002)
LEAN = Formula("torch", 0.5, 1.3, 2.0, 0.003)


def cost_model(*formulas: Formula) -> CostModel:
    chosen = formulas or (FAST, LEAN)
    return CostModel(
        IMAGE,
        tuple(point for formula in chosen for point in formula.points()),
        tuple(point for formula in chosen for point in formula.predictions()),
        {"date": "2026-11-27", "architecture": "x86_64", "threads": 2, "versions": {"torch": "2.13.0"}},
    )


def planned_bundle(*formulas: Formula) -> Bundle:
    """The small bundle, as if it had been measured."""
    return replace(read_bundle(whole_bundle()), cost_model=cost_model(*formulas))
