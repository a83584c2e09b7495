"""How a stream is adapted to: every setting once, with its range and its help; command line and TOML follow it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeAlias

from edgetta.adaptation.schedule import ON_DRIFT, schedule
from edgetta.errors import UsageError

BatchNorm: TypeAlias = Literal["stream", "batch", "source"]


def _setting(default: Any, text: str, metavar: str, allowed: str, good: Any) -> Any:
    """A field: its help, how its value is called, its range in words, and whether a value lies in it."""
    return field(default=default, metadata={"help": text, "metavar": metavar, "range": allowed, "good": good})


def _whole(low: int) -> tuple[str, Any]:
    return f"a whole number of at least {low}", lambda v: type(v) is int and v >= low


def _number(v: Any) -> bool:
    return isinstance(v, (int, float)) and not isinstance(v, bool)


_SHARE = "between 0 and 1", lambda v: _number(v) and 0 <= v <= 1
_POSITIVE = "a number of at least 0", lambda v: _number(v) and 0 <= v < math.inf
_YES_NO = "true or false", lambda v: isinstance(v, bool)


@dataclass(frozen=True)
class AdaptConfig:
    """Settings of the adaptation. The same names stand in TOML files and on the command line."""

    learning_rate: float | None = _setting(
        None,
        "Of SGD; the bundle's rate law, where it has one, is the default.",
        "RATE",
        "a number of at least 0",
        lambda v: v is None or (_number(v) and 0 <= v < math.inf),
    )
    momentum: float = _setting(
        0.9, "Of SGD, below 1.", "M", "between 0 and 1 (1 excluded)", lambda v: _number(v) and 0 <= v < 1
    )
    regulariser: float = _setting(0.5, "Weight of the self-distilled regularisation.", "LAMBDA", *_POSITIVE)
    anchor: float = _setting(
        0.02, "After each update, weights go back by this share of the way to the shipped ones.", "SHARE", *_SHARE
    )
    entropy_margin: float = _setting(
        0.4,
        "Images with entropy above this share of ln(classes) do not count.",
        "SHARE",
        "above 0 and at most 1",
        lambda v: _number(v) and 0 < v <= 1,
    )
    when: str = _setting(
        "always",
        "Learn always, off, 'every N' (batches), on-drift (a while after a change), or 'budgeted P%' of the time. "
        "Statistics follow the stream all the same.",
        "WHEN",
        "a schedule",
        lambda v: isinstance(v, str),
    )
    learn_images: int = _setting(32, "Images of a batch that an update learns from.", "IMAGES", *_whole(1))
    measure_images: int = _setting(16, "Images of a batch whose moments are measured.", "IMAGES", *_whole(1))
    window: int = _setting(64, "Small batches are gathered: one update per so many new images.", "IMAGES", *_whole(1))
    small_batch: int = _setting(16, "Batches below this size are small.", "IMAGES", *_whole(1))
    adapt_affine: bool = _setting(
        True, "Biases and weights inside the frozen parts adapt too, as exported (--adapt).", "true|false", *_YES_NO
    )
    mirrored: bool = _setting(
        False,
        "Average with the mirror image's prediction: more accurate, twice the inference.",
        "true|false",
        *_YES_NO,
    )
    watched: int = _setting(
        4, "First updates whose effect may damp a rate of the law; 0: none.", "UPDATES", *_whole(0)
    )
    batch_norm: Literal["stream", "batch", "source"] = _setting(
        "stream",
        "BatchNorm's statistics: stream (the source's, moved as far as there is evidence of a shift), batch (of each "
        "batch alone), source (as shipped).",
        "stream|batch|source",
        "stream, batch or source",
        lambda v: v in ("stream", "batch", "source"),
    )
    hold_back: bool = _setting(
        True,
        "Predict with the shipped network as long as its predictions are surer than the adapted network's.",
        "true|false",
        *_YES_NO,
    )
    statistics_images: int = _setting(
        512, "Statistics of the stream reach back so many images at most.", "IMAGES", *_whole(1)
    )
    change: float = _setting(
        4.0,
        "Statistics that depart so many times more than usual begin a new average.",
        "TIMES",
        "above 0",
        lambda v: _number(v) and v > 0,
    )

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = getattr(self, setting.name)
            if not setting.metadata["good"](value):
                raise UsageError(f"{setting.name} must be {setting.metadata['range']}, not {value!r}")
        schedule(self.when)
        if self.when == ON_DRIFT and self.batch_norm != "stream":
            raise UsageError(f"when {ON_DRIFT!r} needs the statistics of the stream, which tell a change")

    def gathers(self, batch: int) -> bool:
        """Whether batches of so many images are gathered before an update."""
        return batch < min(self.small_batch, self.window)

    def update_images(self, batch: int) -> int:
        """Images that an update learns from where the stream brings so many at a time."""
        return min(self.learn_images, self.window if self.gathers(batch) else batch)

    @staticmethod
    def from_json(data: dict[str, Any]) -> AdaptConfig:
        """Settings by name; raises `UsageError` for a name that is not a setting."""
        known = {setting.name for setting in fields(AdaptConfig)}
        odd = sorted(set(data) - known)
        if odd:
            raise UsageError(f"unknown setting {odd[0]!r}; the settings are {', '.join(sorted(known))}")
        return AdaptConfig(**data)
