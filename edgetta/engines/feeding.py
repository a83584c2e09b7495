"""From vectors to the inputs of a program by name, and from its outputs back to vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edgetta.engines.contract import Array, Mixing, Moments, ProgramSet, Statistics
from edgetta.segments.graph import Graph


class Feeding:
    """The inputs and outputs of one `ProgramSet`, for any engine that works on numpy arrays of one floating type."""

    def __init__(self, programs: ProgramSet, dtype: type = np.float32) -> None:
        self.programs = programs
        self.dtype = dtype
        layers = list(programs.statistics.shapes)
        self.layers = len(layers)
        moments = 2 * self.layers
        made = {residual.value.name for residual in programs.residuals} - {"x"}
        outputs = programs.forward.outputs
        self.residuals = [name for name in outputs if name in made]
        self.distances = [name for name in outputs[1 : len(outputs) - moments - len(self.residuals)]]
        self.moments = list(outputs[1 + len(self.distances) : 1 + len(self.distances) + moments])

    def parameters(self, vector: Array, graph: Graph) -> dict[str, Array]:
        """The parameters that a graph reads."""
        return _among(self.programs.parameters.split(self._typed(vector)), graph)

    def statistics(self, statistics: Statistics, graph: Graph) -> dict[str, Array]:
        """The statistics that a graph reads."""
        return _among(
            {
                **self._layers("mean", statistics.mean),
                **self._layers("variance", statistics.variance),
            },
            graph,
        )

    def mixing(self, mixing: Mixing) -> dict[str, Array]:
        """The inputs of `measure` beside images and parameters."""
        found = {
            **self._layers("before.mean", mixing.before.mean),
            **self._layers("before.variance", mixing.before.variance),
            "share": np.array([mixing.share], self.dtype),
        }
        for name in ("gain", "offset", "factor", "power", "floor"):
            found |= self._layers(name, getattr(mixing, name))
        return _among(found, self.programs.measure)

    def gradient(self, grad_logits: Array, regulariser: float) -> dict[str, Array]:
        """What a backward takes beside residuals and parameters; `regulariser` of the mean over the images."""
        return {
            "grad_logits": self._typed(grad_logits),
            "regulariser": np.array([regulariser / max(1, len(grad_logits))], self.dtype),
        }

    def moments_of(self, outputs: Sequence[Array]) -> Moments:
        """Own means of every layer, then own variances."""
        join = self.programs.statistics.join
        return Moments(join(outputs[: self.layers]), join(outputs[self.layers :]))

    def gradients(self, outputs: Sequence[Array]) -> Array:
        """(P,)"""
        return self.programs.parameters.join(outputs)

    def images(self, images: Array) -> Array:
        """Images (N, C, H, W) as programs take them; raises `ValueError` for another shape."""
        if images.ndim != 4 or images.shape[1:] != self.programs.input_shape or not len(images):
            raise ValueError(f"images have shape {images.shape}, not (N, {self.programs.input_shape})")
        return self._typed(images)

    def _layers(self, kind: str, vector: Array) -> dict[str, Array]:
        arrays = self.programs.statistics.split(self._typed(vector))
        return {f"{kind}.{layer}": array for layer, array in arrays.items()}

    def _typed(self, array: Array) -> Array:
        return np.ascontiguousarray(array, self.dtype)


def _among(arrays: Mapping[str, Array], graph: Graph) -> dict[str, Array]:
    return {name: array for name, array in arrays.items() if name in graph.values and name in graph.inputs}
