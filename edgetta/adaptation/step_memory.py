"""What a step may keep between its forward and its backward, and in how many pieces the backward works.

Every choice gives the same predictions; what differs is memory, time, and how exact the gradients are.

storage          kept per meta-network                                 gradients
full             x~_{k-1}, x_k and the branch's convolution as floats  exact
half             these as 16-bit floats, and signs as bits             to about 1e-3
int8             these as 8-bit numbers, and signs as bits             to about 1e-2, right on average
recompute        x~_{k-1} alone, and signs as bits                     exact to rounding
recompute-int8   x~_{k-1} alone as 8-bit numbers, and signs as bits    to about 1e-2
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from edgetta.errors import UsageError

Storage = Literal["full", "half", "int8", "recompute", "recompute-int8"]
Form = Literal["float", "half", "int8"]  # of one tensor
STORAGES: tuple[Storage, ...] = get_args(Storage)


@dataclass(frozen=True)
class StepMemory:
    """How a step uses memory. The same names stand in TOML files and on the command line."""

    storage: Storage = "full"  # how the meta-networks keep what their backward needs
    slice: int = 0  # images per slice of the backward; 0: the whole batch at once
    local: bool = False  # no gradient through the frozen parts, whatever the segments are able to

    def __post_init__(self) -> None:
        if self.storage not in STORAGES:
            raise UsageError(f"unknown storage {self.storage!r}; choose one of {', '.join(STORAGES)}")
        if isinstance(self.slice, bool) or not isinstance(self.slice, int) or self.slice < 0:
            raise UsageError(f"slice must be a number of images, 0 for the whole batch, not {self.slice!r}")
        if not isinstance(self.local, bool):
            raise UsageError(f"local must be true or false, not {self.local!r}")

    @property
    def form(self) -> Form:
        """Of every tensor that is kept."""
        return "half" if self.storage == "half" else "int8" if self.storage.endswith("int8") else "float"

    @property
    def rebuilds(self) -> bool:
        """Whether only the tensors between the parts are kept."""
        return self.storage.startswith("recompute")


FULL = StepMemory()
"""Nothing saved: everything as float32, the whole batch at once."""
