"""Source statistics of what meta-networks see, from images and without."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgetta.offline.network import Network
from edgetta.offline.source_statistics import batches_of, synthetic_images, with_source_statistics
from tests.adaptation.backbones import SmallNet, randomised, small_model

BATCH = torch.rand(30, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("initialisation", ["identity", "published"])
def test_statistics_equal_those_of_the_backbone(initialisation: str) -> None:
    fresh = Network(small_model(initialisation).programs)
    network = with_source_statistics(fresh, batches_of(BATCH, 7))  # unequal last batch
    programs = network.programs
    means, variances = (programs.statistics.split(v) for v in (programs.source.mean, programs.source.variance))
    parameters = programs.parameters.split(programs.shipped)
    backbone = randomised(SmallNet())
    x = backbone.stem(BATCH)  # type: ignore[operator]
    for k, name in enumerate(SmallNet.cuts[1:]):
        conv = torch.from_numpy(parameters[f"metas.{k}.conv"])
        branch = torch.nn.functional.conv2d(x, conv, None, 2 if name == "block2" else 1, 1)
        x = backbone.get_submodule(name)(x)
        for layer, values in (("norm", x), ("branch", branch)):
            variance, mean = (t.detach().numpy() for t in torch.var_mean(values, (0, 2, 3), correction=0))
            np.testing.assert_allclose(means[f"metas.{k}.{layer}"], mean, atol=1e-4)
            np.testing.assert_allclose(variances[f"metas.{k}.{layer}"], variance, rtol=1e-3, atol=1e-5)
        aligned = np.allclose(parameters[f"metas.{k}.norm_bias"], means[f"metas.{k}.norm"], atol=1e-6)
        assert aligned == (initialisation == "identity"), "identity: the norm gives back the source statistics"


def test_the_identity_starts_as_the_backbone() -> None:
    network = with_source_statistics(Network(small_model().programs), batches_of(BATCH, 10))
    found = network.engine.predict(BATCH.numpy(), network.programs.shipped, network.programs.source)
    with torch.no_grad():
        expected = randomised(SmallNet())(BATCH).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("images", [None, BATCH], ids=["synthetic", "source"])
def test_statistics_of_the_frozen_parts_stay(images: torch.Tensor | None) -> None:
    fresh = Network(small_model(adapt="affine").programs)
    network = with_source_statistics(fresh, None if images is None else batches_of(images, 10))
    layers = list(fresh.programs.statistics.shapes)
    assert any(layer.startswith("part") for layer in layers)
    for layer in layers:
        at = fresh.programs.statistics.slice(layer)
        same = np.array_equal(network.programs.source.mean[at], fresh.programs.source.mean[at])
        assert same != layer.startswith("metas."), layer
    for name, array in fresh.programs.parameters.split(fresh.programs.shipped).items():
        if not name.endswith((".norm_weight", ".norm_bias")):
            np.testing.assert_array_equal(network.programs.parameters.split(network.programs.shipped)[name], array)


def test_synthetic_images_look_like_photographs_to_a_convolution() -> None:
    images = torch.cat(list(synthetic_images((3, 32, 32), count=96, batch=64)))
    assert images.shape == (96, 3, 32, 32) and float(images.min()) >= 0 and float(images.max()) <= 1
    power = torch.fft.rfft2(images - images.mean((2, 3), keepdim=True)).abs().square().mean((0, 1))
    assert power[0, 2] > 4 * power[0, 8], "power falls with frequency"
    again = torch.cat(list(synthetic_images((3, 32, 32), count=96, batch=64)))
    assert torch.equal(images, again)
