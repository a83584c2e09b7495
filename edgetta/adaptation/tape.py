"""What one forward keeps for its backward, part by part."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from edgetta.adaptation.kept_tensor import KeptTensor
from edgetta.adaptation.meta_network import Kept
from edgetta.adaptation.step_memory import FULL, StepMemory
from edgetta.segments.contract import Residuals, Segment, SegmentGraphs


@dataclass
class Recorded:
    """What a frozen segment left for its backward."""

    residuals: Residuals  # without the segment's input, which is a boundary
    needs_input: bool  # whether the backward takes that, too
    state: dict[str, Tensor]  # the statistics that it normalised with: its running ones then, held and not copied

    def rows(self, graphs: SegmentGraphs, x_in: KeptTensor | None, start: int, stop: int) -> Residuals:
        """The residuals of the images from `start` to `stop`. Those of the whole batch are handed over."""
        whole = stop - start == self.residuals.batch
        rows = self.residuals if whole else self.residuals.rows(graphs, start, stop)
        if x_in is not None:
            rows.shared["x"] = x_in.rows(start, stop)
        return rows


@dataclass
class Tape:
    """`AdaptiveNetwork.forward` fills it from front to back, `backward` consumes it from back to front.

    boundaries   x~_0 ... x~_{K-1}, and x~_K where something needs it
    recorded     of the parts, then of the classifier
    distances    R_k = mean |x~_k - x_k|
    """

    batch: int = 0
    memory: StepMemory = FULL  # as it was at the forward
    boundaries: list[KeptTensor] = field(default_factory=list)
    recorded: list[Recorded] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    distances: list[Tensor] = field(default_factory=list)

    def record(self, segment: Segment, residuals: Residuals) -> None:
        """Take in what a segment's forward left."""
        state = dict(segment.state)
        if segment.gradient == "recompute":  # rebuilt with the statistics of the batch, whatever slice of it is seen
            for name, tensor in residuals.kept.items():
                residuals.kept[name] = state.get(name, torch.zeros_like(tensor))
        needs_input = residuals.shared.pop("x", None) is not None
        self.recorded.append(Recorded(residuals, needs_input, state))

    def ends_of_part(self) -> tuple[KeptTensor, KeptTensor | None]:
        """x~_{k-1}, and x~_k where it is kept, of the last part that is left."""
        if not self.memory.rebuilds:
            return self.boundaries.pop(), None
        last = self.boundaries.pop()
        return self.boundaries[-1], last

    def kept_bytes(self) -> dict[str, int]:
        """Bytes kept, by owner; a tensor that two owners share is counted once, with the first."""
        seen: set[int] = set()
        counts: dict[str, int] = {}

        def count(owner: str, tensors: list[Tensor]) -> None:
            new = {t.data_ptr(): t.numel() * t.element_size() for t in tensors if t.data_ptr() not in seen}
            seen.update(new)
            if new:
                counts[owner] = sum(new.values())

        for k, boundary in enumerate(self.boundaries, 1):
            count(f"meta {k}: x_in" if k <= len(self.kept) else "classifier: x_in", boundary.tensors())
        for k, kept in enumerate(self.kept, 1):
            for name, tensors in kept.tensors().items():
                count(f"meta {k}: {name}", tensors)
            counts[f"meta {k}: moments"] = kept.norm_moments.nbytes + kept.branch_moments.nbytes
        for k, recorded in enumerate(self.recorded, 1):
            owner = "classifier" if k == len(self.recorded) else f"part {k}"
            counts[f"{owner}: residuals"] = recorded.residuals.kept_bytes()
        return counts
