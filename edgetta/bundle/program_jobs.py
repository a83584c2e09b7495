"""The programs of a bundle as GPU engines take them: ONNX models, each for what it returns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from edgetta.adaptation.model import Gradient
from edgetta.engines.contract import ProgramSet
from edgetta.segments.graph import Graph
from edgetta.segments.onnx_model import OnnxModel
from edgetta.segments.onnx_spelling import spelled

PROGRAMS = ("predict", "measure", "forward", "backward", "recompute")


@dataclass(frozen=True)
class Job:
    """One program by its name; it never returns what it was given."""

    title: str
    graph: Graph

    @property
    def outputs(self) -> tuple[str, ...]:
        """What it returns of the graph's outputs."""
        return tuple(name for name in self.graph.outputs if name not in self.graph.inputs)

    def model(self) -> OnnxModel:
        """Its ONNX model, weights included."""
        return spelled(self.graph).only(self.outputs)


def job_of(programs: ProgramSet, name: str) -> Job:
    """The program called `name`."""
    return Job(name, getattr(programs, name))


def jobs_of(programs: ProgramSet, gradient: Gradient = "auto") -> Iterator[Job]:
    """Those that a gradient mode needs."""
    left = {"exact": ("recompute",), "auto": ("recompute",), "recompute": ("forward", "backward")}[gradient]
    for name in PROGRAMS:
        if name not in left:
            yield job_of(programs, name)
