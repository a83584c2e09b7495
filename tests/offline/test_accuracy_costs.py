"""Costs in accuracy are measured on the same images, from the same state, and continue where they were interrupted."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from edgetta.segmented.adapter import AdaptConfig, Adapter
from edgetta.adaptation.network import AdaptiveNetwork
from edgetta.adaptation.step_memory import StepMemory
from edgetta.errors import UsageError
from edgetta.memory.accuracy_costs import AccuracyCosts
from edgetta.offline.accuracy_costs import BATCH, CHOICES, REFERENCE, accuracy_costs, measure_accuracy_costs
from tests.adaptation.backbones import network_of, small_model

CONFIG = AdaptConfig(learning_rate=2.0, entropy_margin=1.0)


def domains(count: int = 80) -> dict[str, tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 5, (count,), generator=generator)
    images = torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=generator)
    return {"dark": (images // 3, labels), "light": (255 - images // 3, labels)}


@pytest.fixture(scope="module")
def network() -> AdaptiveNetwork:
    return network_of(small_model(), "auto", dtype=torch.float32)  # its predictions are not all alike


def streamed(network: AdaptiveNetwork, batch: int, memory: StepMemory) -> list[bool]:
    """Which images a stream gets wrong, written down once more."""
    start = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.memory = memory
    adapter = Adapter(network, AdaptConfig(learning_rate=2.0, entropy_margin=1.0, small_batch=1))
    wrong: list[bool] = []
    for images, labels in domains().values():
        for i in range(0, len(labels), batch):
            logits = adapter.step(images[i : i + batch] / 255).logits
            wrong += (logits.argmax(1) != labels[i : i + batch]).tolist()
    network.memory = StepMemory()
    network.load_state_dict(start)
    return wrong


def test_costs_are_differences_between_streams(network: AdaptiveNetwork) -> None:
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    found = measure_accuracy_costs(network, domains(), CONFIG)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    reference = streamed(network, BATCH, StepMemory())
    assert found.error == pytest.approx(100 * sum(reference) / 160) and found.batch == BATCH
    for (kind, value), batch, memory in (
        (("gradient", "local"), BATCH, StepMemory(local=True)),
        (("storage", "int8"), BATCH, StepMemory("int8")),
        (("batch", "16"), 16, StepMemory()),
    ):
        differences = torch.tensor(streamed(network, batch, memory)).double() - torch.tensor(reference).double()
        cost = found.of(kind, value)
        assert cost.points == pytest.approx(100 * float(differences.mean()))
        assert cost.deviation == pytest.approx(100 * float(differences.std(correction=0)) / math.sqrt(160))
    assert any(abs(m.cost.points) > 0 for m in found.measured), "and these streams do tell choices apart"
    assert AccuracyCosts.from_json(found.to_json()) == found
    assert found.doubt is not None and 0 < found.doubt < 80, "of five classes"
    assert found.errors_per_doubt == pytest.approx(found.error / found.doubt)
    assert found.source["corruptions"] == "dark, light" and found.source["images"] == "160"


def test_interrupted_it_continues_to_the_same_end(network: AdaptiveNetwork) -> None:
    kept: dict[str, Any] = {}
    computed: list[str] = []

    def stored(name: str, compute: Callable[[], Any]) -> Any:
        if name not in kept:
            if len(computed) == 3:
                raise KeyboardInterrupt
            computed.append(name)
            kept[name] = compute()
        return kept[name]

    with pytest.raises(KeyboardInterrupt):
        measure_accuracy_costs(network, domains(), CONFIG, stored=stored)
    assert list(kept) == ["cost-reference-64", "cost-adaptation-off", "cost-gradient-local"]
    told: list[tuple[int, int, str]] = []
    again = measure_accuracy_costs(
        network,
        domains(),
        CONFIG,
        stored=lambda name, compute: kept.get(name) or compute(),
        progress=lambda *event: told.append(event),
    )
    assert again == measure_accuracy_costs(network, domains(), CONFIG)
    assert told[0] == (0, 9, "reference 64") and told[-1] == (8, 9, "batch 8")


def test_what_both_get_wrong_is_no_noise() -> None:
    runs = {choice: {"wrong": "1" * 50 + "0" * 50, "doubt": 20.0} for choice in (REFERENCE, *CHOICES)}
    found = accuracy_costs(runs | {("batch", "32"): {"wrong": "1" * 54 + "0" * 46, "doubt": 30.0}}, {})
    assert (found.error, found.doubt, found.errors_per_doubt) == (50, 20, 2.5)
    assert found.of("storage", "half").deviation == 0
    cost = found.of("batch", "32")
    assert cost.points == pytest.approx(4) and cost.deviation == pytest.approx(100 * math.sqrt(0.04 * 0.96) / 10)


def test_too_few_images(network: AdaptiveNetwork) -> None:
    with pytest.raises(UsageError, match="need 64 images under each corruption, and there are 63"):
        measure_accuracy_costs(network, domains(63), CONFIG)
