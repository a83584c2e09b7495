"""`edgetta.adapt`: a drop-in module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import edgetta
from edgetta.adaptation.module import AdaptedModule
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


def test_state_dict_holds_everything_learnt(tmp_path: Path) -> None:
    """Statistics and biases of frozen segments too, through a file that is read without unpickling objects."""

    def made() -> AdaptedModule:
        config = edgetta.AdaptConfig(learning_rate=0.05, momentum=0.0, entropy_margin=1.0)
        return edgetta.adapt(
            randomised(SmallNet()), SmallNet.cuts, input_shape=(3, 16, 16), batch_norm="ema", adapt="bias",
            config=config,
        )  # fmt: skip

    images = torch.rand(20, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    one, other = made(), made()
    one(images)
    torch.save(one.state_dict(), tmp_path / "state.pt")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    expected = one.network.state_dict()
    assert any(name.startswith("part1.bias") for name in expected) and any(".state." in name for name in expected)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in other.network.state_dict().items())
    assert torch.equal(one(images), other(images))


@pytest.mark.parametrize("shape", [(4, 3, 15, 16), (4, 1, 16, 16), (3, 16, 16)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    module = edgetta.adapt(randomised(SmallNet()), 2, input_shape=(3, 16, 16))
    with pytest.raises(UsageError, match=r"the model was derived for \(N, 3, 16, 16\)"):
        module(torch.rand(shape))


def test_images_of_other_types() -> None:
    """Bytes would be taken for values 255 times too large; other floats are the same images."""
    module = edgetta.adapt(randomised(SmallNet()), 2, input_shape=(3, 16, 16), config=edgetta.AdaptConfig(when="off"))
    images = torch.rand(20, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with pytest.raises(UsageError, match=r"images are torch\.uint8; give floats in \[0, 1\]"):
        module((255 * images).to(torch.uint8))
    expected = module(images)
    module.reset()
    found = module(images.double().requires_grad_())
    assert found.dtype == torch.float32 and not found.requires_grad
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradient": "exakt"}, "unknown gradient mode 'exakt'; choose one of auto, exact"),
        ({"batch_norm": "none"}, "unknown BatchNorm policy 'none'; choose one of auto, batch"),
        ({"initialisation": "zero"}, "unknown initialisation 'zero'; choose identity or published"),
        ({"kernel": 5}, "must be 1 or 3, not 5"),
    ],
)
def test_choices_that_are_none(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        edgetta.adapt(randomised(SmallNet()), 2, input_shape=(3, 16, 16), **options)
