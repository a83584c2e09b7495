"""One way to do a step: what a plan chooses, and what the runtime steps down to when memory gets short."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Choice:
    """Everything about a step that memory depends on. Names and values as in `edgetta.load`.

    With `adapts` False a step only predicts, and `gradient`, `storage` and `slice` say nothing.
    """

    engine: str
    batch: int  # images that one update, or one prediction, sees at most; larger batches are split
    statistics: str = "batch"  # of the BatchNorms, at this batch: "batch", "ema" or "source"
    gradient: str = "auto"
    storage: str = "full"
    slice: int = 0  # images per slice of the backward; 0: the whole batch
    adapts: bool = True

    def told(self) -> str:
        """The choice in a few words."""
        if not self.adapts:
            return f"prediction only, {_images(self.batch)} at a time"
        slices = f" in slices of {self.slice}" if self.slice else ""
        return f"{_images(self.batch)} per update, gradient {self.gradient}, storage {self.storage}{slices}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def _images(count: int) -> str:
    return f"{count} image{'' if count == 1 else 's'}"
