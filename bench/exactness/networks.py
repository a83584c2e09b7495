"""The networks of the exactness matrix: those of the papers, and of timm, at image sizes that keep it in minutes."""

from __future__ import annotations

from edgetta.export.recipe import Recipe

_CIFAR = (
    *("resnet18", "resnet20", "resnet34", "resnet50", "resnet56", "preresnet110"),
    *("wrn40_2", "wrn28_10", "wrn34_10", "resnext29", "vgg16_bn"),
)
_TIMM = ("resnet18", "resnet50", "resnext50_32x4d", "mobilenetv2_100", "efficientnet_b0", "convnext_tiny")

NETWORKS: dict[str, Recipe] = {
    **{name: Recipe(name) for name in _CIFAR},
    **{f"timm:{name}": Recipe(f"timm:{name}", input_shape=(3, 96, 96)) for name in _TIMM},
    "timm:vit_small_patch16_224": Recipe(
        "timm:vit_small_patch16_224", input_shape=(3, 96, 96), options={"img_size": 96}
    ),
}
"""Weights are random (nothing is downloaded): an error of derivation does not depend on them."""
