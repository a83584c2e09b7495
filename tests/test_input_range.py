"""Values that belong to another scale are refused in one line, image by image."""

from __future__ import annotations

import pytest
import torch

import edgetta
from edgetta.errors import UsageError
from edgetta.input_range import check_range
from edgetta.models.normalise import HALF, IMAGENET
from tests.small_bundle import whole_bundle

IMAGES = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def standardised(constants: tuple[tuple[float, ...], tuple[float, ...]]) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in constants)
    return (IMAGES - mean) / std


@pytest.mark.parametrize("constants", [IMAGENET, HALF])
def test_normalised_images_are_refused(constants: tuple[tuple[float, ...], tuple[float, ...]]) -> None:
    with pytest.raises(
        UsageError, match=r"image 0 of 4 has values from -\d.*normalised already.*give floats in \[0, 1\]"
    ):
        check_range(standardised(constants))


def test_bytes_as_floats_are_refused_and_the_image_is_named() -> None:
    images = IMAGES.clone()
    images[2] *= 255
    with pytest.raises(UsageError, match=r"image 2 of 4 has values from .* to 25\d.*: divide by 255, or give uint8"):
        check_range(images)
    images[2] *= 1000
    with pytest.raises(UsageError, match=r"image 2 of 4 .*give floats in \[0, 1\], or uint8"):
        check_range(images)


def test_what_is_right_or_not_finite_passes() -> None:
    check_range(IMAGES)
    check_range(IMAGES * 1.3 - 0.15)  # sharpened
    check_range((IMAGES * 255).to(torch.uint8))
    check_range(IMAGES.half())
    check_range(torch.zeros(0, 3, 4, 4))
    broken = IMAGES.clone()
    broken[1, 0, 0, 0] = float("nan")
    check_range(broken)


def test_the_runtime_refuses_them_and_learns_nothing() -> None:
    runtime = edgetta.load(whole_bundle(), "torch", check=False)
    for images in (IMAGES * 255, standardised(IMAGENET)):
        for call in (runtime, runtime.source):
            with pytest.raises(UsageError, match="image 0 of 4 has values"):
                call(images)
    assert runtime.adapter.state.steps == 0
    assert torch.equal(runtime.source(IMAGES), runtime.source(IMAGES.clone()))
