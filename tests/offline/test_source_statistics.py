"""Source statistics of what meta-networks see, from images and without."""

from __future__ import annotations

import torch

from edgetta.offline.source_statistics import batches_of, set_source_statistics, synthetic_images
from tests.adaptation.backbones import SmallNet, network_of, randomised, small_model


def test_statistics_equal_those_of_the_backbone() -> None:
    network = network_of(small_model(), "batch", dtype=torch.float32)
    images = torch.rand(30, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    set_source_statistics(network, batches_of(images, 7), (3, 16, 16))  # unequal last batch
    x = randomised(SmallNet()).stem(images)  # type: ignore[operator]
    for k, name in enumerate(SmallNet.cuts[1:]):
        x = randomised(SmallNet()).get_submodule(name)(x)
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        meta = network.metas[k]
        assert torch.allclose(meta.norm_mean, mean, atol=1e-4)  # type: ignore[arg-type]
        assert torch.allclose(meta.norm_variance, variance, rtol=1e-3, atol=1e-5)  # type: ignore[arg-type]
        assert torch.allclose(meta.norm_bias, mean, atol=1e-4), "identity: the norm gives back the source statistics"


def test_measuring_leaves_running_statistics_alone() -> None:
    network = network_of(small_model(), "ema", dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items() if "state" in name}
    set_source_statistics(network, None, (3, 16, 16))
    assert before and all(torch.equal(before[name], network.state_dict()[name]) for name in before)


def test_synthetic_images_look_like_photographs_to_a_convolution() -> None:
    images = torch.cat(list(synthetic_images((3, 32, 32), count=96, batch=64)))
    assert images.shape == (96, 3, 32, 32) and float(images.min()) >= 0 and float(images.max()) <= 1
    power = torch.fft.rfft2(images - images.mean((2, 3), keepdim=True)).abs().square().mean((0, 1))
    assert power[0, 2] > 4 * power[0, 8], "power falls with frequency"
    again = torch.cat(list(synthetic_images((3, 32, 32), count=96, batch=64)))
    assert torch.equal(images, again)
