"""The published partitions, and that every cut list names modules that run once, in order."""

from __future__ import annotations

import pytest
import torch

from edgetta.errors import UsageError
from edgetta.models import cuts, load_model, model_names, published_parts

NARROW = {"mobilenet": 0.25, "wrn": 0.1}


@pytest.mark.parametrize(
    ("name", "parts", "expected"),
    [
        ("wrn40_2", 4, ("conv1", "block1.layer.2", "block1.layer.5", "block2.layer.5", "block3.layer.5")),
        (
            "wrn40_2",
            5,
            (*("conv1", "block1.layer.2", "block1.layer.5"), "block2.layer.2", "block2.layer.5", "block3.layer.5"),
        ),
        ("wrn28_10", 4, ("conv1", "block1.layer.1", "block1.layer.3", "block2.layer.3", "block3.layer.3")),
        (
            "wrn28_10",
            5,
            (*("conv1", "block1.layer.1", "block1.layer.3"), "block2.layer.1", "block2.layer.3", "block3.layer.3"),
        ),
        ("resnet50", 4, ("relu", "layer2.0", "layer3.0", "layer3.4", "layer4.2")),
        ("resnet50", 5, ("relu", "layer1.1", "layer2.0", "layer3.0", "layer3.4", "layer4.2")),
        ("resnet50_imagenet", 4, ("maxpool", "layer2.0", "layer3.0", "layer3.4", "layer4.2")),
        ("resnet20", 3, ("relu", "layer1.2", "layer2.2", "layer3.2")),
        ("resnet20", 5, ("relu", "layer1.0", "layer1.2", "layer2.0", "layer2.2", "layer3.2")),
    ],
)
def test_published_cuts(name: str, parts: int, expected: tuple[str, ...]) -> None:
    assert cuts(name, parts) == expected


def test_resnet50_is_marked_as_inferred_and_the_wide_ones_are_not() -> None:
    assert published_parts("resnet50").inferred == {4, 5}
    assert not published_parts("wrn40_2").inferred


def test_the_rule_gives_the_published_splits_of_the_wide_networks() -> None:
    from dataclasses import replace

    for name in ("wrn40_2", "wrn28_10"):
        published = published_parts(name)
        ruled = replace(published, splits={})
        assert [ruled.split(parts) for parts in (4, 5)] == [published.split(parts) for parts in (4, 5)]


def test_kernels_are_those_of_the_block() -> None:
    kernels = {name: published_parts(name).kernel for name in model_names()}
    assert {name for name, kernel in kernels.items() if kernel == 1} == {
        *("resnet50", "resnet50_imagenet", "resnext29", "preresnet56", "preresnet110", "preresnet164"),
        *(name for name in model_names() if name.startswith("mobilenet")),
    }
    assert set(kernels.values()) == {1, 3}


@pytest.mark.parametrize("name", model_names())
def test_every_split_covers_all_blocks_shallow_finer(name: str) -> None:
    published = published_parts(name)
    for parts in range(1, len(published.blocks) + 1):
        split = published.split(parts)
        assert len(split) == parts and min(split) >= 1 and sum(split) == len(published.blocks)
    names = published.cuts(len(published.blocks))
    assert names == (published.stem, *published.blocks)


@pytest.mark.parametrize("name", model_names())
def test_cut_modules_run_once_and_in_order(name: str) -> None:
    torch.manual_seed(0)
    width = next((width for prefix, width in NARROW.items() if name.startswith(prefix)), 0.125)
    model = load_model(name, width=width)
    order: list[str] = []
    modules = dict(model.module.named_modules())
    wanted = cuts(name, len(model.parts.blocks)) if model.parts else ()
    for cut in wanted:
        modules[cut].register_forward_hook(lambda module, args, out, cut=cut: order.append(cut))
    side = min(model.input_shape[1], 64)
    with torch.no_grad():
        assert model.module(torch.rand(2, 3, side, side)).shape == (2, model.num_classes)
    assert tuple(order) == wanted


@pytest.mark.parametrize("parts", [0, -1, 19])
def test_an_impossible_number_of_parts_says_what_is_possible(parts: int) -> None:
    with pytest.raises(UsageError, match="1 to 18 parts"):
        cuts("wrn40_2", parts)


def test_an_unknown_network_is_refused() -> None:
    with pytest.raises(UsageError, match="did you mean wrn40_2"):
        cuts("wrn40-2", 4)
