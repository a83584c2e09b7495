"""The torch engine: runs programs operator by operator, in any floating-point type. The reference of the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from edgetta.engines.contract import Array, Mixing, Moments, Passed, ProgramSet, Residuals, Statistics
from edgetta.engines.feeding import Feeding
from edgetta.segments.graph import Graph
from edgetta.segments.torch_engine import Program

_NUMPY = {torch.float32: np.float32, torch.float64: np.float64}


class TorchEngine:
    """An `engines.contract.Engine` on torch.

    dtype    of everything: float32, or float64 for exactness
    device   where the programs run; arrays stay numpy
    pack     False: residuals are kept as they are, unrounded
    """

    name = "torch"

    def __init__(
        self,
        programs: ProgramSet,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        pack: bool = True,
    ) -> None:
        self.programs = programs
        self._dtype, self._device, self._pack = dtype, device, pack
        self._feeding = Feeding(programs, _NUMPY[dtype])
        self._residuals = {residual.value.name: residual for residual in programs.residuals}
        self._made: dict[tuple[str, bool], Program] = {}

    def predict(self, images: Array, parameters: Array, statistics: Statistics) -> Array:
        return self._run("predict", self._inputs("predict", images, parameters, statistics))[0]

    def measure(self, images: Array, parameters: Array, mixing: Mixing) -> tuple[Array, Moments]:
        feeding = self._feeding
        inputs = {
            "x": feeding.images(images),
            **feeding.parameters(parameters, self.programs.measure),
            **feeding.mixing(mixing),
        }
        logits, *moments = self._run("measure", inputs)
        return logits, feeding.moments_of(moments)

    def forward(self, images: Array, parameters: Array, statistics: Statistics, moments: bool = True) -> Passed:
        feeding = self._feeding
        inputs = self._inputs("forward", images, parameters, statistics)
        kept = Residuals(len(images))
        program = self._program("forward", moments)

        def keep(name: str, tensor: torch.Tensor) -> torch.Tensor:
            residual = self._residuals.get(name)
            if residual is None:
                return tensor
            if tensor.untyped_storage().nbytes() > tensor.nbytes:
                tensor = tensor.clone()  # a view would keep the whole of its base
            return residual.pack(tensor) if self._pack else tensor

        with torch.no_grad():
            found = dict(zip(program.graph.outputs, program.run(self._tensors(inputs), keep), strict=True))
        kept.kept = {name: found[name] for name in feeding.residuals}
        if "x" in self._residuals:
            kept.kept["x"] = torch.from_numpy(inputs["x"]).to(self._device)
        distance = sum(float(found[name].mean()) for name in feeding.distances)
        own = feeding.moments_of([found[name].cpu().numpy() for name in feeding.moments]) if moments else None
        return Passed(found[self.programs.forward.outputs[0]].cpu().numpy(), distance, own, kept)

    def backward(self, residuals: Residuals, grad_logits: Array, regulariser: float, parameters: Array) -> Array:
        feeding = self._feeding
        inputs = self._tensors(
            {
                **feeding.gradient(grad_logits, regulariser),
                **feeding.parameters(parameters, self.programs.backward),
            }
        )
        for name in list(residuals.kept):
            kept = residuals.kept.pop(name)
            whole = self._pack and name != "x"
            inputs[name] = self._residuals[name].unpack(kept, residuals.batch, self._dtype) if whole else kept
        with torch.no_grad():
            return feeding.gradients([t.cpu().numpy() for t in self._program("backward").run(inputs)])

    def recompute(
        self, images: Array, grad_logits: Array, regulariser: float, parameters: Array, statistics: Statistics
    ) -> Array:
        inputs = self._inputs("recompute", images, parameters, statistics)
        inputs |= self._feeding.gradient(grad_logits, regulariser)
        return self._feeding.gradients(self._run("recompute", inputs))

    def _inputs(self, program: str, images: Array, parameters: Array, statistics: Statistics) -> dict[str, Array]:
        graph: Graph = getattr(self.programs, program)
        feeding = self._feeding
        return {
            "x": feeding.images(images),
            **feeding.parameters(parameters, graph),
            **feeding.statistics(statistics, graph),
        }

    def _run(self, program: str, inputs: Mapping[str, Array]) -> list[Array]:
        with torch.no_grad():
            return [tensor.cpu().numpy() for tensor in self._program(program).run(self._tensors(inputs))]

    def _program(self, name: str, moments: bool = True) -> Program:
        if (name, moments) not in self._made:
            graph: Graph = getattr(self.programs, name)
            if not moments:
                left = set(self._feeding.moments)
                graph = replace(graph, outputs=tuple(n for n in graph.outputs if n not in left)).pruned()
            self._made[name, moments] = Program(graph, self._device, self._dtype)
        return self._made[name, moments]

    def _tensors(self, arrays: Mapping[str, Array]) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(array).to(self._device) for name, array in arrays.items()}
