"""Checkpoints of the benches: kept on disk, and settled at a minimum of the loss that is studied."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from edgetta.bench.learning_rate import networks
from edgetta.bench.learning_rate.networks import Narrow, settled, surface_operator, trained
from edgetta.models import load_model

TINY = Narrow("resnet20", 0.125)


def pictures(count: int, seed: int, first: int = 0) -> tuple[Tensor, Tensor]:
    """Two classes, one bright and one dark."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    noise = 0.2 * torch.rand(count, 3, 32, 32, generator=generator)
    return (noise + 0.6 * labels[:, None, None, None]).clamp(0, 1), labels


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(networks, "images", pictures)
    torch.manual_seed(0)
    save_file(load_model(TINY.model, width=TINY.width).module.state_dict(), tmp_path / "resnet20-0.125-4.safetensors")
    return tmp_path


def test_what_was_trained_is_taken_from_the_folder(folder: Path) -> None:
    first, second = trained(TINY, folder), trained(TINY, folder)
    assert not first.training and all(p.requires_grad for p in first.parameters())
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_settled_network_is_nearer_a_minimum_and_kept(folder: Path) -> None:
    before = surface_operator(trained(TINY, folder), 128)
    after = surface_operator(settled(TINY, folder, 128, epochs=4, rate=0.02), 128)
    assert after.loss() < 0.5 * before.loss()
    assert float(after.gradient().norm()) < 0.5 * float(before.gradient().norm())
    statistics = dict(trained(TINY, folder).named_buffers())
    for name, buffer in after.surface.model.named_buffers():
        assert torch.equal(buffer, statistics[name]), "BatchNorms keep the statistics of training"
    kept = sorted(folder.iterdir())
    again = settled(TINY, folder, 128, epochs=4, rate=0.02)
    assert sorted(folder.iterdir()) == kept
    for one, other in zip(again.parameters(), after.surface.model.parameters(), strict=True):
        assert torch.equal(one, other)
