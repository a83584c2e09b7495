"""How much memory and time a step takes, from a few steps that were measured: the cost model of a bundle.

A step has three peaks: in its forward, in its backward, and in its update. At a given share of the batch per slice of
the backward, a step takes tensors whose size is proportional to the batch, and some whose size is not (gradients,
kernels), so

    forward(batch)         = fixed + batch * per_image
    backward(batch, share) = fixed + batch * per_image(share)         share = images per slice / batch
    update                 = fixed                                    gradients, and copies to undo it

Every way to keep tensors was measured at two batch sizes and at a few shares, each peak by the kernel's own mark,
above the loaded and warmed-up model, with an allocator that returns freed memory. Between shares `per_image` is
interpolated. Only the standard library is needed here, so that a planner can read a bundle's model without torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

from edgetta.errors import BundleError
from edgetta.memory.choice import Choice

VERSION = 2
MAX_POINTS = 4096

Way = tuple[str, str, str]
"""Engine, gradient, storage."""


@dataclass(frozen=True)
class StepPoint:
    """One step that was measured."""

    engine: str
    gradient: str
    storage: str
    slice: int  # images; 0: the whole batch
    batch: int
    forward_bytes: int  # peak of the forward
    backward_bytes: int  # peak of the backward
    update_bytes: int  # peak of the update
    kept_bytes: int  # between the two, as the contract counts
    seconds: float

    @property
    def share(self) -> float:
        """Of the batch in one slice of the backward, above 0 up to 1."""
        return share_of(self.slice, self.batch)


@dataclass(frozen=True)
class PredictionPoint:
    """One prediction that was measured: of the adapted network, or of the plain backbone ("source")."""

    engine: str
    network: str  # "adapted" or "source"
    batch: int
    peak_bytes: int
    seconds: float


@dataclass(frozen=True)
class Cost:
    """What a step takes, in bytes above the loaded, warmed-up model, and its time, as far as it was measured."""

    forward: int
    backward: int
    update: int
    kept: int
    images: int
    seconds_per_image: float  # on the machine that measured
    slowdown: float | None  # seconds over those of plain inference on the same engine; None where that is unknown

    @property
    def peak(self) -> int:
        return max(self.forward, self.backward, self.update) + self.images

    def components(self) -> dict[str, int]:
        """The peak, by what it is made of. What is kept is whole when the forward ends, and is gone at the update."""
        phases = {"backward": self.backward, "forward": self.forward, "update": self.update}
        phase = max(phases, key=lambda name: phases[name])
        largest = phases[phase]
        kept = 0 if phase == "update" else min(self.kept, largest)
        return {
            "kept between forward and backward": kept,
            f"working memory of the {phase}": largest - kept,
            "images": self.images,
        }


@dataclass(frozen=True)
class CostModel:
    """The points of a bundle, where they were measured, and what follows from them."""

    image_bytes: int  # of one image as the network takes it
    steps: tuple[StepPoint, ...]
    predictions: tuple[PredictionPoint, ...]
    measured_on: Mapping[str, Any]  # machine, versions, date: for the reader

    def engines(self) -> list[str]:
        """The engines that were measured."""
        return list(dict.fromkeys(point.engine for point in self.steps))

    def shares(self, engine: str) -> dict[tuple[str, str], list[float]]:
        """Gradient and storage -> shares of the batch in one slice, as far as they were measured, largest first."""
        found: dict[tuple[str, str], list[float]] = {}
        for point in self.steps:
            if point.engine == engine:
                shares = found.setdefault((point.gradient, point.storage), [])
                if point.share not in shares:
                    shares.append(point.share)
        return {way: sorted(shares, reverse=True) for way, shares in found.items()}

    def cost(self, choice: Choice, batch: int | None = None, held: int = 0) -> Cost:
        """What a choice takes for `batch` images (its own number when None).

        held   images in memory beside these: those that wait, and the window that small batches are gathered in

        Raises:
            KeyError: the choice's way was not measured.
        """
        count = choice.batch if batch is None else min(batch, choice.batch)
        images = self.image_bytes * (count + held)
        inference = self._seconds.get((choice.engine, "source"))
        if not choice.adapts:
            peak, seconds = self._lines[choice.engine, "adapted"].at(count), self._seconds[choice.engine, "adapted"]
            return Cost(round(peak), 0, 0, 0, images, seconds, _ratio(seconds, inference))
        way = self._ways[choice.engine, choice.gradient, choice.storage]
        share = share_of(choice.slice, count)
        return Cost(
            round(way.forward.at(count)),
            round(way.backward_at(count, share)),
            way.update,
            round(way.kept.at(count)),
            images,
            way.seconds_at(share),
            _ratio(way.seconds_at(share), inference),
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "image_bytes": self.image_bytes,
            "steps": [asdict(point) for point in self.steps],
            "predictions": [asdict(point) for point in self.predictions],
            "measured_on": dict(self.measured_on),
        }

    @classmethod
    def from_json(cls, data: Any) -> CostModel:
        """Read what `to_json` wrote.

        Raises:
            BundleError: another version, or a field that cannot be.
        """
        version = data.get("version") if isinstance(data, Mapping) else None
        if version != VERSION:
            raise BundleError(f"its memory model has version {version!r}, and this edgetta reads {VERSION}")
        try:
            steps = tuple(_point(StepPoint, entry) for entry in _list(data["steps"]))
            predictions = tuple(_point(PredictionPoint, entry) for entry in _list(data["predictions"]))
            size = _whole(data["image_bytes"], 1)
            model = cls(size, steps, predictions, dict(data["measured_on"]))
            _ = model._ways, model._lines, model._seconds
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(f"its memory model cannot be used ({error}); export the bundle again") from error
        return model

    @cached_property
    def _ways(self) -> dict[Way, _Way]:
        found: dict[Way, list[StepPoint]] = {}
        for point in self.steps:
            found.setdefault((point.engine, point.gradient, point.storage), []).append(point)
        return {way: _Way.fitted(points) for way, points in found.items()}

    @cached_property
    def _lines(self) -> dict[tuple[str, str], _Line]:
        found: dict[tuple[str, str], list[tuple[int, float]]] = {}
        for point in self.predictions:
            found.setdefault((point.engine, point.network), []).append((point.batch, point.peak_bytes))
        return {key: _Line.through(values) for key, values in found.items()}

    @cached_property
    def _seconds(self) -> dict[tuple[str, str], float]:
        """Seconds per image at the largest batch that was measured."""
        largest: dict[tuple[str, str], PredictionPoint] = {}
        for point in self.predictions:
            key = (point.engine, point.network)
            if key not in largest or point.batch > largest[key].batch:
                largest[key] = point
        return {key: point.seconds / point.batch for key, point in largest.items()}


@dataclass(frozen=True)
class _Line:
    """Bytes that grow with the batch."""

    fixed: float
    per_image: float

    def at(self, batch: int) -> float:
        return max(0.0, self.fixed + self.per_image * batch)

    @staticmethod
    def through(values: Iterable[tuple[int, float]]) -> _Line:
        """Through the smallest and the largest batch; several values of one batch count as their largest."""
        highest: dict[int, float] = {}
        for batch, value in values:
            highest[batch] = max(value, highest.get(batch, 0.0))
        low, high = min(highest), max(highest)
        if low == high:
            return _Line(0.0, highest[high] / high)
        slope = (highest[high] - highest[low]) / (high - low)
        if slope < 0:  # noise, where nothing grows
            return _Line(max(highest.values()), 0.0)
        return _Line(highest[high] - slope * high, slope)


@dataclass(frozen=True)
class _Way:
    """One way to do a step, fitted to its points."""

    forward: _Line
    kept: _Line
    fixed: float  # of the backward
    per_image: tuple[tuple[float, float], ...]  # of the backward: share, bytes; by share
    update: int
    seconds: tuple[tuple[float, float], ...]  # per image: share, seconds; by share

    def backward_at(self, batch: int, share: float) -> float:
        return max(0.0, self.fixed + batch * _interpolated(self.per_image, share))

    def seconds_at(self, share: float) -> float:
        return _interpolated(self.seconds, share)

    @staticmethod
    def fitted(points: Sequence[StepPoint]) -> _Way:
        forward = _Line.through((point.batch, point.forward_bytes) for point in points)
        kept = _Line.through((point.batch, point.kept_bytes) for point in points)
        largest = max(point.batch for point in points)
        shares = {point.share: point for point in points if point.batch == largest}
        # The fixed part follows from shares that were measured at another batch, too.
        pairs = [(shares[point.share], point) for point in points if point.batch < largest and point.share in shares]
        fixed = 0.0
        if pairs:
            lines = [_Line.through((p.batch, p.backward_bytes) for p in pair) for pair in pairs]
            fixed = sum(line.fixed for line in lines) / len(lines)
        per_image = tuple((share, (p.backward_bytes - fixed) / largest) for share, p in sorted(shares.items()))
        seconds = tuple((share, p.seconds / largest) for share, p in sorted(shares.items()))
        return _Way(forward, kept, fixed, per_image, max(point.update_bytes for point in points), seconds)


def share_of(images: int, batch: int) -> float:
    """The share of a batch that a slice of so many images is; 0 images mean the whole batch."""
    return 1.0 if images == 0 else min(1.0, images / batch)


def _interpolated(knots: Sequence[tuple[float, float]], x: float) -> float:
    """Straight lines between knots, the nearest line beyond them, and never less than half of the nearest knot."""
    if len(knots) == 1:
        return knots[0][1]
    above = next((i for i, (at, _) in enumerate(knots) if at >= x), len(knots) - 1)
    (x0, y0), (x1, y1) = knots[max(0, above - 1)], knots[max(1, above)]
    return max(y0 + (y1 - y0) * (x - x0) / (x1 - x0), min(y0, y1) / 2)


def _ratio(seconds: float, inference: float | None) -> float | None:
    return seconds / inference if inference else None


def _point(kind: Any, entry: Any) -> Any:
    """A point from JSON, every field of its type and in its range."""
    if not isinstance(entry, Mapping) or set(entry) != {field.name for field in fields(kind)}:
        raise ValueError("a point has other fields")
    for name, value in entry.items():
        if name == "seconds":
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e6:
                raise ValueError(f"seconds of {value!r}")
        elif name in ("engine", "gradient", "storage", "network"):
            if not isinstance(value, str):
                raise ValueError(f"{name} is no text")
        else:
            _whole(value, 1 if name == "batch" else 0)
    return kind(**entry)


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_POINTS:
        raise ValueError("it holds no list of points")
    return value


def _whole(value: Any, low: int) -> int:
    if type(value) is not int or not low <= value < 1 << 50:
        raise ValueError(f"{str(value)[:40]!r} is no whole number of at least {low}")
    return value
