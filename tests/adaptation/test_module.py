"""`edgetta.adapt`: a drop-in module."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import edgetta
from edgetta.adaptation.module import AdaptedModule
from edgetta.errors import UsageError
from tests.adaptation.backbones import SmallNet, randomised

IMAGES = torch.rand(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def module(**options: Any) -> AdaptedModule:
    options = {"config": edgetta.AdaptConfig(learning_rate=0.05, entropy_margin=1.0), **options}
    return edgetta.adapt(randomised(SmallNet()), SmallNet.cuts, input_shape=(3, 16, 16), **options)


def test_drop_in_module_adapts_and_resets() -> None:
    made = module(source_images=IMAGES)
    first = made(IMAGES[:20])
    assert first.shape == (20, 5) and made.last is not None and made.last.adapted
    assert not torch.allclose(made(IMAGES[:20]), first, atol=1e-4), "the second forward sees the update of the first"
    made.reset()
    assert made.last is None and torch.allclose(made(IMAGES[:20]), first, atol=1e-6)


def test_identity_start_is_feature_alignment() -> None:
    """On its own source statistics the untrained meta-networks change nothing (source policy)."""
    made = module(source_images=IMAGES, batch_norm="source", config=edgetta.AdaptConfig(when="off"))
    assert torch.allclose(made(IMAGES), randomised(SmallNet())(IMAGES), rtol=1e-3, atol=1e-4)


def test_source_images_say_what_content_explains() -> None:
    for given in (IMAGES, list(IMAGES.split(10)), iter(IMAGES.split(10))):
        content = module(source_images=given).network.content
        assert content is not None and content.images == 64
    assert module().network.content is None


def test_parts_by_number_and_bad_numbers() -> None:
    made = edgetta.adapt(randomised(SmallNet()), 2, input_shape=(3, 16, 16))
    shapes = made.network.programs.parameters.shapes
    assert "metas.1.conv" in shapes and "metas.2.conv" not in shapes
    with pytest.raises(UsageError, match="at least 1"):
        edgetta.adapt(randomised(SmallNet()), 0, input_shape=(3, 16, 16))


def test_state_dict_holds_everything_learnt(tmp_path: Path) -> None:
    """Statistics, momentum and weights, through a file that is read without unpickling objects."""
    one, other = module(), module()
    one(IMAGES[:20])
    torch.save(one.state_dict(), tmp_path / "state.pt")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for name, array in one.adapter.state.arrays().items():
        np.testing.assert_array_equal(other.adapter.state.arrays()[name], array, err_msg=name)
    assert torch.equal(one(IMAGES[:20]), other(IMAGES[:20]))
    with pytest.raises(ValueError, match="another network"):
        edgetta.adapt(randomised(SmallNet()), 2, input_shape=(3, 16, 16)).load_state_dict(one.state_dict())


def test_a_copy_learns_for_itself() -> None:
    one = module()
    one(IMAGES[:20])
    other = copy.deepcopy(one)
    expected = one(IMAGES[20:40])
    assert torch.equal(other(IMAGES[20:40]), expected)
    before = one.adapter.state.parameters.copy()
    other(IMAGES[40:])
    np.testing.assert_array_equal(one.adapter.state.parameters, before)


def test_casts_change_nothing_and_there_is_nothing_to_train() -> None:
    one, other = module(), module().double().cpu()
    assert not list(one.parameters())
    assert torch.equal(one(IMAGES[:20]), other(IMAGES[:20]))


@pytest.mark.parametrize("shape", [(4, 3, 15, 16), (4, 1, 16, 16), (3, 16, 16)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"the model was derived for \(N, 3, 16, 16\)"):
        module()(torch.rand(shape))


def test_images_of_other_types() -> None:
    """Bytes would be taken for values 255 times too large; other floats are the same images."""
    made = module(config=edgetta.AdaptConfig(when="off"))
    with pytest.raises(UsageError, match=r"images are torch\.uint8; give floats in \[0, 1\]"):
        made((255 * IMAGES).to(torch.uint8))
    expected = made(IMAGES)
    made.reset()
    found = made(IMAGES.double().requires_grad_())
    assert found.dtype == torch.float32 and not found.requires_grad
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_norm": "none"}, "unknown BatchNorm policy 'none'; choose one of stream, batch"),
        ({"initialisation": "zero"}, "unknown initialisation 'zero'; choose identity or published"),
        ({"kernel": 5}, "must be 1 or 3, not 5"),
    ],
)
def test_choices_that_are_none(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        edgetta.adapt(randomised(SmallNet()), 2, input_shape=(3, 16, 16), **options)
