"""UnMix-TNS: what its components hold at the start, which of them an image moves, and how fast."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgetta.bench.baselines import UnmixTns, UnmixTnsConfig
from edgetta.bench.baselines.unmix_tns import UnmixedNorm
from edgetta.errors import UsageError
from tests.adaptation.backbones import SmallNet, randomised


def images(seed: int = 0, count: int = 24) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 0.3 + 0.6


def norm(components: int = 16, channels: int = 32) -> UnmixedNorm:
    batch_norm = nn.BatchNorm2d(channels)
    generator = torch.Generator().manual_seed(1)
    batch_norm.running_mean.copy_(torch.randn(channels, generator=generator))  # type: ignore[union-attr]
    batch_norm.running_var.copy_(torch.rand(channels, generator=generator) + 0.5)  # type: ignore[union-attr]
    return UnmixedNorm(batch_norm.requires_grad_(False), components, generator)


def test_the_mixture_starts_with_about_the_sources_moments() -> None:
    layer = norm(components=4000)
    batch_norm = nn.BatchNorm2d(32)
    generator = torch.Generator().manual_seed(1)
    mean, variance = torch.randn(32, generator=generator), torch.rand(32, generator=generator) + 0.5
    assert batch_norm.eps == layer.eps
    assert torch.allclose(layer.means.mean(0), mean, atol=0.1)
    assert torch.allclose(layer.variances.mean(0) + layer.means.var(0), variance, rtol=0.1)


def test_an_image_is_normalised_by_the_mixture_that_it_joined() -> None:
    layer = norm(components=3, channels=4)
    x = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(3)) + 1
    means, variances = layer.means.clone(), layer.variances.clone()
    layer.momentum = 0.2
    found = layer(x)
    moved_means = means.clone()
    for image, normalised in zip(x, found, strict=True):
        own_mean, own_variance = image.mean((1, 2)), image.var((1, 2), unbiased=False)
        share = (nn.functional.cosine_similarity(own_mean[None], means, dim=1) / 0.07).softmax(0)[:, None]
        mixed_means = (1 - share) * means + share * own_mean
        mixed_variances = (1 - share) * variances + share * own_variance
        mean = mixed_means.mean(0)
        variance = (mixed_variances + mixed_means.square()).mean(0) - mean.square()
        expected = (image - mean[:, None, None]) / (variance[:, None, None] + layer.eps).sqrt()
        assert torch.allclose(normalised, expected, atol=1e-4)
        moved_means += 0.2 / 2 * share * (own_mean - means)
    assert torch.allclose(layer.means, moved_means, atol=1e-5)


def test_images_move_the_component_that_they_resemble() -> None:
    layer = norm(components=4)
    layer.momentum = 0.5
    target = layer.means[2].clone()
    x = (2 * target)[None, :, None, None].expand(8, 32, 4, 4)
    before = layer.means.clone()
    layer(x)
    moved = (layer.means - before).norm(dim=1)
    assert int(moved.argmax()) == 2 and float(moved[2]) > 10 * float(moved[[0, 1, 3]].max())


def test_small_batches_move_as_much_per_image() -> None:
    config = UnmixTnsConfig()
    assert config.momentum_at(64) == pytest.approx(0.1) and config.momentum_at(500) == pytest.approx(0.1)
    assert 1 - (1 - config.momentum_at(1)) ** 64 == pytest.approx(0.1)


def test_reset_forgets_and_draws_the_same_components() -> None:
    method = UnmixTns(randomised(SmallNet()), seed=2)
    first = [method(images(seed)) for seed in range(2)]
    assert not torch.equal(first[0], method(images(0)))
    method.reset()
    assert all(torch.equal(method(images(seed)), was) for seed, was in enumerate(first))


def test_settings_out_of_range() -> None:
    with pytest.raises(UsageError, match="components"):
        UnmixTnsConfig(components=1)
