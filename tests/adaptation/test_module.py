"""`edgetta.adapt`: a drop-in module."""

from __future__ import annotations

import pytest
import torch

import edgetta
from edgetta.errors import UsageError
from tests.adaptation.backbones import SmallNet, randomised


def test_drop_in_module_adapts_and_resets() -> None:
    backbone = randomised(SmallNet())
    images = torch.rand(20, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    module = edgetta.adapt(
        backbone,
        SmallNet.cuts,
        input_shape=(3, 16, 16),
        source_images=images,
        config=edgetta.AdaptConfig(learning_rate=0.05, entropy_margin=1.0),
    )
    first = module(images)
    assert first.shape == (20, 5) and module.last is not None and module.last.adapted
    assert not torch.allclose(module(images), first, atol=1e-4), "the second forward sees the update of the first"
    module.reset()
    assert torch.allclose(module(images), first, atol=1e-6)


def test_identity_start_is_feature_alignment() -> None:
    """On its own source statistics the untrained meta-networks change nothing (source policy)."""
    backbone = randomised(SmallNet())
    images = torch.rand(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    module = edgetta.adapt(
        backbone, SmallNet.cuts, input_shape=(3, 16, 16), source_images=images, batch_norm="source",
        config=edgetta.AdaptConfig(when="off"),
    )  # fmt: skip
    assert torch.allclose(module(images), backbone(images), rtol=1e-3, atol=1e-4)


def test_parts_by_number_and_bad_numbers() -> None:
    module = edgetta.adapt(randomised(SmallNet()), 2, input_shape=(3, 16, 16))
    assert len(module.metas) == 2
    with pytest.raises(UsageError, match="at least 1"):
        edgetta.adapt(randomised(SmallNet()), 0, input_shape=(3, 16, 16))
