"""What a checkpoint says of its own input: training scripts store their arguments beside the weights.

Names are those of torchvision's reference scripts (`val_crop_size`), timm's (`img_size`, `crop_pct`) and common ones.
Values that are none, or of another kind than expected, say nothing.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgetta.models.normalise import Constants
from edgetta.sources.resize import INTERPOLATIONS, MAX_SIDE

_HOLDERS = ("args", "hparams", "hyper_parameters", "config", "cfg")
_SIDES = ("val_crop_size", "crop_size", "img_size", "image_size", "input_size", "imgsz")
_SHORT_SIDES = ("val_resize_size", "resize_size")


@dataclass(frozen=True)
class CheckpointSettings:
    """Each None where the checkpoint does not say."""

    input_size: tuple[int, int] | None = None  # height, width
    short_side: int | None = None
    interpolation: str | None = None
    constants: Constants | None = None  # mean and standard deviation


def read_settings(checkpoint: Mapping[str, Any]) -> CheckpointSettings:
    """The settings in a checkpoint's dictionary, in its training arguments or beside the weights."""
    said: dict[str, Any] = {}
    for name in _HOLDERS:
        held = checkpoint.get(name)
        said |= vars(held) if isinstance(held, Namespace) else dict(held) if isinstance(held, Mapping) else {}
    size = next((found for name in _SIDES if (found := _size(said.get(name))) is not None), None)
    short = next((found[0] for name in _SHORT_SIDES if (found := _size(said.get(name))) is not None), None)
    share = said.get("crop_pct")
    if short is None and size is not None and isinstance(share, float) and 0.1 <= share <= 1:
        short = int(min(size) / share)
    if short is not None and (size is None or not min(size) <= short <= MAX_SIDE):
        short = None
    interpolation = said.get("interpolation")
    constants = _constants(said.get("mean"), said.get("std"))
    return CheckpointSettings(size, short, interpolation if interpolation in INTERPOLATIONS else None, constants)


def _size(value: Any) -> tuple[int, int] | None:
    """(height, width) of a number, of two, or of channels and two."""
    numbers = [value, value] if isinstance(value, int) else list(value) if isinstance(value, list | tuple) else []
    numbers = numbers * 2 if len(numbers) == 1 else numbers[-2:]
    if len(numbers) != 2 or any(type(number) is not int or not 8 <= number <= 4096 for number in numbers):
        return None
    return numbers[0], numbers[1]


def _constants(mean: Any, std: Any) -> Constants | None:
    if not _floats(mean) or not _floats(std) or len(mean) != len(std):
        return None
    return tuple(mean), tuple(std)


def _floats(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(type(number) is float for number in value)
