"""Random shifts and mirror images."""

from __future__ import annotations

import torch

from edgetta.offline.crop_and_flip import CropAndFlip, crop_and_flip


def test_each_image_is_a_shifted_copy_perhaps_mirrored() -> None:
    images = torch.rand(30, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    out = crop_and_flip(images, CropAndFlip(padding=2, flip=0.5), torch.Generator().manual_seed(1))
    places = []
    for image, changed in zip(images, out, strict=True):
        padded = torch.nn.functional.pad(image, (2, 2, 2, 2))
        found = [
            (row, column, flipped)
            for row in range(5)
            for column in range(5)
            for flipped in (False, True)
            if torch.equal(changed.flip(2) if flipped else changed, padded[:, row : row + 8, column : column + 8])
        ]
        assert len(found) == 1
        places += found
    assert len(set(places)) > 15 and {flipped for *_, flipped in places} == {False, True}


def test_nothing_to_do_changes_nothing() -> None:
    images = torch.rand(4, 3, 8, 8)
    assert torch.equal(crop_and_flip(images, CropAndFlip(0, 0.0), torch.Generator()), images)
