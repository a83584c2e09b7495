"""How much memory and time a step takes, from a few runs of the programs that were measured: a bundle's cost model.

A step runs one program after the other, each on so many images, and takes what the hungriest of them takes. Above the
loaded and warmed-up model, a program takes arrays whose size is proportional to its images, and some whose size is
not (gradients, kernels):

    peak(program, images)    = fixed + images * per_image
    seconds(program, images) = fixed + images * per_image

Each program was measured at two numbers of images, its peak by the kernel's own mark, with an allocator that returns
freed memory. Only the standard library is needed here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

from edgetta.errors import BundleError
from edgetta.memory.choice import Choice

if TYPE_CHECKING:
    from edgetta.adaptation.config import AdaptConfig

VERSION = 3
MAX_POINTS = 4096
PROGRAMS = ("predict", "measure", "forward", "backward", "recompute")
UPDATE_COPIES = 5
"""Arrays as large as the parameters that are alive in an update: gradients, new momentum, new parameters, two more."""
SUMMED_COPIES = 3
"""Of them while gradients are added up, slice by slice: the sum so far, a slice's gradients, their sum."""


@dataclass(frozen=True)
class ProgramPoint:
    """One run of a program that was measured; the peak of a backward includes what was kept for it."""

    engine: str
    program: str
    images: int
    peak_bytes: int
    kept_bytes: int  # between forward and backward; 0 for the other programs
    seconds: float


@dataclass(frozen=True)
class Load:
    """What a stream asks of a step.

    batch      images that come at a time
    learn      images that an update learns from where memory is no matter
    window     images that small batches are gathered in; 0: they are not
    measures   whether moments of the stream are measured
    """

    batch: int
    learn: int = 32
    window: int = 0
    measures: bool = True

    @staticmethod
    def of(config: AdaptConfig, batch: int, measures: bool = True) -> Load:
        """Of a stream that brings `batch` images at a time.

        measures   whether the network has BatchNorms whose moments can be measured
        """
        window = config.window if config.when != "off" and config.gathers(batch) else 0
        return Load(batch, config.learn_images, window, measures and config.batch_norm != "source")

    def learnt(self, choice: Choice, count: int) -> int:
        """Images that an update learns from, of `count` that came."""
        return min(choice.plan.learn or self.learn, self.learn, self.window or count)


@dataclass(frozen=True)
class Cost:
    """What a step takes, in bytes above the loaded, warmed-up model, and its time, as far as it was measured.

    phases   the peak of each phase, with the copies of images that it is given
    """

    phases: Mapping[str, int]
    kept: int  # between forward and backward
    images: int  # those that came, and the window
    seconds_per_image: float  # on the machine that measured
    slowdown: float | None  # seconds over those of prediction alone on the same engine

    @property
    def peak(self) -> int:
        return max(self.phases.values()) + self.images

    def components(self) -> dict[str, int]:
        """The peak, by what it is made of."""
        phase = max(self.phases, key=lambda name: self.phases[name])
        largest = self.phases[phase]
        kept = min(self.kept, largest) if phase in ("forward", "backward") else 0
        return {
            "kept between forward and backward": kept,
            f"working memory of the {phase}": largest - kept,
            "images": self.images,
        }


@dataclass(frozen=True)
class CostModel:
    """The points of a bundle, where they were measured, and what follows from them."""

    image_bytes: int  # of one image as the network takes it
    parameter_bytes: int  # of all that adapts
    points: tuple[ProgramPoint, ...]
    measured_on: Mapping[str, Any]  # machine, versions, date: for the reader

    def engines(self) -> list[str]:
        """The engines that were measured."""
        return list(dict.fromkeys(point.engine for point in self.points))

    def cost(self, choice: Choice, load: Load) -> Cost:
        """What a choice takes of a stream.

        Raises:
            KeyError: the choice's engine was not measured.
        """
        count = min(load.batch, choice.batch)
        held = self.image_bytes * (count + (2 * load.window + count if load.window and choice.adapts else 0))
        at_a_time = min(choice.plan.predict or count, count)
        phases = {"prediction": self._bytes(choice, "predict", at_a_time)}
        if load.measures:
            phases["measurement"] = self._bytes(choice, "measure", at_a_time)
        alone = self._seconds(choice, "predict", count)
        if not choice.adapts:
            sliced = self._sliced(choice, "predict", count, at_a_time)
            return Cost(_whole_numbers(phases), 0, held, sliced / count, sliced / alone if alone else None)
        learnt = load.learnt(choice, count)
        rest = count if load.window else count - learnt
        copied = SUMMED_COPIES * self.parameter_bytes + (0 if load.window else self.image_bytes * learnt)
        phases["prediction"] += 0 if load.window else self.image_bytes * rest
        size = min(choice.plan.slice or learnt, learnt)
        kept = 0.0
        if choice.plan.keep:
            kept = self._kept(choice, learnt)
            others = kept - self._kept(choice, size) + copied  # of the other slices
            phases["forward"] = self._bytes(choice, "forward", size) + others
            phases["backward"] = self._bytes(choice, "backward", size) + others
            update = self._sliced(choice, "forward", learnt, size) + self._sliced(choice, "backward", learnt, size)
        else:
            first = "measure" if load.measures else "predict"
            phases["recomputation"] = self._bytes(choice, "recompute", size) + copied
            phases["learning's prediction"] = self._bytes(choice, first, min(at_a_time, learnt)) + copied
            update = self._sliced(choice, first, learnt, min(at_a_time, learnt))
            update += self._sliced(choice, "recompute", learnt, size)
        phases["update"] = UPDATE_COPIES * self.parameter_bytes
        if load.window:  # one update in so many images
            update *= count / max(count, min(load.window, choice.plan.learn or load.window))
        seconds = update + self._sliced(choice, "predict", rest, at_a_time)
        return Cost(_whole_numbers(phases), round(kept), held, seconds / count, seconds / alone if alone else None)

    def to_json(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "image_bytes": self.image_bytes,
            "parameter_bytes": self.parameter_bytes,
            "points": [asdict(point) for point in self.points],
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
            raise BundleError(
                f"its memory model has version {version!r}, and this edgetta reads {VERSION}; export the bundle again"
            )
        try:
            points = tuple(_point(entry) for entry in _list(data["points"]))
            sizes = _whole(data["image_bytes"], 1), _whole(data["parameter_bytes"], 0)
            model = cls(*sizes, points, dict(data["measured_on"]))
            for engine in model.engines():
                missing = [name for name in PROGRAMS if (engine, name) not in model._lines]
                if missing:
                    raise ValueError(f"{missing[0]} on {engine} is missing")
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(f"its memory model cannot be used ({error}); export the bundle again") from error
        return model

    def _bytes(self, choice: Choice, program: str, images: int) -> float:
        return self._lines[choice.engine, program].peak.at(images)

    def _kept(self, choice: Choice, images: int) -> float:
        return self._lines[choice.engine, "forward"].kept.at(images)

    def _seconds(self, choice: Choice, program: str, images: int) -> float:
        return self._lines[choice.engine, program].seconds.at(images) if images else 0.0

    def _sliced(self, choice: Choice, program: str, images: int, size: int) -> float:
        """Seconds of a program on `images`, `size` at a time."""
        whole, left = divmod(images, size)
        return whole * self._seconds(choice, program, size) + self._seconds(choice, program, left)

    @cached_property
    def _lines(self) -> dict[tuple[str, str], _Fit]:
        found: dict[tuple[str, str], list[ProgramPoint]] = {}
        for point in self.points:
            found.setdefault((point.engine, point.program), []).append(point)
        return {key: _Fit.of(points) for key, points in found.items()}


@dataclass(frozen=True)
class _Line:
    """A value that grows with the number of images."""

    fixed: float
    per_image: float
    least: float = 0.0  # per image, whatever the other two say

    def at(self, images: int) -> float:
        return max(self.fixed + self.per_image * images, self.least * images)

    @staticmethod
    def through(values: Iterable[tuple[int, float]]) -> _Line:
        """Through the smallest and the largest number of images; several values of one number count as the largest.

        Nothing falls as images are added, and nothing is negative: where noise says so, it is left out.
        """
        highest: dict[int, float] = {}
        for images, value in values:
            highest[images] = max(value, highest.get(images, 0.0))
        low, high = min(highest), max(highest)
        if low == high:
            return _Line(0.0, highest[high] / high)
        slope = (highest[high] - highest[low]) / (high - low)
        if slope < 0:
            return _Line(max(highest.values()), 0.0)
        fixed = highest[high] - slope * high
        return _Line(fixed, slope, highest[high] / high if fixed < 0 else 0.0)


@dataclass(frozen=True)
class _Fit:
    """One program on one engine."""

    peak: _Line
    kept: _Line
    seconds: _Line

    @staticmethod
    def of(points: list[ProgramPoint]) -> _Fit:
        return _Fit(
            _Line.through((point.images, point.peak_bytes) for point in points),
            _Line.through((point.images, point.kept_bytes) for point in points),
            _Line.through((point.images, point.seconds) for point in points),
        )


def _whole_numbers(phases: Mapping[str, float]) -> dict[str, int]:
    return {name: round(count) for name, count in phases.items()}


def _point(entry: Any) -> ProgramPoint:
    """A point from JSON, every field of its type and in its range."""
    if not isinstance(entry, Mapping) or set(entry) != {field.name for field in fields(ProgramPoint)}:
        raise ValueError("a point has other fields")
    seconds = entry["seconds"]
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds < 1e6:
        raise ValueError(f"seconds of {seconds!r}")
    if not isinstance(entry["engine"], str) or entry["program"] not in PROGRAMS:
        raise ValueError(f"a point of {str(entry['program'])[:40]!r} on {str(entry['engine'])[:40]!r}")
    _whole(entry["images"], 1), _whole(entry["peak_bytes"], 0), _whole(entry["kept_bytes"], 0)
    return ProgramPoint(**entry)


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_POINTS:
        raise ValueError("it holds no list of points")
    return value


def _whole(value: Any, low: int) -> int:
    if type(value) is not int or not low <= value < 1 << 50:
        raise ValueError(f"{str(value)[:40]!r} is no whole number of at least {low}")
    return value
