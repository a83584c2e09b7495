"""What content explains of a layer's moments: measured on unlabelled source images before shipping.

The moments of a layer move with the shift of a stream, which its statistics shall follow, and with what is in view,
which they shall not. Source images tell what content does: a ridge regression of each image's channel means and second
moments, at every BatchNorm, on its content code, the predicted share of each (group of) class. What remains from
image to image is the noise that evidence of a shift has to beat.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.floating[Any]]

_VARIANCES = ("noise_mean", "noise_variance", "whole_mean", "whole_variance", "floor", "spread")

MAX_CODE = 32
"""Numbers of a content code, at most: more classes than this share groups."""
FEW_IMAGES = 300
"""Fewer source images than this say too little of what content explains."""
SMALLEST_VARIANCE = 1e-8
SMALLEST_NOISE = 1e-10
SQUARE_NOISE = 4.93
"""Variance of the logarithm of a squared normal variable."""
RATIOS = (1e-3, 1e3)
"""Within these a variance is told from the one that content explains."""


@dataclass(frozen=True)
class ContentModel:
    """What content explains, for T channels of all BatchNorms one after another, a code of D numbers, S image signals.

    mean, square       (D, T) weights of the regression of an image's channel means and second moments on its code
    usual              (D,) mean code of source images
    groups             (classes,) which number of the code each class belongs to
    noise_mean         (T,) variance from image to image of what is left of the mean
    noise_variance     (T,) the same of the logarithm of the variance over the one explained
    whole_mean         (T,) variance from image to image of the mean itself, content among it
    whole_variance     (T,) the same of the logarithm of the variance
    floor              (T,) least variance that content explains
    spread             (S,) variance of the image signals from image to image
    images             source images that it was measured on
    """

    mean: Array
    square: Array
    usual: Array
    groups: NDArray[np.integer[Any]]
    noise_mean: Array
    noise_variance: Array
    whole_mean: Array
    whole_variance: Array
    floor: Array
    spread: Array
    images: int

    def code(self, probabilities: Array) -> Array:
        """Content codes (N, D) for class probabilities (N, classes)."""
        codes = np.zeros((len(probabilities), len(self.usual)), np.float64)
        np.add.at(codes.T, self.groups, np.asarray(probabilities, np.float64).T)
        return codes

    def explained(self, code: Array) -> tuple[Array, Array]:
        """Mean and variance (T,) that images of this mean code (D,) have without a shift."""
        mean, square = code @ self.mean, code @ self.square
        return mean, np.maximum(square - mean * mean, self.floor)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """By name, as they travel: the weights in half precision, relative to each channel's usual value."""
        usual_mean, usual_square = self.usual @ self.mean, self.usual @ self.square
        return {
            "mean": (self.mean - usual_mean).astype(np.float16),
            "square": (self.square - usual_square).astype(np.float16),
            "usual_mean": usual_mean.astype(np.float32),
            "usual_square": usual_square.astype(np.float32),
            "usual": self.usual.astype(np.float32),
            "groups": self.groups.astype(np.int32),
            "noise_mean": self.noise_mean.astype(np.float32),
            "noise_variance": self.noise_variance.astype(np.float32),
            "whole_mean": self.whole_mean.astype(np.float32),
            "whole_variance": self.whole_variance.astype(np.float32),
            "floor": self.floor.astype(np.float32),
            "spread": self.spread.astype(np.float32),
            "images": np.array([self.images], np.int32),
        }

    @staticmethod
    def from_arrays(arrays: Mapping[str, NDArray[Any]], channels: int, classes: int) -> ContentModel:
        """What `arrays` gave, for a network of so many channels and classes.

        Raises `ValueError` where they are another network's, not whole, or hold values that are not finite.
        """
        names = {"mean", "square", "usual_mean", "usual_square", "usual", "groups", "noise_mean", "noise_variance"}
        if set(arrays) != names | {"whole_mean", "whole_variance", "floor", "spread", "images"}:
            raise ValueError("the content model is not whole")
        wide = {name: a.astype(np.float64) for name, a in arrays.items() if name not in ("groups", "images")}
        usual, groups = wide["usual"], arrays["groups"]
        if groups.shape != (classes,):
            raise ValueError(f"the content model is of {groups.size} classes, the network of {classes}")
        code = len(usual)
        shapes = {"mean": (code, channels), "square": (code, channels)} | dict.fromkeys(
            ("usual_mean", "usual_square", "noise_mean", "noise_variance", "whole_mean", "whole_variance", "floor"),
            (channels,),
        )
        for name, shape in shapes.items():
            if wide[name].shape != shape:
                raise ValueError(f"the content model belongs to another network ({name} is {wide[name].shape})")
        if not all(np.isfinite(a).all() for a in wide.values()):
            raise ValueError("the content model holds values that are not finite")
        if not 1 <= code <= MAX_CODE or groups.min() < 0 or groups.max() >= code or arrays["images"].shape != (1,):
            raise ValueError("the content model has a code of another size")
        if min(wide[name].min() for name in _VARIANCES) < 0:
            raise ValueError("the content model holds a negative variance")
        return ContentModel(
            wide["usual_mean"] + wide["mean"],
            wide["usual_square"] + wide["square"],
            usual,
            groups.astype(np.int64),
            wide["noise_mean"],
            wide["noise_variance"],
            wide["whole_mean"],
            wide["whole_variance"],
            wide["floor"],
            wide["spread"],
            int(arrays["images"][0]),
        )


def fit_content(
    probabilities: Array,
    means: Array,
    variances: Array,
    signals: Array,
    ridge: float = 1.0,
    floor: float = 0.1,
) -> ContentModel:
    """The content model of N source images, from what the shipped network makes of each one alone.

    Args:
        probabilities: (N, classes) predicted.
        means, variances: (N, T) each image's own moments at every BatchNorm.
        signals: (N, S) as `signals.image_signals` gives them.
        ridge: strength of the regression's penalty, in images.
        floor: least share of a channel's usual variance that content can explain.

    Raises:
        ValueError: fewer than 2 images, or values that are not finite.
    """
    count = len(probabilities)
    if count < 2:
        raise ValueError(f"a content model needs many source images, not {count}")
    m, v = np.asarray(means, np.float64), np.asarray(variances, np.float64)
    if not (np.isfinite(m).all() and np.isfinite(v).all() and np.isfinite(probabilities).all()):
        raise ValueError("the moments of the source images are not finite")
    q = v + m * m
    groups = group_classes(probabilities)
    codes = np.zeros((count, int(groups.max()) + 1))
    np.add.at(codes.T, groups, np.asarray(probabilities, np.float64).T)
    usual, usual_m, usual_q = codes.mean(0), m.mean(0), q.mean(0)
    # Fewer images: more ridge, so that little is explained by chance.
    penalty = ridge * max(1.0, FEW_IMAGES / count)
    gram = codes.T @ codes + penalty * np.eye(codes.shape[1])

    def regress(y: Array) -> Array:
        weights: Array = np.linalg.solve(gram, codes.T @ y + penalty * y.mean(0))
        return weights + (y.mean(0) - usual @ weights)  # the usual content explains the usual moments exactly

    mean, square = regress(m), regress(q)
    least = floor * np.maximum(usual_q - usual_m * usual_m, SMALLEST_VARIANCE)
    explained_mean = codes @ mean
    explained = np.maximum(codes @ square - explained_mean**2, least)
    wide = np.maximum(v, SMALLEST_VARIANCE)
    left, whole = (np.log(np.clip(wide / by, *RATIOS)).var(0) for by in (explained, np.maximum(least / floor, least)))
    # A channel of one number per image has no variance within it; that of a logarithm of a square serves.
    single = v.max(0) <= SMALLEST_VARIANCE
    noise_mean, noise_variance = (m - explained_mean).var(0), np.where(single, SQUARE_NOISE, left)
    return ContentModel(
        mean,
        square,
        usual,
        groups,
        np.maximum(noise_mean, SMALLEST_NOISE),
        np.maximum(noise_variance, SMALLEST_NOISE),
        np.maximum(m.var(0), np.maximum(noise_mean, SMALLEST_NOISE)),
        np.maximum(whole, np.maximum(noise_variance, SMALLEST_NOISE)),
        least,
        np.maximum(np.asarray(signals, np.float64).var(0), SMALLEST_NOISE),
        count,
    )


def group_classes(probabilities: Array, most: int = MAX_CODE) -> NDArray[np.integer[Any]]:
    """(classes,) group of each class: its own where there are at most `most`, else that of what it is confused with.

    Groups are founded by frequent classes that are confused with no founder before them; the others join what they are
    confused with most, while there is room: no group grows beyond classes / most.
    """
    classes = probabilities.shape[1]
    if classes <= most:
        return np.arange(classes)
    p = np.asarray(probabilities, np.float64)
    shared = p.T @ p  # how much probability two classes have on the same images
    norm = np.sqrt(np.maximum(np.diag(shared), 1e-12))
    likeness = shared / norm[:, None] / norm[None, :]
    frequency = p.sum(0)
    founders = [int(np.argmax(frequency))]
    nearest = likeness[founders[0]].copy()
    while len(founders) < most:
        nearest[founders] = np.inf
        least = nearest.min()
        unlike = np.flatnonzero(nearest <= least + 0.01)
        founders.append(int(unlike[np.argmax(frequency[unlike])]))
        nearest = np.maximum(nearest, likeness[founders[-1]])
    largest = -(-classes // most)
    groups, sizes = np.full(classes, -1), np.ones(most, np.int64)
    groups[founders] = np.arange(most)
    affinity = likeness[:, founders].copy()
    for c in np.argsort(-affinity.max(1), kind="stable"):
        if groups[c] < 0:
            groups[c] = int(np.argmax(np.where(sizes < largest, affinity[c], -np.inf)))
            sizes[groups[c]] += 1
            affinity[:, groups[c]] += likeness[:, c]
    return groups
