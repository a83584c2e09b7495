"""What `load_model` returns: a network in evaluation mode, and what one must know to cut and feed it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from edgetta.models.parts import PublishedParts
from edgetta.sources.resize import Resize


@dataclass(frozen=True)
class Model:
    """A classifier that takes images in [0, 1] of shape (N, *input_shape) and returns logits (N, num_classes)."""

    module: nn.Module  # in evaluation mode, normalises its input itself
    name: str  # as given to load_model
    input_shape: tuple[int, int, int]  # channels, height, width
    num_classes: int
    parts: PublishedParts | None = None  # where the papers cut it; None for networks from elsewhere
    weights: str | None = None  # the file that they came from; None: random, or the source's own
    notes: tuple[str, ...] = ()  # what was done to it that its author should know
    origin: str | None = None  # of the weights, for people; None: nobody gave any, and they are random
    remedy: str = "give trained ones with --weights"  # against random weights
    size_origin: str = "given"  # who says what images it takes
    to_size: Resize | None = None  # how pictures become its input; None stretches them

    @property
    def resize(self) -> Resize:
        """How pictures of any size become its input."""
        return self.to_size or Resize(self.input_shape[1:])
