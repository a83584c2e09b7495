"""Augmentation: in range, reproducible, and each transform does what its name says."""

from __future__ import annotations

import torch

from edgetta.offline.augment import Augmentation, augment

OFF = {"jitter": 0.0, "blur": 0.0, "grey": 0.0}


def images(count: int = 64) -> torch.Tensor:
    return torch.rand(count, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def run(**settings: float) -> torch.Tensor:
    return augment(images(), Augmentation(**{**OFF, **settings}), torch.Generator().manual_seed(1))  # type: ignore[arg-type]


def test_range_shape_and_reproducibility() -> None:
    one = augment(images(), Augmentation(), torch.Generator().manual_seed(1))
    two = augment(images(), Augmentation(), torch.Generator().manual_seed(1))
    other = augment(images(), Augmentation(), torch.Generator().manual_seed(2))
    assert torch.equal(one, two) and not torch.equal(one, other)
    assert one.shape == (64, 3, 12, 12) and float(one.min()) >= 0 and float(one.max()) <= 1


def test_probabilities_choose_the_share_of_images() -> None:
    assert torch.equal(run(), images())
    changed = (run(jitter=0.4) != images()).flatten(1).any(1).float().mean()
    assert 0.2 < float(changed) < 0.6


def test_grey_removes_colour_and_keeps_luminance() -> None:
    grey = run(grey=1.0)
    assert torch.allclose(grey[:, 0], grey[:, 1]) and torch.allclose(grey[:, 1], grey[:, 2])
    luma = (images() * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1)
    assert torch.allclose(grey[:, 0], luma, atol=1e-6)


def test_blur_smooths_and_keeps_flat_images() -> None:
    def roughness(x: torch.Tensor) -> torch.Tensor:
        return (x[..., 1:] - x[..., :-1]).abs().mean()

    assert roughness(run(blur=1.0)) < 0.8 * roughness(images())
    flat = torch.full((3, 3, 8, 8), 0.25)
    assert torch.allclose(augment(flat, Augmentation(0, blur=1.0, grey=0), torch.Generator()), flat, atol=1e-6)


def test_hue_keeps_grey_pixels_and_flip_mirrors() -> None:
    grey = torch.rand(8, 1, 6, 6).expand(-1, 3, -1, -1)
    settings = Augmentation(jitter=1.0, brightness=0, contrast=0, saturation=0, hue=0.5, blur=0, grey=0)
    assert torch.allclose(augment(grey, settings, torch.Generator().manual_seed(0)), grey, atol=1e-4)
    assert torch.equal(run(flip=1.0), images().flip(3))


def test_one_channel_images_are_left_without_colour_transforms() -> None:
    single = torch.rand(4, 1, 8, 8)
    assert torch.equal(augment(single, Augmentation(jitter=1.0, blur=0, grey=1.0), torch.Generator()), single)
