"""An adaptable model: what is derived of a backbone, before anything of it is measured or trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from edgetta.adaptation.meta_network import MetaSpec
from edgetta.engines.contract import ProgramSet
from edgetta.export.batch_norm import Frozen
from edgetta.segments.graph import Graph


@dataclass(frozen=True)
class AdaptableModel:
    """A backbone ready to be adapted.

    programs     of the whole network, with fresh meta-networks beside its parts
    pieces       "stem", "part1" ... "partK", "classifier": what the programs were composed of, in that order
    source       the whole unadapted backbone, BatchNorm folded: images -> logits
    cuts         module names after which the backbone was cut
    batch_norm   "adaptive": the frozen BatchNorms take statistics from the stream; "source": they are folded
    metas        shape and kind of the meta-network of each part
    """

    programs: ProgramSet
    pieces: Mapping[str, Frozen]
    source: Graph
    cuts: tuple[str, ...]
    batch_norm: Literal["adaptive", "source"] = "adaptive"
    metas: tuple[MetaSpec, ...] = ()

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return self.programs.input_shape

    @property
    def classes(self) -> int:
        return self.programs.classes

    @property
    def precision(self) -> Literal["fp32", "int8"]:
        """What the backbone's convolutions and linear layers compute in."""
        return "int8" if self.source.quantised else "fp32"
