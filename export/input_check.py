"""Does a network see what it was trained on? Wrong preprocessing fails without a word: every frame is some class.

Calibration images tell: how they look after the normalisation, and, where they have labels, whether the predictions
are right, and whether they would be with another order of the classes, another normalisation or another size.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgetta.export.relabelling import better_order, far_better
from edgetta.models import Model
from edgetta.models.normalise import CIFAR10, HALF, IDENTITY, IMAGENET, Constants, normalisation_of

CHECKED_IMAGES = 512
SOUND = 0.95
"""From this accuracy on nothing else is tried."""

SECONDS = 30.0
"""A large network is judged on fewer images, but `LEAST_IMAGES`."""
LEAST_IMAGES = 64

TRIED_IMAGES = (32, 128)
"""At least and at most, for each other normalisation and size: as many as all of them take `SECONDS` for."""

SIDES = (32, 64, 96, 128, 160, 192, 224)
"""Sizes that networks are commonly trained at."""

CANDIDATES = 8 + len(SIDES)
"""Other normalisations and sizes, about."""

MEANS, DEVIATIONS = (-2.0, 2.0), (0.25, 2.5)
"""What standardised images have, whatever they show: ImageNet's constants on night pictures or digits stay inside."""

NAMED_CLASSES = 20


@dataclass(frozen=True)
class InputCheck:
    """What was found; accuracy, images and findings are also for the bundle's provenance.

    Attributes:
        accuracy: of the source network, 0 to 1; None without labels.
        images: that it was measured on.
        mean, deviation: of the standardised images, per channel.
        findings: what is probably wrong, and what to do; one line each.
        sound: predictions are clearly better than chance, and nothing else fits better.
    """

    accuracy: float | None
    images: int
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    findings: tuple[str, ...]
    sound: bool

    def told(self) -> str:
        """The accuracy in one line; empty without labels."""
        if self.accuracy is None:
            return ""
        return f"source accuracy on {self.images:,} calibration images: {100 * self.accuracy:.1f} %"


def check_input(
    model: Model,
    images: Tensor,
    labels: Tensor | None = None,
    names: Sequence[str] | None = None,
    original: tuple[int, int] | None = None,
) -> InputCheck:
    """Look at calibration images through the network's eyes.

    Args:
        model: evaluated where it is, as it is.
        images: (N, C, H, W) in [0, 1], or uint8.
        labels: (N,) classes, where they are known; -1 where that of an image is not.
        names: of the classes, in the order that the labels count in.
        original: (height, width) of the images before they were resized, where they all had the same.
    """
    if labels is not None:
        images, labels = images[labels >= 0], labels[labels >= 0]
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:CHECKED_IMAGES]
    chosen = images[order]
    chosen = chosen.float() / 255 if chosen.dtype == torch.uint8 else chosen.float()
    mean, deviation = _standardised(chosen, normalisation_of(model.module))
    findings: list[str] = []
    if labels is None or len(labels) < 2:
        findings += _implausible(model, chosen, mean, deviation) + _enlarged(model, original)
        return InputCheck(None, 0, mean, deviation, tuple(findings), False)
    labels = labels[order]
    beyond = int(labels.max())
    if beyond >= model.num_classes:
        findings.append(
            f"calibration images have the label {beyond}, and the network {model.num_classes} classes: labels count "
            "from 0, and --num-classes must be that of the weights"
        )
    started = time.perf_counter()
    predicted = _predicted(model.module, chosen, SECONDS)
    count = len(predicted)
    affordable = int(count * SECONDS / max(1e-6, time.perf_counter() - started) / CANDIDATES)
    labels, right = labels[:count], predicted == labels[:count]
    accuracy = float(right.float().mean())
    share = float(torch.bincount(labels).max()) / count
    near_chance = accuracy <= share + max(0.02, 3 * (share * (1 - share) / count) ** 0.5)
    explained = _other_order(predicted, labels, model.num_classes, names)
    if accuracy < SOUND and explained[0] < SOUND:
        tried = min(count, max(TRIED_IMAGES[0], min(TRIED_IMAGES[1], affordable)))
        explained = max(explained, _other_input(model, chosen[:tried], labels[:tried]), key=lambda found: found[0])
    findings += [explained[1]] if explained[1] else []
    if near_chance:
        findings += _near_chance(accuracy, share, predicted, model, names, bool(findings))
    if near_chance and not findings[:-1]:
        findings += _implausible(model, chosen, mean, deviation) + _enlarged(model, original)
    return InputCheck(accuracy, count, mean, deviation, tuple(findings), not findings)


def _standardised(images: Tensor, constants: Constants) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation per channel of the images after the normalisation."""
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in constants)
    seen = (images - mean) / std
    return tuple(seen.mean((0, 2, 3)).tolist()), tuple(seen.std((0, 2, 3)).tolist())


def _predicted(network: nn.Module, images: Tensor, seconds: float | None = None) -> Tensor:
    """(N,) classes; fewer, but `LEAST_IMAGES`, where the network takes longer than `seconds`."""
    started, found = time.perf_counter(), []
    device = next((tensor.device for tensor in network.state_dict().values()), torch.device("cpu"))
    with torch.no_grad():
        for batch in images.split(32):
            found.append(network(batch.to(device)).argmax(1).cpu())
            done = sum(map(len, found))
            if seconds is not None and done >= LEAST_IMAGES and time.perf_counter() - started > seconds:
                break
    return torch.cat(found)


def _implausible(model: Model, images: Tensor, mean: Sequence[float], deviation: Sequence[float]) -> list[str]:
    """Standardised images that are not near mean 0 and deviation 1, where the network is normalised here."""
    if normalisation_of(model.module) == IDENTITY:
        return []
    if all(MEANS[0] <= m <= MEANS[1] for m in mean) and all(DEVIATIONS[0] <= d <= DEVIATIONS[1] for d in deviation):
        return []
    constants = _options((tuple(images.mean((0, 2, 3)).tolist()), tuple(images.std((0, 2, 3)).tolist())))
    return [
        f"after the normalisation calibration images have mean {_numbers(mean)} and deviation {_numbers(deviation)}, "
        f"where networks are trained near 0 and 1; the images' own would be {constants}"
    ]


def _enlarged(model: Model, original: tuple[int, int] | None) -> list[str]:
    """Images that are much smaller than the input, where nobody said that it is the right one."""
    height, width = model.input_shape[1:]
    if original is None or model.size_origin == "given" or not max(original) < 0.6 * min(height, width):
        return []
    size = str(original[0]) if original[0] == original[1] else f"{original[0]}x{original[1]}"
    return [
        f"calibration images are {original[1]} x {original[0]} and are enlarged to {width} x {height}, the size "
        f"{model.size_origin}: give --input-size {size} where the network was trained at that"
    ]


def _near_chance(
    accuracy: float, share: float, predicted: Tensor, model: Model, names: Sequence[str] | None, explained: bool
) -> list[str]:
    counts = torch.bincount(predicted, minlength=model.num_classes)
    most = int(counts.argmax())
    words = f"predictions are near chance ({100 * accuracy:.1f} %, and one class alone would be {100 * share:.1f} %)"
    if counts[most] > 0.9 * len(predicted):
        name = most if names is None or most >= len(names) else repr(names[most])
        words += f", {int(counts[most]):,} of {len(predicted):,} are class {name}"
    if explained:
        return [words]
    return [f"{words}: check the weights, --input-size, --mean and --std, and the order of --classes"]


def _other_order(predicted: Tensor, labels: Tensor, classes: int, names: Sequence[str] | None) -> tuple[float, str]:
    """The accuracy with a better order of the classes, and what to say; (0, "") where there is none."""
    found = None
    if int(labels.max()) < classes:
        found = better_order(predicted.numpy(), labels.numpy(), classes, names)
    if found is None:
        return 0.0, ""
    gain = f"{100 * found.accuracy:.1f} % right instead of {100 * found.before:.1f} %"
    named = [str(k) for k in range(classes)] if names is None else list(names)
    if classes <= NAMED_CLASSES:
        order = ",".join(named[k] for k in found.order)
        return found.accuracy, f"the classes are in another order: {gain} with --classes {order}"
    moved = [k for k in range(classes) if found.order[k] != k]
    first = ", ".join(f"output {k} is {named[found.order[k]]!r} and not {named[k]!r}" for k in moved[:3])
    words = f"{gain} where {first}, and {len(moved):,} outputs in all are moved"
    return found.accuracy, f"the classes are in another order: {words}"


def _other_input(model: Model, images: Tensor, labels: Tensor) -> tuple[float, str]:
    """The accuracy with another normalisation or size, where it is far higher, and what to say; else (0, "")."""
    now = float((_predicted(model.module, images) == labels).float().mean())
    best, said = now + far_better(len(images)), ""
    enough = False
    for words, changed in _otherwise(model, images):
        if enough:
            break
        try:
            accuracy = float((_predicted(model.module, changed) == labels).float().mean())
        except (RuntimeError, AssertionError, ValueError):
            continue  # a network that takes one size only
        if accuracy > best:
            best = accuracy
            enough = accuracy >= SOUND
            said = f"{100 * accuracy:.1f} % instead of {100 * now:.1f} % of {len(images)} images are right {words}"
    return (best, said) if said else (0.0, "")


def _otherwise(model: Model, images: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Other ways in which the images may have to reach the network, and the images that show it this way.

    Likely ones come first: a size that nobody gave is, and small ones take little time.
    """
    if model.size_origin == "given":
        yield from _renormalised(model, images)
        yield from _resized(model, images)
    else:
        yield from _resized(model, images)
        yield from _renormalised(model, images)


def _resized(model: Model, images: Tensor) -> Iterator[tuple[str, Tensor]]:
    height, width = model.input_shape[1:]
    for side in SIDES if height == width else ():
        if side != height:
            smaller = nn.functional.interpolate(images, (side, side), mode="bilinear", antialias=True)
            yield f"with --input-size {side}", smaller


def _renormalised(model: Model, images: Tensor) -> Iterator[tuple[str, Tensor]]:
    channels = images.shape[1]
    mean, std = ([*values] * (channels if len(values) == 1 else 1) for values in normalisation_of(model.module))
    own = (tuple(images.mean((0, 2, 3)).tolist()), tuple(images.std((0, 2, 3)).clamp_min(1e-3).tolist()))
    candidates = [IMAGENET, CIFAR10, HALF] if channels == 3 else [((0.5,), (0.5,))]
    candidates += [((0.0,) * channels, (1 / 255,) * channels), ((0.0,) * channels, (1.0,) * channels), own]
    shape = (1, -1, 1, 1)
    for other in candidates:
        if other == (tuple(mean), tuple(std)):
            continue
        # Through the network's own normalisation this is what the other one would give.
        seen = (images - torch.tensor(other[0]).view(shape)) / torch.tensor(other[1]).view(shape)
        yield f"with {_options(other)}", seen * torch.tensor(std).view(shape) + torch.tensor(mean).view(shape)
    if channels == 3:
        yield "with blue as the first channel (BGR): swap the channels in the model", images.flip(1)


def _options(constants: Constants) -> str:
    mean, std = (",".join(f"{round(value, 4):g}" for value in values) for values in constants)
    return f"--mean {mean} --std {std}"


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)
