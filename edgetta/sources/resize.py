"""How a picture of any size becomes the model's input: crop, pad or stretch, the same wherever pictures are read.

| policy | what it does | as |
|---|---|---|
| `crop` | the short side becomes `short_side`, then the centre is cut out | torchvision's and timm's evaluation |
| `pad` | the whole picture is fitted in, what is left is filled (letterbox) | `PIL.ImageOps.pad` |
| `stretch` | the sides become those of the input, whatever the picture's shape | `Resize((height, width))` |

A picture that has the model's size already is taken as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from edgetta.errors import UsageError
from edgetta.sources.source import SourceError

if TYPE_CHECKING:
    from PIL.Image import Image

Policy = Literal["crop", "pad", "stretch", "refuse"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]

POLICIES: tuple[str, ...] = tuple(policy for policy in get_args(Policy) if policy != "refuse")
INTERPOLATIONS: tuple[str, ...] = get_args(Interpolation)
MAX_SIDE = 1 << 16

MAX_RESIZED_PIXELS = 1 << 24
"""Beyond so many pixels only the part that is kept is computed: a thin strip would otherwise take gigabytes."""

_BLACK = (0, 0, 0)


@dataclass(frozen=True)
class Resize:
    """A policy with its numbers; sizes are (height, width).

    Attributes:
        size: of the model's input.
        policy: as above, or `refuse`: a picture of another size is an error.
        short_side: pixels of the short side before the centre is cut out, at least that of `size`; None is that of
            `size`. Sides of an oblong input scale alike. Under `stretch` the picture is stretched to so much more.
        interpolation: always with antialiasing, but `nearest`.
        fill: red, green, blue of the borders that `pad` leaves, in [0, 255].

    Raises UsageError for numbers out of their ranges.
    """

    size: tuple[int, int]
    policy: Policy = "stretch"
    short_side: int | None = None
    interpolation: Interpolation = "bilinear"
    fill: tuple[int, int, int] = _BLACK

    def __post_init__(self) -> None:
        if self.policy not in get_args(Policy):
            raise UsageError(f"resize is one of {', '.join(POLICIES)}, not {self.policy!r}")
        if self.interpolation not in INTERPOLATIONS:
            raise UsageError(f"interpolation is one of {', '.join(INTERPOLATIONS)}, not {self.interpolation!r}")
        if self.short_side is not None and not min(self.size) <= self.short_side <= MAX_SIDE:
            raise UsageError(
                f"short_side is the short side before the centre is cut out: at least {min(self.size)}, "
                f"not {self.short_side}"
            )
        if self.short_side is not None and self.policy == "pad":
            raise UsageError("pad fits the whole picture in: it has no short_side; leave it out, or take crop")
        if len(self.fill) != 3 or not all(0 <= value <= 255 for value in self.fill):
            raise UsageError(f"fill is a colour, red, green and blue from 0 to 255, not {self.fill}")

    @property
    def box(self) -> tuple[int, int]:
        """(height, width) that a picture must cover before its centre is cut out."""
        short = self.short_side or min(self.size)
        height, width = (side * short // min(self.size) for side in self.size)
        return height, width

    def picture(self, picture: Image, name: str = "the picture") -> np.ndarray:
        """An RGB picture as (H, W, 3) uint8 of the model's size.

        Raises:
            SourceError: another size, and the policy is `refuse`.
        """
        self.check(name, picture.height, picture.width)
        return np.array(self._fitted(picture, self.fill))

    def array(self, image: np.ndarray, name: str = "the image") -> np.ndarray:
        """`picture` for (H, W, 3) arrays: uint8, or float32 in [0, 1], which keep their precision.

        Raises:
            SourceError: another size, and the policy is `refuse`.
        """
        from PIL import Image

        if image.shape[:2] == self.size:
            return np.ascontiguousarray(image)
        self.check(name, image.shape[0], image.shape[1])
        if image.dtype == np.uint8:
            return self.picture(Image.fromarray(np.ascontiguousarray(image)), name)
        planes = [
            np.asarray(self._fitted(Image.fromarray(np.ascontiguousarray(image[..., channel])), value / 255))
            for channel, value in enumerate(self.fill)
        ]
        # Bicubic and Lanczos overshoot at edges; 8-bit pixels cannot either.
        return np.clip(np.stack(planes, axis=-1), 0, 1)

    def told(self) -> str:
        """One line for people."""
        height, width = self.size
        size = f"{width} x {height}"
        if self.policy == "refuse":
            return f"none: pictures are {size}"
        if self.policy == "pad":
            colour = "black" if self.fill == _BLACK else f"of colour {', '.join(map(str, self.fill))}"
            return f"pad: the whole picture into {size}, {self.interpolation}, borders {colour}"
        if self.policy == "crop":
            return f"crop: short side to {min(self.box)}, {self.interpolation}, then the centre of {size}"
        if self.box != self.size:
            wide = f"{self.box[1]} x {self.box[0]}"
            return f"stretch to {wide}, {self.interpolation}, whatever the shape, then the centre of {size}"
        return f"stretch to {size}, {self.interpolation}, whatever the shape"

    def to_json(self) -> dict[str, Any]:
        """What a bundle's manifest says of it."""
        return {
            "resize": self.policy,
            "short_side": self.short_side,
            "interpolation": self.interpolation,
            "fill": list(self.fill),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any], size: tuple[int, int]) -> Resize:
        """Read what `to_json` wrote; a bundle that says nothing stretches, as bundles once did.

        Raises:
            ValueError: a value of the wrong kind.
            UsageError: a value out of its range.
        """
        if "resize" not in data:
            return Resize(size)
        policy, interpolation = data["resize"], data.get("interpolation", "bilinear")
        short_side, fill = data.get("short_side"), data.get("fill", list(_BLACK))
        if policy not in POLICIES or not isinstance(interpolation, str):
            raise ValueError(f"preprocessing.resize must be one of {', '.join(POLICIES)}, not {str(policy)[:40]!r}")
        if short_side is not None and type(short_side) is not int:
            raise ValueError(f"preprocessing.short_side must be a whole number, not {str(short_side)[:40]!r}")
        if not isinstance(fill, list) or len(fill) != 3 or any(type(value) is not int for value in fill):
            raise ValueError(f"preprocessing.fill must be three whole numbers, not {str(fill)[:40]!r}")
        return Resize(size, policy, short_side, interpolation, (fill[0], fill[1], fill[2]))  # type: ignore[arg-type]

    def check(self, name: str, height: int, width: int) -> None:
        """Raises SourceError for a picture of another size where the policy is `refuse`."""
        if self.policy == "refuse" and (height, width) != self.size:
            raise SourceError(
                f"{name} is {width} x {height} pixels and the model takes {self.size[1]} x {self.size[0]}; "
                "resize the images first, or allow resizing"
            )

    def _fitted(self, picture: Image, fill: Any) -> Image:
        """A picture of any mode, brought to the size."""
        height, width = self.size
        if picture.size == (width, height):
            return picture
        if self.policy == "pad":
            return self._padded(picture, fill)
        box_height, box_width = self.box
        tall, wide = box_height, box_width
        if self.policy == "crop":
            # The side that covers the box only just; whole-number arithmetic, so that the other one never falls short.
            if box_width * picture.height >= box_height * picture.width:
                tall = box_width * picture.height // picture.width
            else:
                wide = box_height * picture.width // picture.height
        top, left = round((tall - height) / 2), round((wide - width) / 2)
        if tall * wide <= MAX_RESIZED_PIXELS:
            resized = picture.resize((wide, tall), self._resampling())
            return resized.crop((left, top, left + width, top + height))
        across, down = picture.width / wide, picture.height / tall
        part = (left * across, top * down, (left + width) * across, (top + height) * down)
        return picture.resize((width, height), self._resampling(), box=part)

    def _padded(self, picture: Image, fill: Any) -> Image:
        from PIL import Image

        height, width = self.size
        tall, wide = height, width
        if picture.width * height > width * picture.height:
            tall = max(1, round(picture.height / picture.width * width))
        else:
            wide = max(1, round(picture.width / picture.height * height))
        resized = picture.resize((wide, tall), self._resampling())
        canvas = Image.new(picture.mode, (width, height), fill)
        canvas.paste(resized, (round((width - wide) / 2), round((height - tall) / 2)))
        return canvas

    def _resampling(self) -> Any:
        from PIL.Image import Resampling

        return Resampling[self.interpolation.upper()]
