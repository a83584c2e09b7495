"""Which programs a segment needs on a GPU engine, where each is made ready for what it returns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from edgetta.adaptation.model import AdaptableModel, Gradient, gradient_mode
from edgetta.bundle.reading import Bundle
from edgetta.segments.contract import GradientMode, SegmentGraphs
from edgetta.segments.graph import Graph
from edgetta.segments.onnx_model import OnnxModel
from edgetta.segments.onnxruntime_engine import read_model


@dataclass(frozen=True)
class Job:
    """One program: segment ("stem", "part1", ..., "classifier", "source") and direction.

    Directions are "predict" (forward without residuals), "forward", "backward" and "recompute". `outputs` are those of
    the graph that the program returns; it never returns what it was given.
    """

    segment: str
    direction: str
    graph: Graph
    outputs: tuple[str, ...]

    @property
    def title(self) -> str:
        return f"{self.segment}.{self.direction}"

    @property
    def role(self) -> str:
        """What it is to its segment: "forward", "backward" or "recompute"; also the name of its ONNX file."""
        return "forward" if self.direction == "predict" else self.direction

    def model(self, bundle: Bundle) -> OnnxModel:
        """Its ONNX file, weights included, without outputs that it does not return."""
        return read_model(bundle.onnx(self.segment, self.role), self.graph, self.title).only(self.outputs)


def jobs_of(name: str, graphs: SegmentGraphs, mode: GradientMode) -> Iterator[Job]:
    """The programs of the segment called `name` in a gradient mode."""
    # Nothing before the first meta-network trains, unless its biases or weights adapt.
    needed = name != "stem" and (name != "part1" or bool(graphs.initial_affine)) and mode != "local"
    yield _job(name, "forward" if needed and mode == "exact" else "predict", graphs)
    if needed:
        yield _job(name, "backward" if mode == "exact" else "recompute", graphs)


def jobs_of_model(model: AdaptableModel, gradient: Gradient) -> list[Job]:
    """The programs of a whole network, and that of the unadapted backbone."""
    found = list(jobs_of("stem", model.stem, "local"))
    for k, graphs in enumerate(model.parts, 1):
        found += jobs_of(f"part{k}", graphs, gradient_mode(graphs, gradient))
    last = gradient_mode(model.classifier, "auto" if gradient == "local" else gradient)
    return [*found, *jobs_of("classifier", model.classifier, last), source_job(model)]


def source_job(model: AdaptableModel) -> Job:
    """The unadapted backbone."""
    return _job("source", "predict", SegmentGraphs(model.source, None, None))


def _job(segment: str, direction: str, graphs: SegmentGraphs) -> Job:
    graph = {"backward": graphs.backward, "recompute": graphs.recompute}.get(direction, graphs.forward)
    assert graph is not None, f"{segment} has no {direction}"
    outputs = graph.outputs[: 1 + len(graphs.state)] if direction == "predict" else graph.outputs
    return Job(segment, direction, graph, tuple(name for name in outputs if name not in graph.inputs))
