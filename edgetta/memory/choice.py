"""One way to do a step: what a plan chooses, and what the runtime steps down to when memory gets short."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from edgetta.adaptation.step_plan import KEEP, StepPlan

UNLIMITED = 1 << 30
"""Images per step where nothing splits batches."""


@dataclass(frozen=True)
class Choice:
    """Everything about a step that memory depends on. Names and values as in `edgetta.load`.

    With `adapts` False a step only predicts, and of the plan only `predict` counts.
    """

    engine: str
    batch: int  # images that one step sees at most; larger batches are split
    plan: StepPlan = KEEP
    adapts: bool = True

    def told(self) -> str:
        """The choice in a few words."""
        at_a_time = f", predicted {self.plan.predict} at a time" if self.plan.predict else ""
        if not self.adapts:
            at_once = min(self.plan.predict or self.batch, self.batch)
            return f"prediction only, {_images(at_once) if at_once < UNLIMITED else 'all images'} at a time"
        learn = f"learns from {_images(self.plan.learn)}" if self.plan.learn else "learns from as many as configured"
        kept = "bits kept for the backward" if self.plan.keep else "nothing kept, forward run again"
        slices = f" in slices of {self.plan.slice}" if self.plan.slice else ""
        return f"{learn}{slices}, {kept}{at_a_time}"

    def to_json(self) -> dict[str, Any]:
        """Plain values; `Choice.from_json` reads them."""
        return {"engine": self.engine, "batch": self.batch, **asdict(self.plan), "adapts": self.adapts}

    @staticmethod
    def from_json(data: dict[str, Any]) -> Choice:
        """What `to_json` wrote."""
        plan = {name: data[name] for name in ("keep", "learn", "slice", "predict")}
        return Choice(data["engine"], data["batch"], StepPlan(**plan), data["adapts"])


def _images(count: int) -> str:
    return f"{count:,} image{'' if count == 1 else 's'}"
