"""EcoTTA as published: two passes from a warmed-up network, which is trained once and then read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from edgetta.bench.accuracy import published
from edgetta.bench.accuracy.edgetta_method import network_of
from edgetta.bench.accuracy.images import ImageCache
from edgetta.bench.accuracy.published import EcottaPublished, warmed_up
from edgetta.sources.datasets import data_folder
from tests.adaptation.backbones import small_model


def images(seed: int = 0) -> torch.Tensor:
    return torch.rand(24, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def test_two_passes_with_the_published_settings() -> None:
    model = small_model("published")
    state = network_of(model).state_dict()
    method = EcottaPublished(model, state, learning_rate=1e-2)
    assert (method.config.passes, method.config.regulariser, method.config.statistics) == (2, 0.25, "batch")
    method(images())
    assert method.updates == 1
    off = EcottaPublished(model, state, learning_rate=1e-2, when="off")
    off(images())
    assert off.updates == 0


@pytest.mark.skipif(
    not (data_folder() / "weights" / "resnet20_jpegft.npz").is_file(), reason="EDGETTA_DATA holds no weights"
)
def test_the_warm_up_trains_once_and_is_then_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "IMAGES", 64)
    monkeypatch.setattr(published, "HELD_OUT", 16)
    monkeypatch.setattr(published, "WARM_UP", replace(published.WARM_UP, epochs=1, batch=32))
    cache = ImageCache(tmp_path)
    model, state = warmed_up("resnet20", "resnet20_jpegft", cache)
    assert {spec.initialisation for spec in model.metas} == {"published"}
    fresh = network_of(model).state_dict()
    assert not torch.equal(state["metas.0.conv"], fresh["metas.0.conv"])
    monkeypatch.setattr(published, "set_source_statistics", lambda *_: None)  # all comes from the file
    again = warmed_up("resnet20", "resnet20_jpegft", cache)[1]
    assert all(torch.equal(state[name], again[name]) for name in state if name.endswith("conv"))
