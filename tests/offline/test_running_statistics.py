"""Statistics of training of a finished network: averages over the images, and nothing else moved."""

from __future__ import annotations

import numpy as np
import torch

from edgetta.engines.contract import Array, Mixing, Moments, Statistics
from edgetta.offline.network import Network
from edgetta.offline.running_statistics import with_running_statistics
from tests.adaptation.backbones import SmallNet, randomised, small_programs


def images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def test_they_are_those_of_all_images_together() -> None:
    batches = list(images(40).split(16))  # 16, 16 and 8
    network = with_running_statistics(Network(small_programs()), batches)
    # The stem normalises the images' own convolution: its statistics depend on nothing that moves.
    conv = randomised(SmallNet()).stem[0](images(40))  # type: ignore[index]
    variance, mean = torch.var_mean(conv.detach(), (0, 2, 3), correction=0)
    at = network.programs.statistics.slice("stem.stem.1")
    np.testing.assert_allclose(network.programs.source.mean[at], mean.numpy(), atol=1e-5)
    np.testing.assert_allclose(network.programs.source.variance[at], variance.numpy(), rtol=1e-4)


def test_they_then_answer_as_batch_statistics_do() -> None:
    programs = small_programs()
    stale = Network(programs).shipping(source=Statistics(programs.source.mean * 0, programs.source.variance * 4))
    batches = list(images(512).split(64))
    network = with_running_statistics(stale, batches)

    def answers(of: Network) -> Array:
        return of.engine.predict(batches[0].numpy(), programs.shipped, of.programs.source)

    plain = Mixing.plain(Moments(programs.source.mean, programs.source.variance), 1.0)
    exact = network.engine.measure(batches[0].numpy(), programs.shipped, plain)[0]
    distance = np.linalg.norm(answers(network) - exact)
    assert distance < 0.2 * np.linalg.norm(exact) and distance < 0.3 * np.linalg.norm(answers(stale) - exact)


def test_weights_stay() -> None:
    network = Network(small_programs())
    found = with_running_statistics(network, [images(16)])
    np.testing.assert_array_equal(found.programs.shipped, network.programs.shipped)
    assert with_running_statistics(network, []).programs.source.mean.tolist() == network.programs.source.mean.tolist()
