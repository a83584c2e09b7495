"""One name for every model: built-in networks, timm, torchvision, a function in a file, or an exported program.

| name | what |
|---|---|
| `wrn40_2`, `resnet20`, ... | a network of the papers, built here (`model_names()` lists them) |
| `timm:NAME`, `torchvision:NAME` | a network of those libraries |
| `path/file.py:function` | what that function returns. THIS RUNS THE FILE'S CODE: only name files that you trust |
| `path/model.pt2` | a program written by `torch.export.save` |
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from edgetta.errors import UsageError
from edgetta.models import normalise
from edgetta.models.model import Model
from edgetta.models.normalise import with_normalisation
from edgetta.models.parts import PublishedParts, numbered
from edgetta.models.resnet import ResNet
from edgetta.models.resnet_cifar import ResNetCifar
from edgetta.models.weights import Weights, put_weights, read_weights
from edgetta.models.wide_resnet import WideResNet


@dataclass(frozen=True)
class Architecture:
    """A built-in network: how it is built, where it is cut, and what it was published with."""

    build: Callable[..., nn.Module]  # takes num_classes and width
    parts: PublishedParts
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] = normalise.IDENTITY
    input_shape: tuple[int, int, int] = (3, 32, 32)
    num_classes: int = 10
    classifier: str = "linear"  # module that holds the last weights: its rows are the classes


def load_model(
    spec: str,
    *,
    weights: str | Path | None = None,
    num_classes: int | None = None,
    width: float | None = None,
    input_shape: tuple[int, int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    **options: Any,
) -> Model:
    """Build the model that `spec` names, load its weights, and return it in evaluation mode.

    `weights`: `.safetensors`, `.npz` or a checkpoint; without it the weights are random (seed torch before).
    `num_classes`: default what the weights file says, else the published number. `width`: every channel count times
    this (built-in networks only). `input_shape`: channels, height, width. `mean`, `std`: input normalisation per
    channel, for images in [0, 1]; default what the weights file says, else what the network was published with.
    `options` go to the library or function that builds the model.

    Raises UsageError for an unknown name or option, EdgettaError for weights that do not fit.
    """
    known = architecture(spec)
    if options:
        raise UsageError(
            f"{spec} takes no option {', '.join(sorted(options))}: it takes num_classes, width, input_shape, mean, std"
        )
    loaded = None if weights is None else read_weights(weights)
    classes = num_classes or _classes_in(known, loaded) or known.num_classes
    network = known.build(num_classes=classes, width=1.0 if width is None else width)
    network = with_normalisation(network, *known.normalisation)
    if loaded is not None:
        put_weights(network, loaded)
        if loaded.mean is not None and loaded.std is not None:
            network = with_normalisation(network, loaded.mean, loaded.std)
    if mean is not None and std is not None:
        network = with_normalisation(network, mean, std)
    return Model(
        network.eval(),
        spec,
        input_shape or known.input_shape,
        classes,
        known.parts,
        None if weights is None else str(weights),
    )


def model_names() -> tuple[str, ...]:
    """The names of the built-in networks."""
    return tuple(sorted(ARCHITECTURES))


def architecture(name: str) -> Architecture:
    """The built-in network of that name. Raises UsageError that names the nearest one."""
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    near = difflib.get_close_matches(name, ARCHITECTURES, n=1)
    raise UsageError(
        f"no model is called {name!r}"
        + (f": did you mean {near[0]}?" if near else "")
        + f" Built in: {', '.join(model_names())};"
        + " or timm:NAME, torchvision:NAME, path/file.py:function, path/model.pt2"
    )


def _classes_in(known: Architecture, loaded: Weights | None) -> int | None:
    """The number of classes of a weights file: the rows of its classifier."""
    weight = None if loaded is None else loaded.tensors.get(f"{known.classifier}.weight")
    return None if weight is None else int(weight.shape[0])


def _wide(depth: int, widen: int, **parts: Any) -> Architecture:
    stages = numbered(*((f"block{i}.layer", (depth - 4) // 6) for i in (1, 2, 3)))
    return Architecture(
        lambda **sizes: WideResNet(depth, widen, **sizes),
        PublishedParts("conv1", stages, **parts),
        normalise.HALF if (depth, widen) == (40, 2) else normalise.IDENTITY,
        classifier="fc",
    )


def _small(depth: int) -> Architecture:
    stages = numbered(*((f"layer{i}", (depth - 2) // 6) for i in (1, 2, 3)))
    return Architecture(
        lambda **sizes: ResNetCifar(depth, **sizes), PublishedParts("relu", stages), normalise.IMAGENET
    )


def _cifar(counts: tuple[int, ...], bottleneck: bool, **parts: Any) -> Architecture:
    stages = numbered(*((f"layer{i + 1}", count) for i, count in enumerate(counts)))
    return Architecture(
        lambda **sizes: ResNet(counts, bottleneck, **sizes),
        PublishedParts("relu", stages, kernel=1 if bottleneck else 3, **parts),
        normalise.CIFAR10,
    )


RESNET50_SPLITS = {"splits": {4: (4, 4, 4, 4), 5: (2, 2, 4, 4, 4)}, "inferred": frozenset({4, 5})}

ARCHITECTURES: dict[str, Architecture] = {
    "wrn40_2": _wide(40, 2, splits={4: (3, 3, 6, 6), 5: (3, 3, 3, 3, 6)}),
    "wrn28_10": _wide(28, 10, splits={4: (2, 2, 4, 4), 5: (2, 2, 2, 2, 4)}),
    "wrn34_10": _wide(34, 10),
    **{f"resnet{depth}": _small(depth) for depth in (20, 32, 44, 56, 110)},
    "resnet18": _cifar((2, 2, 2, 2), False),
    "resnet34": _cifar((3, 4, 6, 3), False),
    "resnet50": _cifar((3, 4, 6, 3), True, **RESNET50_SPLITS),
}
