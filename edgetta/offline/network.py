"""A network as it ships: its programs with their values, and what content explains of its moments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from edgetta.adaptation.adapter import Adapter
from edgetta.adaptation.config import AdaptConfig
from edgetta.adaptation.content import ContentModel
from edgetta.engines.contract import Array, ProgramSet, Statistics
from edgetta.engines.torch import TorchEngine
from edgetta.rate_law import RateLaw

MEAN, VARIANCE, CONTENT = "mean.", "variance.", "content."


@dataclass(frozen=True)
class Network:
    """What is made offline. Nothing changes it: what moves lies in an `Adapter`, or in another network.

    programs   with what ships: parameters (`shipped`) and statistics of training (`source`)
    content    None where it was not measured
    """

    programs: ProgramSet
    content: ContentModel | None = None

    @cached_property
    def engine(self) -> TorchEngine:
        """Runs it on the processor, in float32."""
        return TorchEngine(self.programs)

    def adapter(self, config: AdaptConfig, rate_law: RateLaw | None = None) -> Adapter:
        """Adapts it from the state that ships."""
        return Adapter(self.engine, config, self.content, rate_law)

    def shipping(self, parameters: Array | None = None, source: Statistics | None = None) -> Network:
        """The same network with other parameters (P,) or statistics of training, without a content model."""
        programs = self.programs
        if parameters is not None:
            programs = replace(programs, shipped=parameters.astype(np.float32))
        if source is not None:
            source = Statistics(source.mean.astype(np.float32), source.variance.astype(np.float32))
            programs = replace(programs, source=source)
        return Network(programs)

    def tensors(self) -> dict[str, Tensor]:
        """All that makes this network another than a freshly derived one, by name; see `with_tensors`."""
        programs = self.programs
        found = dict(programs.parameters.split(programs.shipped))
        for prefix, vector in ((MEAN, programs.source.mean), (VARIANCE, programs.source.variance)):
            found |= {prefix + layer: array for layer, array in programs.statistics.split(vector).items()}
        if self.content is not None:
            found |= {CONTENT + name: array for name, array in self.content.arrays().items()}
        return {name: torch.from_numpy(np.array(array)) for name, array in found.items()}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Network:
        """The network with what `tensors` gave. Raises `ValueError` where they are another network's."""
        arrays = {name: tensor.numpy() for name, tensor in tensors.items() if not name.startswith(CONTENT)}
        content = {n.removeprefix(CONTENT): t.numpy() for n, t in tensors.items() if n.startswith(CONTENT)}
        expected = {name: tuple(t.shape) for name, t in Network(self.programs).tensors().items()}
        if set(arrays) != set(expected):
            odd = sorted(set(arrays) ^ set(expected))[0]
            raise ValueError(f"the state does not belong to this network (tensor {odd!r})")
        for name, array in arrays.items():
            if array.shape != expected[name]:
                raise ValueError(f"tensor {name!r} has shape {array.shape}, not {expected[name]}")
        programs = self.programs
        layers = list(programs.statistics.shapes)
        mean, variance = (
            programs.statistics.join([arrays[prefix + layer] for layer in layers]) for prefix in (MEAN, VARIANCE)
        )
        shipped = programs.parameters.join({name: arrays[name] for name in programs.parameters.shapes})
        found = self.shipping(shipped, Statistics(mean, variance))
        if not content:
            return found
        return replace(found, content=ContentModel.from_arrays(content, programs.statistics.size, programs.classes))
