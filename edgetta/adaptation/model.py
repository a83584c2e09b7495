"""An adaptable model: the derived graphs of a backbone and the shapes of its meta-networks, whatever the engine.

`edgetta.export.derive` makes one from a torch model, a bundle stores one, `build` makes an `AdaptiveNetwork` of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from edgetta.adaptation.meta_network import MetaNetwork, MetaSpec
from edgetta.adaptation.network import AdaptiveNetwork, BatchNorm
from edgetta.adaptation.step_memory import FULL, StepMemory
from edgetta.engines.contract import ProgramSet
from edgetta.errors import UsageError
from edgetta.segments.contract import GradientMode, Segment, SegmentGraphs
from edgetta.segments.graph import Graph

Gradient = Literal["auto", "exact", "recompute", "local"]
MakeSegment = Callable[[str, SegmentGraphs, GradientMode], Segment]


@dataclass(frozen=True)
class AdaptableModel:
    """A backbone ready to be adapted.

    stem, parts, classifier   derived graphs; the stem has no backward
    source                    the whole unadapted backbone, BatchNorm folded: images -> logits
    metas                     one per part
    cuts                      module names after which the backbone was cut
    batch_norm                "adaptive": statistics of the frozen part follow the stream (batch or ema), or
                              "source": folded into the convolutions
    programs                  of the whole network, meta-networks among it
    """

    stem: SegmentGraphs
    parts: tuple[SegmentGraphs, ...]
    classifier: SegmentGraphs
    source: Graph
    metas: tuple[MetaSpec, ...]
    cuts: tuple[str, ...]
    input_shape: tuple[int, int, int]
    classes: int
    batch_norm: Literal["adaptive", "source"] = "adaptive"
    programs: ProgramSet | None = None

    @property
    def precision(self) -> Literal["fp32", "int8"]:
        """What the backbone's convolutions and linear layers compute in."""
        return "int8" if self.source.quantised else "fp32"

    def segments(self) -> dict[str, SegmentGraphs]:
        """Name -> graphs, from input to output: "stem", "part1" ... "partK", "classifier"."""
        parts = {f"part{k}": part for k, part in enumerate(self.parts, 1)}
        return {"stem": self.stem, **parts, "classifier": self.classifier}


def gradient_mode(graphs: SegmentGraphs, gradient: Gradient) -> GradientMode:
    """`auto` means exact, except where that would keep whole activations (attention, LayerNorm, gates): recompute."""
    if gradient != "auto":
        return gradient
    return "recompute" if any(r.kind == "float" for r in graphs.residuals) else "exact"


def check_choices(gradient: str, batch_norm: str) -> None:
    """Raises `UsageError` for a gradient mode or a BatchNorm policy that is none."""
    if gradient not in get_args(Gradient):
        raise UsageError(f"unknown gradient mode {gradient!r}; choose one of {', '.join(get_args(Gradient))}")
    if batch_norm not in get_args(BatchNorm):
        raise UsageError(f"unknown BatchNorm policy {batch_norm!r}; choose one of {', '.join(get_args(BatchNorm))}")


def build(
    model: AdaptableModel,
    make_segment: MakeSegment,
    gradient: Gradient = "auto",
    batch_norm: BatchNorm = "auto",
    seed: int = 0,
    memory: StepMemory = FULL,
) -> AdaptiveNetwork:
    """The model on some engine: `make_segment(name, graphs, mode)` makes each segment.

    The classifier always passes a gradient; in `local` mode the parts do not. Raises `UsageError` for a BatchNorm
    policy that the model's graphs do not have.
    """
    if model.batch_norm == "source" and batch_norm not in ("auto", "source"):
        raise UsageError(
            f"this model was exported with its BatchNorms folded; policy {batch_norm!r} needs --bn adaptive at export"
        )
    parts = [
        make_segment(f"part{k}", graphs, gradient_mode(graphs, gradient)) for k, graphs in enumerate(model.parts, 1)
    ]
    last = gradient_mode(model.classifier, "auto" if gradient == "local" else gradient)
    return AdaptiveNetwork(
        make_segment("stem", model.stem, "local"),
        parts,
        make_segment("classifier", model.classifier, last),
        [MetaNetwork(spec, seed + k) for k, spec in enumerate(model.metas)],
        batch_norm,
        memory=memory,
    )
