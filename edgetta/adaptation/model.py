"""A model as segments, each with its derived graphs: what TensorRT's engines are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgetta.segments.contract import GradientMode, SegmentGraphs
from edgetta.segments.graph import Graph

Gradient = Literal["auto", "exact", "recompute", "local"]


@dataclass(frozen=True)
class AdaptableModel:
    """A backbone in segments; the stem has no backward. `source` is the whole of it: images -> logits."""

    stem: SegmentGraphs
    parts: tuple[SegmentGraphs, ...]
    classifier: SegmentGraphs
    source: Graph

    def segments(self) -> dict[str, SegmentGraphs]:
        """Name -> graphs, from input to output: "stem", "part1" ... "partK", "classifier"."""
        parts = {f"part{k}": part for k, part in enumerate(self.parts, 1)}
        return {"stem": self.stem, **parts, "classifier": self.classifier}


def gradient_mode(graphs: SegmentGraphs, gradient: Gradient) -> GradientMode:
    """`auto` means exact, except where that would keep whole activations (attention, LayerNorm, gates): recompute."""
    if gradient != "auto":
        return gradient
    return "recompute" if any(r.kind == "float" for r in graphs.residuals) else "exact"
