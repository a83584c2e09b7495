"""One name for every model, and what `load_model` promises about it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
import torch

from edgetta.errors import EdgettaError, UsageError
from edgetta.models import load_model, model_names, published_parts
from edgetta.models.normalise import normalisation_of

REQUIRED = (
    *("resnet18", "resnet20", "resnet34", "resnet44", "resnet50", "resnet56", "preresnet110", "preresnet20"),
    *("wrn28_10", "wrn34_10", "wrn40_2", "resnext29", "vgg16_bn", "adv_resnet2b", "adv_resnet4b", "resnet8_mlperf"),
    *("resnet18_imagenet", "resnet34_imagenet", "resnet50_imagenet"),
    *("mobilenet_v1_0.75_192", "mobilenet_v1_0.5_160", "mobilenet_v2_1.0_224"),
)


def test_the_networks_of_the_papers_are_built_in() -> None:
    assert set(REQUIRED) <= set(model_names())


def test_a_built_in_model_is_complete_and_frozen() -> None:
    model = load_model("wrn40_2", width=0.25)
    assert (model.name, model.input_shape, model.num_classes, model.weights) == ("wrn40_2", (3, 32, 32), 10, None)
    assert model.parts == published_parts("wrn40_2")
    assert not any(module.training for module in model.module.modules())
    with pytest.raises(FrozenInstanceError):
        model.name = "other"  # type: ignore[misc]


def test_random_weights_follow_the_seed() -> None:
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(load_model("resnet20", width=0.25).module.state_dict()["conv1.weight"])
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("wrn40_2", (0.5,) * 3, (0.5,) * 3),
        ("wrn28_10", (0.0,) * 3, (1.0,) * 3),
        ("resnext29", (0.5,) * 3, (0.5,) * 3),
        ("resnet20", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("resnet18", (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
        ("mobilenet_v2_1.0_224", (128 / 255,) * 3, (128 / 255,) * 3),
    ],
)
def test_normalisation_is_the_published_one(name: str, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    found = normalisation_of(load_model(name, width=0.1).module)
    assert found[0] == pytest.approx(mean) and found[1] == pytest.approx(std)


def test_normalisation_can_be_given() -> None:
    torch.manual_seed(0)
    given = load_model("resnet20", width=0.25, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)).module
    plain = load_model("resnet20", width=0.25, mean=(0.0,) * 3, std=(1.0,) * 3).module
    plain.load_state_dict(given.state_dict())
    images = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)))
    assert torch.allclose(given(images), plain((images - mean) / std), atol=1e-5)


def test_another_input_shape_is_tried() -> None:
    assert load_model("resnet20", width=0.25, input_shape=(3, 48, 40)).input_shape == (3, 48, 40)
    with pytest.raises(EdgettaError, match="input_shape"):
        load_model("adv_resnet2b", input_shape=(3, 64, 64))


@pytest.mark.parametrize(
    ("spec", "settings", "message"),
    [
        ("wrn40-2", {}, "did you mean wrn40_2"),
        ("zzz", {}, "Built in: adv_resnet2b"),
        ("resnet20", {"dropout": 0.5}, "takes no option dropout"),
        ("resnet20", {"width": 0}, "width multiplies"),
        ("resnet20", {"width": 99}, "width multiplies"),
        ("resnet20", {"mean": (0.5,) * 3}, "both mean and std"),
        ("resnet20", {"mean": (0.5,) * 2, "std": (0.5,) * 2}, "2 means"),
        ("resnet20", {"num_classes": 0}, "at least 2 classes"),
        ("resnet20", {"num_classes": -3}, "at least 2 classes"),
        ("resnet20", {"input_shape": (32, 32)}, "channels, height, width"),
        ("timm:resnet18", {"width": 2}, "built-in networks only"),
        ("model.py:build", {"width": 2}, "built-in networks only"),
    ],
)
def test_what_cannot_be_is_refused_in_words(spec: str, settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_model(spec, **settings)  # type: ignore[arg-type]


def test_importing_the_package_imports_neither_timm_nor_torchvision() -> None:
    code = (
        "import sys, edgetta.models as m; m.load_model('resnet20', width=0.25);"
        "print([n for n in ('timm', 'torchvision', 'onnx', 'sklearn', 'matplotlib') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_resnet18_is_the_one_for_small_images(tmp_path: Path) -> None:
    """Its namesake of torchvision and timm is another network: said where one is meant and the other is named."""
    assert load_model("resnet18", width=0.0625).notes == ()
    assert load_model("resnet18", width=0.0625, input_shape=(3, 64, 64)).notes == ()
    (note,) = load_model("resnet18", width=0.0625, input_shape=(3, 96, 96)).notes
    assert "is the network for 32x32 images" in note and "resnet18_imagenet, torchvision:resnet18" in note
    large = load_model("resnet18_imagenet", width=0.0625)
    assert large.notes == ()
    torch.save(large.module.state_dict(), tmp_path / "w.pt")
    with pytest.raises(EdgettaError, match=r"those of another network: resnet18 is the network for 32x32 images"):
        load_model("resnet18", width=0.0625, weights=tmp_path / "w.pt")
