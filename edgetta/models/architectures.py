"""The table of built-in networks: how each is built, what it takes, where it is cut, how published files spell it."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from edgetta.errors import EdgettaError, UsageError
from edgetta.models import normalise
from edgetta.models.adv_resnet import AdvResNet
from edgetta.models.mobilenet import V1, V2, MobileNetV1, MobileNetV2, unfolded
from edgetta.models.parts import PublishedParts, numbered
from edgetta.models.preresnet import BOTTLENECK_FROM, PreResNet, blocks_per_stage
from edgetta.models.resnet import ResNet
from edgetta.models.resnet8 import ResNet8, network_names
from edgetta.models.resnet_cifar import ResNetCifar
from edgetta.models.resnet_imagenet import ResNetImageNet
from edgetta.models.resnext import ResNeXt
from edgetta.models.vgg import VGG, block_names
from edgetta.models.weights import Weights
from edgetta.models.wide_resnet import WideResNet

Spelling = Callable[[nn.Module, Weights], dict[str, Tensor]]


def as_published(network: nn.Module, weights: Weights) -> dict[str, Tensor]:
    """The file's names are the network's."""
    return dict(weights.tensors)


@dataclass(frozen=True)
class Architecture:
    """A built-in network."""

    build: Callable[..., nn.Module]  # takes num_classes and width
    parts: PublishedParts
    classifier: str  # module with the last weights: its rows are the classes
    normalisation: normalise.Constants = normalise.IDENTITY  # what it was published with
    input_shape: tuple[int, int, int] = (3, 32, 32)
    num_classes: int = 10
    width: float = 1.0
    spelling: Spelling = as_published  # from a file's tensors to the network's names


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
        + (f" (did you mean {near[0]}?)" if near else "")
        + f". Built in: {', '.join(model_names())}."
        + " Or timm:NAME, torchvision:NAME, path/file.py:function, path/model.pt2"
    )


def cuts(model_name: str, parts: int | None = None) -> tuple[str, ...]:
    """The cut list of a built-in network: `parts` + 1 module names, the stem's end first.

    `parts=None` takes the network's default. Raises UsageError for an unknown name or an impossible number of parts.
    """
    return published_parts(model_name).cuts(parts)


def published_parts(model_name: str) -> PublishedParts:
    """The cut places of a built-in network. Raises UsageError where the name is not built in."""
    return architecture(model_name).parts


def _wide(depth: int, widen: int, **parts: Any) -> Architecture:
    stages = numbered(*((f"block{index}.layer", (depth - 4) // 6) for index in (1, 2, 3)))
    return Architecture(
        lambda **sizes: WideResNet(depth, widen, **sizes),
        PublishedParts("conv1", stages, **parts),
        "fc",
        normalise.HALF if (depth, widen) == (40, 2) else normalise.IDENTITY,
    )


def _he(depth: int) -> Architecture:
    stages = numbered(*((f"layer{index}", (depth - 2) // 6) for index in (1, 2, 3)))
    parts = PublishedParts("relu", stages)
    return Architecture(lambda **sizes: ResNetCifar(depth, **sizes), parts, "linear", normalise.IMAGENET)


def _residual(counts: tuple[int, ...], bottleneck: bool, **parts: Any) -> Architecture:
    stages = numbered(*((f"layer{index + 1}", count) for index, count in enumerate(counts)))
    return Architecture(
        lambda **sizes: ResNet(counts, bottleneck, **sizes),
        PublishedParts("relu", stages, kernel=1 if bottleneck else 3, **parts),
        "linear",
        normalise.CIFAR10,
        spelling=_shortcuts_by_either_name,
    )


def _imagenet(counts: tuple[int, ...], bottleneck: bool, **parts: Any) -> Architecture:
    stages = numbered(*((f"layer{index + 1}", count) for index, count in enumerate(counts)))
    return Architecture(
        lambda **sizes: ResNetImageNet(counts, bottleneck, **sizes),
        PublishedParts("maxpool", stages, kernel=1 if bottleneck else 3, **parts),
        "fc",
        normalise.IMAGENET,
        (3, 224, 224),
        1000,
    )


def _preactivation(depth: int) -> Architecture:
    stages = numbered(*((f"layer{index}", blocks_per_stage(depth)) for index in (1, 2, 3)))
    parts = PublishedParts("conv1", stages, kernel=1 if depth >= BOTTLENECK_FROM else 3)
    return Architecture(lambda **sizes: PreResNet(depth, **sizes), parts, "fc", normalise.CIFAR10)


def _vgg(hidden: bool) -> Architecture:
    parts = PublishedParts("features.2", block_names())
    classifier = "classifier.6" if hidden else "classifier"
    return Architecture(lambda **sizes: VGG(hidden=hidden, **sizes), parts, classifier, normalise.CIFAR10)


def _adversarial(blocks: int) -> Architecture:
    parts = PublishedParts("relu", numbered(*((f"layer{index + 1}", 2) for index in range(blocks // 2))))
    return Architecture(lambda **sizes: AdvResNet(blocks, **sizes), parts, "linear2", normalise.CIFAR10)


def _mobile(build: Callable[..., nn.Module], ends: tuple[int, ...], width: float, side: int) -> Architecture:
    starts = (0, *ends[:-1])
    stages = tuple(tuple(f"blocks.{i}" for i in range(a, b)) for a, b in zip(starts, ends, strict=True))
    return Architecture(
        build,
        PublishedParts("stem", stages, kernel=1),
        "classifier",
        ((128 / 255,) * 3, (128 / 255,) * 3),  # (pixel - 128) / 128
        (3, side, side),
        1001,
        width,
        _from_folded,
    )


def _shortcuts_by_either_name(network: nn.Module, weights: Weights) -> dict[str, Tensor]:
    """torchvision's `downsample` and `fc` for the same network with a 3x3 stem, as many CIFAR codes call them."""

    def name(old: str) -> str:
        old = old.replace(".downsample.", ".shortcut.")
        return "linear." + old[3:] if old.startswith("fc.") else old

    return {name(old): value for old, value in weights.tensors.items()}


def _from_folded(network: nn.Module, weights: Weights) -> dict[str, Tensor]:
    """The dequantised TFLite files; a state dictionary of ours has no graph and stays as it is."""
    if "graph" not in weights.text:
        return dict(weights.tensors)
    try:
        return unfolded(network, weights.tensors, weights.text["graph"])
    except EdgettaError as error:
        raise EdgettaError(f"weights {weights.source}: {error}") from error
    except KeyError as error:
        raise EdgettaError(
            f"weights {weights.source}: the graph speaks of {error}, which the file does not hold"
        ) from None


_V1_ENDS = (3, 5, 11, len(V1))  # where the height halves, the two shallowest stages as one
_V2_ENDS = (3, 6, 13, sum(count for _, _, count, _ in V2))
_RESNET50: dict[str, Any] = {"splits": {4: (4, 4, 4, 4), 5: (2, 2, 4, 4, 4)}, "inferred": frozenset({4, 5})}

ARCHITECTURES: dict[str, Architecture] = {
    "wrn28_10": _wide(28, 10, splits={4: (2, 2, 4, 4), 5: (2, 2, 2, 2, 4)}),
    "wrn34_10": _wide(34, 10),
    "wrn40_2": _wide(40, 2, splits={4: (3, 3, 6, 6), 5: (3, 3, 3, 3, 6)}),
    **{f"resnet{depth}": _he(depth) for depth in (20, 32, 44, 56, 110)},
    "resnet18": _residual((2, 2, 2, 2), False),
    "resnet34": _residual((3, 4, 6, 3), False),
    "resnet50": _residual((3, 4, 6, 3), True, **_RESNET50),
    "resnet18_imagenet": _imagenet((2, 2, 2, 2), False),
    "resnet34_imagenet": _imagenet((3, 4, 6, 3), False),
    "resnet50_imagenet": _imagenet((3, 4, 6, 3), True, **_RESNET50),
    **{f"preresnet{depth}": _preactivation(depth) for depth in (20, 32, 56, 110, 164)},
    "resnext29": Architecture(
        ResNeXt,
        PublishedParts("relu", numbered(*((f"stage_{index}", 3) for index in (1, 2, 3))), kernel=1),
        "classifier",
        normalise.HALF,
    ),
    "vgg16_bn": _vgg(hidden=False),
    "vgg16_bn_hidden": _vgg(hidden=True),
    "resnet8_mlperf": Architecture(
        ResNet8,
        PublishedParts("relu", (("layer1",), ("layer2",), ("layer3",))),
        "fc",
        ((0.0,) * 3, (1 / 255,) * 3),  # pixels 0..255
        spelling=lambda network, weights: network_names(weights.tensors),
    ),
    "adv_resnet2b": _adversarial(2),
    "adv_resnet4b": _adversarial(4),
    "mobilenet_v1_1.0_224": _mobile(MobileNetV1, _V1_ENDS, 1.0, 224),
    "mobilenet_v1_0.75_192": _mobile(MobileNetV1, _V1_ENDS, 0.75, 192),
    "mobilenet_v1_0.5_160": _mobile(MobileNetV1, _V1_ENDS, 0.5, 160),
    "mobilenet_v2_1.0_224": _mobile(MobileNetV2, _V2_ENDS, 1.0, 224),
}
