"""The one owner of statistics: what every BatchNorm normalises with, image by image of a stream.

On a camera the moments of a layer move with the shift, and with what is in view. So three things are asked of them
before they are followed:

content    what the predicted content explains is left out: d = m - explained mean, r = log(v / explained variance)
novelty    frames count by how much they differ from the one before: a picture held for an hour counts as one
evidence   d and r are followed as far as they exceed what chance makes of so many images: positive-part James-Stein,
           f = max(0, 1 - k / (n * mean over the layer's channels of z^2)), z = d / its deviation from image to image

    mean used = source mean + f_m d          variance used = source variance * exp(f_v r)

Without a shift every f is 0, and the network is exactly the one that was shipped. An average reaches back as far as
the last change, which is what content does not explain of the latest images, several times more than usual.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgetta.adaptation.comparison import Comparison
from edgetta.adaptation.content import RATIOS, SMALLEST_VARIANCE, ContentModel
from edgetta.adaptation.signals import USUAL_SPREAD, image_signals, novelty
from edgetta.engines.contract import Layout, Mixing, Moments, Statistics

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.floating[Any]]

K = 4.0
"""Evidence asked for: so many times what chance makes of a layer is not followed at all."""
FRESH = 256.0
"""Images since a change within which statistics of large batches include the batch itself, found in several passes."""
ITERATIONS = 2
"""Times that content and evidence are found anew on a batch's own moments then."""
LEANING = 0.1
"""How far the predicted content of all classes leans under a shift: the squared distance from the usual one, in its

squared length. Measured: at most 0.1 (15 corruptions of CIFAR-10); three times as much is content.
"""
RUNS = 0.1
"""So much more alike than by chance, and its error, images are in a row where content does not come in runs."""
PAIRS = 256.0
"""Images over which that is counted."""
LEAST = 16.0
"""Images that are compared with the average at a time: fewer are gathered first."""
FOLLOWS = 0.15
"""How fast the usual departure follows those of images that were no change."""

Measure = Callable[[Mixing], tuple["Array", Moments]]
"""Logits and own moments of a batch whose statistics are mixed like that."""


@dataclass(frozen=True)
class Gathered:
    """Moments and content of so many images on average; arrays are never written in place."""

    count: float  # sum of novelty
    mean: Array  # (T,)
    variance: Array  # (T,)
    content: Array  # (D,)
    pairs: float  # images that were compared with the one before
    alike: float  # mean product of the codes of an image and the one before
    alone: float  # mean product of an image's code with itself

    def joined(self, other: Gathered, limit: float = math.inf) -> Gathered:
        """With others, this one counting as `limit` images at most; the mixture's moments, without cancellation."""
        before = min(self.count, limit)
        count = before + other.count
        if other.count <= 0:
            return self
        share = other.count / count
        step = other.mean - self.mean
        compared = min(self.pairs, PAIRS) + other.pairs
        new = other.pairs / compared if compared else 0.0
        return Gathered(
            count,
            self.mean + share * step,
            self.variance + share * (other.variance - self.variance) + share * (1 - share) * step * step,
            self.content + share * (other.content - self.content),
            compared,
            self.alike + new * (other.alike - self.alike),
            self.alone + new * (other.alone - self.alone),
        )


@dataclass(frozen=True)
class StreamState:
    """What the stream has come to since its last change."""

    average: Gathered
    recent: Gathered  # the latest images, not yet compared with the average
    last: Array | None = None  # (S,) signals of the latest image
    code: Array | None = None  # (D,) its content
    usual: float = 0.0  # departure of images that were no change; 0 before the first
    changes: int = 0
    comparison: Comparison = field(default_factory=Comparison)  # with the shipped network

    def arrays(self) -> dict[str, NDArray[Any]]:
        """By name, for a state file."""
        found: dict[str, NDArray[Any]] = {"numbers": np.array([self.usual, self.changes], np.float64)}
        found["comparison"] = self.comparison.array()
        for name, part in (("average", self.average), ("recent", self.recent)):
            found |= {
                f"{name}.count": np.array([part.count], np.float64),
                f"{name}.mean": part.mean,
                f"{name}.variance": part.variance,
                f"{name}.content": part.content,
                f"{name}.pairs": np.array([part.pairs, part.alike, part.alone], np.float64),
            }
        latest = {"last": self.last, "code": self.code}
        return found | {name: np.asarray(array, np.float64) for name, array in latest.items() if array is not None}


class Normaliser:
    """Finds the statistics of each batch of a stream. It holds no state of the stream: that is a `StreamState`.

    Args:
        layers: name -> (channels,) of every BatchNorm, in the order of the flat vectors.
        source: statistics of training (T,).
        classes, image_channels: of the network.
        content: None where no source images were given: content is then left in, and far more evidence asked for.
        limit: images that an average reaches back, at most.
        change: so many times the usual departure is a change. `inf`: nothing is.
        k: evidence asked for.
    """

    def __init__(
        self,
        layers: Layout,
        source: Statistics,
        content: ContentModel | None,
        classes: int,
        image_channels: int = 3,
        limit: float = 512,
        change: float = 4.0,
        k: float = K,
    ) -> None:
        self.source = Statistics(np.asarray(source.mean, np.float64), np.asarray(source.variance, np.float64))
        self.knows_content = content is not None
        self.content = content or _without_images(self.source, classes, image_channels)
        self.limit, self.change = float(limit), change
        self.k = k if self.knows_content else UNKNOWN_CONTENT * k
        sizes = [int(np.prod(shape)) for shape in layers.shapes.values()]
        self._starts = (
            np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64) if sizes else np.zeros(0, np.int64)
        )
        self._sizes = np.array(sizes, np.int64)

    def begin(self, before: StreamState | None = None) -> StreamState:
        """The state before the first image, or before the first one behind a change."""
        nothing = self._nothing()
        if before is None:
            return StreamState(nothing, nothing)
        comparison = before.comparison.begun_anew()
        return StreamState(nothing, nothing, before.last, None, 0.0, before.changes + 1, comparison)

    def restored(self, arrays: Mapping[str, NDArray[Any]]) -> StreamState:
        """A state of `StreamState.arrays`. Raises `ValueError` where it is another network's or not whole."""
        here = self.begin().arrays()
        if set(arrays) - {"last", "code"} != set(here):
            raise ValueError("the statistics of the stream are not whole")
        for name, array in here.items():
            if arrays[name].shape != array.shape:
                raise ValueError(f"the statistics of the stream belong to another network ({name})")
        wide = {name: np.asarray(array, np.float64) for name, array in arrays.items()}
        if not all(np.isfinite(array).all() for array in wide.values()):
            raise ValueError("the statistics of the stream are not finite")
        if any(wide[f"{part}.{what}"].min(initial=0.0) < 0 for part in PARTS for what in ("count", "variance")):
            raise ValueError("the statistics of the stream hold a negative variance or count")
        last, code = wide.get("last"), wide.get("code")
        if last is not None and last.shape != self.content.spread.shape:
            raise ValueError("the statistics of the stream hold signals of other images")
        if code is not None and code.shape != self.content.usual.shape:
            raise ValueError("the statistics of the stream hold content of other classes")
        average, recent = (
            Gathered(
                float(wide[f"{n}.count"][0]),
                wide[f"{n}.mean"],
                wide[f"{n}.variance"],
                wide[f"{n}.content"],
                *wide[f"{n}.pairs"].tolist(),
            )
            for n in PARTS
        )
        usual, changes = wide["numbers"].tolist()
        return StreamState(average, recent, last, code, usual, int(changes), Comparison.of(wide["comparison"]))

    def novelty(self, state: StreamState, images: Array) -> tuple[Array, Array]:
        """How new each image (N, C, H, W) is, (N,) in [0, 1], and the signals (S,) of the last one."""
        signals = image_signals(images)
        return novelty(signals, state.last, self.content.spread), signals[-1].astype(np.float64)

    def statistics(self, state: StreamState) -> Statistics:
        """What to normalise with now, with the images before."""
        return self._used(state.average)

    def evidence(self, state: StreamState) -> float:
        """How far the stream's shift is followed, from 0 (the shipped statistics) to 1; a mean over the layers."""
        mean, variance = self._evidence(state.average)
        return float(0.5 * (mean.mean() + variance.mean())) if len(mean) else 0.0

    def is_fresh(self, state: StreamState, images: int) -> bool:
        """Whether so little was seen since the last change that a batch's own moments must count in its statistics."""
        return state.average.count < (FRESH if images > 1 else 1.0)

    def settle(
        self, state: StreamState, weight: float, measure: Measure, compare: bool = True
    ) -> tuple[Array, Statistics, StreamState]:
        """Logits, statistics and new state of a batch whose own moments count in its statistics, in several passes.

        weight    sum of the novelty of its images
        compare   look first whether the stream has changed
        """
        logits, own = measure(fixed(self._used(state.average)))
        if compare:
            latest = self._gathered(weight, own, logits, state.code)
            state, changed = self._compared(state, latest)
            if changed:
                logits, own = measure(fixed(self._used(state.average)))
        average = state.average
        before = min(average.count, self.limit)
        share = weight / (before + weight) if weight > 0 else 0.0
        for _ in range(1 + ITERATIONS if before < weight else 1):  # a first guess of content may be far off
            joined = average.joined(self._gathered(weight, own, logits, state.code), self.limit)
            logits, own = measure(self._mixing(average, share, joined))
        joined = average.joined(self._gathered(weight, own, logits, state.code), self.limit)
        return logits, self._used(joined), replace(state, average=joined, code=self._codes(logits)[-1])

    def follow(self, state: StreamState, weight: float, own: Moments, logits: Array) -> tuple[StreamState, bool]:
        """The state after images whose moments did not count in their own statistics; whether the stream changed.

        After a change the state is one before these images: they are to be settled anew.

        weight   sum of the novelty of the images that were measured
        own      their moments
        logits   their predictions (N, classes)
        """
        if weight <= 0:
            return state, False
        latest = self._gathered(weight, own, logits, state.code)
        state, changed = self._compared(state, latest)
        if changed:
            return state, True
        average = state.average.joined(latest, self.limit)
        return replace(state, average=average, code=self._codes(logits)[-1]), False

    def _compared(self, state: StreamState, latest: Gathered) -> tuple[StreamState, bool]:
        """The state with these images compared with the average, and whether the stream changed: then a new one."""
        if state.average.count < LEAST:
            return state, False
        recent = state.recent.joined(latest)
        if recent.count < LEAST:
            return replace(state, recent=recent), False
        departure = self._departure(state.average, recent)
        usual = max(state.usual, 1.0) if self.knows_content else state.usual
        if usual and departure > self.change * usual and math.isfinite(self.change):
            return self.begin(state), True
        follows = departure if not state.usual else state.usual + FOLLOWS * (departure - state.usual)
        return replace(state, recent=self._nothing(), usual=follows), False

    def _nothing(self) -> Gathered:
        mean, variance = self.content.explained(self.content.usual)
        return Gathered(0.0, mean, variance, self.content.usual, 0.0, 0.0, 0.0)

    def _codes(self, logits: Array) -> Array:
        return self.content.code(softmax(logits))

    def _gathered(self, weight: float, own: Moments, logits: Array, before: Array | None) -> Gathered:
        """A batch, `before` being the content of the image in front of it."""
        codes = self._codes(logits)
        follow = codes if before is None else np.concatenate([before[None], codes])
        pairs = len(follow) - 1
        return Gathered(
            weight,
            own.mean.astype(np.float64),
            own.variance.astype(np.float64),
            codes.mean(0),
            float(pairs),
            float((follow[1:] * follow[:-1]).sum() / pairs) if pairs else 0.0,
            float((follow[1:] * follow[1:]).sum() / pairs) if pairs else 0.0,
        )

    def content_of(self, average: Gathered) -> Array:
        """The content code (D,) that moments are explained by: what was predicted, or the usual one."""
        return self.content.usual + self._counted(average) * (average.content - self.content.usual)

    def _counted(self, average: Gathered) -> float:
        """How far the predicted content is taken for what is in view, from 0 (the usual one is) to 1.

        Under a shift predictions lean to some classes even where all are in view, and what they seem to explain would
        be taken from the shift. So the predicted content counts where it is far from the usual one, or where images
        are predicted like the one before them more often than by chance: where content comes in runs.
        """
        usual, content = self.content.usual, average.content
        apart = float(np.square(content - usual).sum() / np.square(usual).sum())
        counted = (apart - LEANING) / LEANING / 2
        if average.pairs > 1:
            chance = float(content @ content)
            alike = (average.alike - chance) / max(average.alone - chance, 1e-6)
            counted = max(counted, (alike - RUNS - average.pairs**-0.5) / RUNS)
        return min(1.0, max(0.0, counted))

    def _deviations(self, average: Gathered) -> tuple[Array, Array]:
        """d and r (T,): what content does not explain of the mean, and of the logarithm of the variance."""
        return self._left(average, self.content_of(average))

    def _left(self, average: Gathered, content: Array) -> tuple[Array, Array]:
        """The same, of what this content (D,) explains."""
        mean, variance = self.content.explained(content)
        ratio = average.variance / variance + RATIOS[0]
        return average.mean - mean, np.log(np.minimum(ratio, RATIOS[1]))

    def _evidence(self, average: Gathered) -> tuple[Array, Array]:
        """f_m and f_v of every layer, (L,) in [0, 1]."""
        d, r = self._deviations(average)
        counted, content = self._counted(average), self.content
        noise_mean, noise_variance = (
            counted * noise + (1 - counted) * whole  # what content does not explain is noise as well
            for noise, whole in (
                (content.noise_mean, content.whole_mean),
                (content.noise_variance, content.whole_variance),
            )
        )
        return self._shrunk(d, noise_mean, average.count), self._shrunk(r, noise_variance, average.count)

    def _shrunk(self, deviation: Array, noise: Array, count: float) -> Array:
        z = self._by_layer(deviation * deviation / noise)
        f: Array = np.maximum(0.0, 1.0 - self.k / np.maximum(count * z, 1e-12))
        return f

    def _used(self, average: Gathered) -> Statistics:
        d, r = self._deviations(average)
        f_m, f_v = (self._to_channels(f) for f in self._evidence(average))
        return Statistics(self.source.mean + f_m * d, self.source.variance * np.exp(f_v * r))

    def _mixing(self, before: Gathered, share: float, expected: Gathered) -> Mixing:
        """How a batch with that share is normalised, where its moments are expected to lead to `expected`."""
        f_m, f_v = (self._to_channels(f) for f in self._evidence(expected))
        mean, variance = self.content.explained(self.content_of(expected))
        return Mixing(
            Moments(before.mean, before.variance),
            share,
            f_m,
            self.source.mean - f_m * mean,
            self.source.variance * variance**-f_v,
            f_v,
            RATIOS[0] * variance,
        )

    def _departure(self, average: Gathered, recent: Gathered) -> float:
        """How far the latest images are from the average, in what chance makes of it: about 1 without a change."""
        (d, r), (d_now, r_now) = self._left(average, average.content), self._left(recent, recent.content)
        z = np.square(d_now - d) / self.content.noise_mean + np.square(r_now - r) / self.content.noise_variance
        found = 0.5 * float(self._by_layer(z).mean()) if len(z) else 0.0
        return found / (1 / recent.count + 1 / average.count)

    def _by_layer(self, values: Array) -> Array:
        """Means over the channels of each layer, (L,)."""
        found: Array = np.add.reduceat(values, self._starts) / self._sizes if len(self._starts) else values[:0]
        return found

    def _to_channels(self, values: Array) -> Array:
        return np.repeat(values, self._sizes)


PARTS = ("average", "recent")
UNKNOWN_CONTENT = 8.0
"""So many times more evidence is asked for where no source images told what content explains."""


def softmax(logits: Array) -> Array:
    """Probabilities (N, C) in float64; those of logits that are not finite are equal for every class."""
    wide = np.asarray(logits, np.float64)
    wide = np.where(np.isfinite(wide), wide, 0.0)
    wide = np.exp(wide - wide.max(1, keepdims=True))
    probabilities: Array = wide / wide.sum(1, keepdims=True)
    return probabilities


def fixed(used: Statistics) -> Mixing:
    """Statistics as they are, whatever the batch."""
    zero = np.zeros_like(used.mean)
    return Mixing(Moments(used.mean, used.variance), 0.0, zero, used.mean, used.variance, zero, zero)


def _without_images(source: Statistics, classes: int, image_channels: int) -> ContentModel:
    """Where no source images told: nothing is explained, and the noise is a guess that is on the large side."""
    channels = len(source.mean)
    variance = np.maximum(source.variance, SMALLEST_VARIANCE)
    return ContentModel(
        source.mean[None],
        (variance + source.mean**2)[None],
        np.ones(1),
        np.zeros(classes, np.int64),
        0.3 * variance,
        np.full(channels, 0.5),
        0.3 * variance,
        np.full(channels, 0.5),
        0.1 * variance,
        np.full(2 * image_channels + 2, USUAL_SPREAD),
        0,
    )
