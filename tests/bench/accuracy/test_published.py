"""EcoTTA as published: two passes from a warmed-up network, which is trained once and then read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from edgetta.bench.accuracy import published
from edgetta.bench.accuracy.images import ImageCache
from edgetta.bench.accuracy.published import EcottaPublished, warmed_up
from edgetta.offline.network import Network
from edgetta.sources.datasets import data_folder
from tests.adaptation.backbones import SmallNet, randomised, small_programs


def images(seed: int = 0) -> torch.Tensor:
    return torch.rand(24, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def test_two_passes_with_the_published_settings() -> None:
    network = Network(small_programs("published", "meta"))
    method = EcottaPublished(randomised(SmallNet()), SmallNet.cuts, network, learning_rate=1e-2)
    start = [parameter.detach().clone() for parameter in method.parameters()]
    assert method.config.regulariser == 0.25
    method(images())
    assert method.updates == 1
    assert all(not torch.equal(a, b) for a, b in zip(start, method.parameters(), strict=True))
    off = EcottaPublished(randomised(SmallNet()), SmallNet.cuts, network, learning_rate=1e-2, adapts=False)
    off(images())
    assert off.updates == 0
    assert all(torch.equal(a, b) for a, b in zip(start, off.parameters(), strict=True))


@pytest.mark.skipif(
    not (data_folder() / "weights" / "resnet20_jpegft.npz").is_file(), reason="EDGETTA_DATA holds no weights"
)
def test_the_warm_up_trains_once_and_is_then_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "IMAGES", 64)
    monkeypatch.setattr(published, "HELD_OUT", 16)
    monkeypatch.setattr(published, "WARM_UP", replace(published.WARM_UP, epochs=1, batch=32))
    cache = ImageCache(tmp_path)
    network = warmed_up("resnet20", "resnet20_jpegft", cache)
    shapes = network.programs.parameters.shapes
    assert "metas.0.conv" in shapes and "metas.0.scale" not in shapes, "the published block has no scale"
    monkeypatch.setattr(published, "with_source_statistics", lambda fresh, *_: fresh)  # all comes from the file
    again = warmed_up("resnet20", "resnet20_jpegft", cache)
    assert np.array_equal(network.programs.shipped, again.programs.shipped)
