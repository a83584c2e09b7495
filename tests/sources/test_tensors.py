"""Frames as tensors: bytes stay bytes, floats stay floats, grey is luma."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from edgetta.sources import Frame
from edgetta.sources.tensors import images_of

PICTURE = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)


def test_bytes_stay_bytes_with_channels_last() -> None:
    images = images_of([Frame("a", PICTURE), Frame("b", 255 - PICTURE)])
    assert images.dtype == torch.uint8 and images.shape == (2, 4, 6, 3)
    assert np.array_equal(images[0].numpy(), PICTURE) and np.array_equal(images[1].numpy(), 255 - PICTURE)


def test_floats_have_channels_first_and_bytes_among_them_are_scaled() -> None:
    images = images_of([Frame("a", PICTURE), Frame("b", PICTURE / np.float32(255))])
    assert images.dtype == torch.float32 and images.shape == (2, 3, 4, 6) and images.is_contiguous()
    assert torch.equal(images[0], images[1])
    np.testing.assert_allclose(images[0].permute(1, 2, 0).numpy() * 255, PICTURE, atol=1e-4)


def test_grey_is_what_image_libraries_make_of_it() -> None:
    images = images_of([Frame("a", PICTURE)], channels=1)
    expected = np.asarray(Image.fromarray(PICTURE).convert("L"))
    assert images.shape == (1, 1, 4, 6) and images.dtype == torch.float32
    np.testing.assert_allclose(images[0, 0].numpy() * 255, expected, atol=1)
