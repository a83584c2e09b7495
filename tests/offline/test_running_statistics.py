"""Running statistics of a finished network: averages over the images, and nothing else moved."""

from __future__ import annotations

import torch

from edgetta.offline.running_statistics import settle_running_statistics
from tests.adaptation.backbones import network_of, small_model


def images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_they_are_averages_over_all_images() -> None:
    network = network_of(small_model(), "batch")
    first = network.stem.graphs.initial_state
    batches = list(images(40).split(16))  # 16, 16 and 8
    settle_running_statistics(network, batches)
    # The stem normalises the images' own convolution: its statistics depend on nothing that moves.
    expected = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in first.items()}
    for batch in batches:
        network.stem.forward(batch, keep=False, momentum=1.0)
        for name, value in network.stem.state.items():
            expected[name] += value * len(batch) / 40
    settle_running_statistics(network, batches)
    assert expected
    for name, value in expected.items():
        torch.testing.assert_close(network.stem.state[name], value)


def test_running_statistics_then_answer_as_batch_statistics_do() -> None:
    network = network_of(small_model(), "auto")
    batches = list(images(512).split(64))
    network.forward(images(64, seed=9) * 0.2, keep=False)  # leaves the statistics of a dark batch behind
    network.batch_norm = "ema"
    stale = network.forward(batches[0], keep=False, track=False)[0]
    network.batch_norm = "auto"
    settle_running_statistics(network, batches)
    assert network.batch_norm == "auto" and network.ema_images == network_of(small_model()).ema_images
    exact = network.forward(batches[0], keep=False)[0]
    settle_running_statistics(network, batches)
    network.batch_norm = "ema"
    settled = network.forward(batches[0], keep=False, track=False)[0]
    assert float((settled - exact).norm()) < 0.1 * float(exact.norm())
    assert float((settled - exact).norm()) < 0.2 * float((stale - exact).norm())


def test_weights_stay_and_folded_networks_stay_whole() -> None:
    network = network_of(small_model(), "batch")
    before = {name: value.clone() for name, value in network.metas.named_parameters()}
    settle_running_statistics(network, [images(16)])
    assert all(torch.equal(value, before[name]) for name, value in network.metas.named_parameters())
    folded = network_of(small_model(form="source"), "source")
    start = {name: value.clone() for name, value in folded.state_dict().items()}
    settle_running_statistics(folded, [images(16)])
    assert all(torch.equal(value, start[name]) for name, value in folded.state_dict().items())
