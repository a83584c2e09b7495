"""What a network keeps between forward and backward, counted from its residuals: for the manifest and for planning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgetta.segments.contract import Residual

_BATCH = 8  # bits of eight images fill whole bytes


@dataclass(frozen=True)
class KeptBytes:
    """Bytes kept between forward and backward: `per_image` for each image that learns, `fixed` whatever their number.

    bits   of `per_image`, what is kept as one bit per element
    """

    per_image: int
    fixed: int
    bits: int

    @staticmethod
    def of(residuals: Sequence[Residual]) -> KeptBytes:
        """Of a `ProgramSet`'s residuals."""
        eight, none = (sum(r.kept_bytes(count) for r in residuals) for count in (_BATCH, 0))
        bits = sum(r.kept_bytes(_BATCH) - r.kept_bytes(0) for r in residuals if r.kind == "mask")
        return KeptBytes(-(-(eight - none) // _BATCH), none, -(-bits // _BATCH))

    def at(self, images: int) -> int:
        """Bytes for so many images."""
        return self.per_image * images + self.fixed

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
