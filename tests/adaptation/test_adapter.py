"""The adapter: what a step predicts, when it updates, and that nothing bad in the stream can ruin the network."""

from __future__ import annotations

import math

import pytest
import torch

from edgetta.adaptation.adapter import AdaptConfig, Adapter
from edgetta.adaptation.network import AdaptiveNetwork
from edgetta.errors import UsageError
from tests.adaptation.backbones import network_of, small_model


def stream(count: int = 24, seed: int = 1) -> torch.Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def network(batch_norm: str = "auto") -> AdaptiveNetwork:
    return network_of(small_model(), batch_norm, dtype=torch.float32)  # type: ignore[arg-type]


def snapshot(of: AdaptiveNetwork) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in of.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_predicts_before_it_updates() -> None:
    before = network().forward(stream(), keep=False)[0]
    adapter = Adapter(network(), AdaptConfig(entropy_margin=1.0, learning_rate=0.1))
    result = adapter.step(stream())
    assert torch.allclose(result.logits, before, atol=1e-6) and result.adapted and result.kept == 24
    assert not torch.allclose(adapter.network.forward(stream(), keep=False)[0], before, atol=1e-3)


def test_entropy_falls_on_a_repeated_batch() -> None:
    adapter = Adapter(network(), AdaptConfig(entropy_margin=1.0, learning_rate=0.05, regulariser=0.0))
    entropies = [float(adapter.step(stream()).entropy.mean()) for _ in range(8)]
    assert entropies[-1] < entropies[0] - 0.05


def test_regulariser_pulls_back_when_nothing_is_confident() -> None:
    adapter = Adapter(network(), AdaptConfig(entropy_margin=1e-6, learning_rate=0.02, regulariser=5.0))
    distances = [adapter.step(stream()).regulariser for _ in range(20)]
    assert adapter.empty == 20 and distances[-1] < 0.8 * distances[0]


@pytest.mark.parametrize(("when", "expected"), [("always", [1, 1, 1, 1]), ("off", [0] * 4), ("every 3", [1, 0, 0, 1])])
def test_schedule(when: str, expected: list[int]) -> None:
    adapter = Adapter(network(), AdaptConfig(when=when))
    assert [int(adapter.step(stream()).adapted) for _ in range(4)] == expected


def test_a_batch_that_is_not_finite_changes_nothing_and_is_counted() -> None:
    adapter = Adapter(network("ema"), AdaptConfig(entropy_margin=1.0))
    adapter.step(stream())
    before = snapshot(adapter.network)
    poisoned = stream()
    poisoned[3, 1, 4, 4] = math.nan
    result = adapter.step(poisoned)
    assert result.reason == "non-finite" and not result.adapted and adapter.skipped == 1
    assert same(before, snapshot(adapter.network)), "neither weights nor running statistics may move"
    assert adapter.step(stream()).adapted, "and the stream goes on"


def test_prediction_of_a_bad_batch_leaves_running_statistics_alone() -> None:
    adapter = Adapter(network("ema"), AdaptConfig(when="off"))
    before = snapshot(adapter.network)
    adapter.step(torch.full((4, 3, 16, 16), math.inf))
    assert same(before, snapshot(adapter.network))


def test_small_batches_are_answered_at_once_and_gathered() -> None:
    adapter = Adapter(network(), AdaptConfig(window=6, entropy_margin=1.0))
    images = stream(12)
    results = [adapter.step(images[i : i + 1]) for i in range(12)]
    assert all(result.logits.shape == (1, 5) for result in results)
    assert [i for i, result in enumerate(results) if result.adapted] == [5, 11]
    assert adapter.updates == 2 and results[5].kept == 6


def test_two_passes_differ_from_one_and_both_move() -> None:
    ends = []
    for passes in (1, 2):
        adapter = Adapter(network(), AdaptConfig(passes=passes, entropy_margin=1.0, learning_rate=0.05))
        start = adapter.network.metas[0].conv.detach().clone()  # type: ignore[union-attr, operator]
        adapter.step(stream())
        ends.append(adapter.network.metas[0].conv.detach() - start)  # type: ignore[union-attr, operator]
    assert all(end.norm() > 0 for end in ends) and not torch.allclose(ends[0], ends[1], rtol=1e-3)


def test_deterministic() -> None:
    ends = []
    for _ in range(2):
        adapter = Adapter(network(), AdaptConfig(entropy_margin=1.0))
        for seed in range(4):
            adapter.step(stream(seed=seed))
        ends.append(snapshot(adapter.network))
    assert same(ends[0], ends[1])


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"learning_rate": math.nan}, "learning_rate"),
        ({"momentum": 1.0}, "momentum"),
        ({"entropy_margin": 0.0}, "entropy_margin"),
        ({"passes": 3}, "passes"),
        ({"window": 0}, "window"),
        ({"when": "every 0"}, "every N"),
        ({"when": "sometimes"}, "always"),
    ],
)
def test_bad_settings_name_themselves(settings: dict[str, object], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        AdaptConfig(**settings)  # type: ignore[arg-type]


def test_unknown_setting() -> None:
    with pytest.raises(UsageError, match="learning_rat"):
        AdaptConfig.from_json({"learning_rat": 1})
