"""NOTE: what an image's own statistics may change, what the reservoir keeps, and what an update moves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgetta.bench.baselines import Note, NoteConfig, Source
from edgetta.bench.baselines.note import InstanceAwareNorm, Reservoir
from edgetta.errors import UsageError
from tests.adaptation.backbones import SmallNet, randomised


def images(seed: int = 0, count: int = 24) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 0.3 + 0.6


def norm(width: float = 4.0) -> InstanceAwareNorm:
    batch_norm = nn.BatchNorm2d(2)
    batch_norm.running_mean.copy_(torch.tensor([1.0, -1.0]))  # type: ignore[union-attr]
    batch_norm.running_var.copy_(torch.tensor([4.0, 1.0]))  # type: ignore[union-attr]
    return InstanceAwareNorm(batch_norm.requires_grad_(False), NoteConfig(width=width))


def test_images_like_the_source_meet_the_sources_statistics() -> None:
    x = torch.randn(3, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    x = x * torch.tensor([2.0, 1.0])[:, None, None] + torch.tensor([1.0, -1.0])[:, None, None]
    layer = norm()
    shape = (-1, 1, 1)
    expected = (x - layer.running_mean.view(shape)) / (layer.running_var.view(shape) + layer.eps).sqrt()
    assert torch.allclose(layer(x), expected, atol=1e-5)


def test_an_image_far_away_is_normalised_by_what_lies_outside_the_width() -> None:
    x = torch.randn(1, 2, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.1 + 8
    layer = norm()
    mean = x.mean((2, 3))[0]
    error = (layer.running_var + layer.eps).div(256).sqrt()
    used = mean - 4 * error * (mean - layer.running_mean).sign()
    own = x.var((2, 3))[0]
    variance_error = (layer.running_var + layer.eps) * (2 / 255) ** 0.5
    variance = own + 4 * variance_error  # below the source's, so that it comes back up by the width
    expected = (x - used.view(-1, 1, 1)) / (variance.view(-1, 1, 1) + layer.eps).sqrt()
    assert torch.allclose(layer(x), expected, atol=1e-4)
    at_all = norm(0)(x)
    assert torch.allclose(at_all.mean((2, 3)), torch.zeros(1, 2), atol=1e-3)


def test_predictions_do_not_depend_on_what_comes_with_an_image() -> None:
    method = Note(randomised(SmallNet()))
    together = method(images())
    method.reset()
    assert torch.allclose(torch.cat([method(image[None]) for image in images()]), together, atol=1e-5)


def test_the_reservoir_balances_classes_and_samples_each_over_time() -> None:
    memory = Reservoir(8)
    for number in range(400):
        memory.add(torch.full((1, 1, 1), float(number)), 0)
    assert len(memory) == 8
    kept = sorted(float(image) for image in memory.images())
    assert kept[-1] > 8 and kept[0] < 300  # neither the first ones alone nor the last ones
    for label in (1, 2, 3):
        for _ in range(10):
            memory.add(torch.zeros(1, 1, 1), label)
    assert sorted(len(items) for items in memory.by_class.values()) == [2, 2, 2, 2]


def test_updates_come_every_so_many_images_and_move_statistics_weights_and_biases() -> None:
    model = randomised(SmallNet())
    method = Note(model, NoteConfig(memory=16, period=40, statistics=0.25))
    layers = [module for module in method.model.modules() if isinstance(module, InstanceAwareNorm)]
    start = [(layer.running_mean.clone(), layer.weight.detach().clone()) for layer in layers]
    method(images())
    assert all(torch.equal(layer.running_mean, mean) for layer, (mean, _) in zip(layers, start, strict=True))
    method(images(1))
    for layer, (mean, weight) in zip(layers, start, strict=True):
        assert not torch.equal(layer.running_mean, mean) and not torch.equal(layer.weight, weight)
    memory = torch.stack(method.memory.images())
    assert len(memory) == 16 and {p.shape[0] for p in method.parameters()}
    method.reset()
    assert torch.equal(method(images()), Note(model, method.config)(images()))


def test_settings_and_models_that_do_not_fit() -> None:
    with pytest.raises(UsageError, match="share"):
        NoteConfig(statistics=0)
    with pytest.raises(UsageError, match="no BatchNorm"):
        Note(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)))
    assert Source(randomised(SmallNet()))(images()).shape == (24, 5)
