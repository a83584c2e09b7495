"""The adapter: what a step predicts, when it updates, and that nothing bad in the stream can ruin the network."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from edgetta.adaptation.network import AdaptiveNetwork
from edgetta.errors import UsageError
from edgetta.rate_law import RateLaw
from edgetta.segmented.adapter import AdaptConfig, Adapter
from tests.adaptation.backbones import network_of, small_model


def stream(count: int = 24, seed: int = 1) -> torch.Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def network(batch_norm: str = "auto") -> AdaptiveNetwork:
    return network_of(small_model(), batch_norm, dtype=torch.float32)  # type: ignore[arg-type]


def snapshot(of: AdaptiveNetwork) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in of.state_dict().items()}


def learnt(adapter: Adapter) -> dict[str, torch.Tensor]:
    momentum = {name: t.clone() for name, t in adapter.optimizer_tensors().items()}
    return {**snapshot(adapter.network), **momentum}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("settings", [{"when": "off"}, {}, {"passes": 2}, {"window": 24, "small_batch": 30}])
def test_mirrored_predicts_the_mean_of_both_images_before_it_updates(settings: dict[str, Any]) -> None:
    reference = network("batch")
    both = [reference.forward(x, keep=False)[0].softmax(1) for x in (stream(), stream().flip(3))]
    config = AdaptConfig(mirrored=True, learning_rate=0.1, entropy_margin=1.0, statistics="batch", **settings)
    adapter = Adapter(network("batch"), config)
    result = adapter.step(stream())
    assert torch.allclose(result.logits.exp(), (both[0] + both[1]) / 2, atol=1e-5)
    plain = Adapter(network("batch"), replace(config, mirrored=False))
    plain.step(stream())
    assert same(learnt(adapter), learnt(plain)), "what is learnt is the same"


@pytest.mark.parametrize("adapt", ["bias", "affine"])
def test_affine_weights_of_the_bundle_adapt_unless_switched_off(adapt: str) -> None:
    """Off, the meta-networks learn what they learn where nothing else can adapt."""
    found = {}
    for exported, asked in ((True, True), (True, False), (False, False)):
        model = network_of(small_model(adapt=adapt if exported else "meta"), "batch")
        before = snapshot(model)
        adapter = Adapter(model, AdaptConfig(entropy_margin=1.0, learning_rate=0.1, anchor=0.1, adapt_affine=asked))
        for seed in range(2):
            assert adapter.step(stream(seed=seed).double()).adapted
        adapting = [name for name in before if ".bias." in name or ".weight." in name]
        assert bool(adapting) == exported
        assert any(".weight." in name for name in adapting) == (exported and adapt == "affine")
        for name in adapting:
            assert torch.equal(before[name], snapshot(model)[name]) != asked, name
        found[exported, asked] = {name: t for name, t in snapshot(model).items() if name.startswith("metas.")}
    if adapt == "bias":  # else the gradient goes through the statistics, too
        assert all(torch.allclose(t, found[False, False][name]) for name, t in found[True, False].items())
    assert not same(found[True, True], found[True, False])


@pytest.mark.parametrize("passes", [1, 2])
def test_predicts_before_it_updates(passes: int) -> None:
    before = network().forward(stream(), keep=False)[0]
    adapter = Adapter(network(), AdaptConfig(entropy_margin=1.0, learning_rate=0.1, passes=passes, source_share=0.0))
    result = adapter.step(stream())
    assert torch.allclose(result.logits, before, atol=1e-6) and result.adapted and result.kept == 24
    assert not torch.allclose(adapter.network.forward(stream(), keep=False)[0], before, atol=1e-3)


def test_entropy_falls_on_a_repeated_batch() -> None:
    adapter = Adapter(network(), AdaptConfig(entropy_margin=1.0, learning_rate=0.05, regulariser=0.0))
    entropies = [float(adapter.step(stream()).entropy.mean()) for _ in range(8)]
    assert entropies[-1] < entropies[0] - 0.05


def test_adam_is_torchs_and_stands_where_it_stood_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps against torch's own Adam on the same gradients, with a step in between that fails and is undone."""
    adapter = Adapter(network(), AdaptConfig(optimizer="adam", learning_rate=1e-2, entropy_margin=1.0, anchor=0.0))
    values = [parameter.detach().clone().requires_grad_() for parameter in adapter.network.parameters()]
    reference = torch.optim.Adam(values, 1e-2)
    gradients: list[list[torch.Tensor]] = []
    step = adapter.optimizer.step

    def spy() -> None:
        gradients.append([parameter.grad.clone() for parameter in adapter.network.parameters()])  # type: ignore[union-attr]
        step()

    def fail() -> None:
        step()
        raise MemoryError

    for seed in range(3):
        monkeypatch.setattr(adapter.optimizer, "step", fail)
        with pytest.raises(MemoryError):
            adapter.step(stream(seed=9))
        monkeypatch.setattr(adapter.optimizer, "step", spy)
        adapter.step(stream(seed=seed))
        for value, gradient in zip(values, gradients[-1], strict=True):
            value.grad = gradient
        reference.step()
    for value, parameter in zip(values, adapter.network.parameters(), strict=True):
        assert torch.allclose(value, parameter, atol=1e-7)


def test_the_rate_law_is_not_one_of_adam() -> None:
    law = RateLaw("momentum", "measured", (1, 64), (1e-3, 8e-3), (5e-4, 6e-3), (2e-3, 1e-2), momentum=0.9)
    rates = {name: Adapter(network(), AdaptConfig(optimizer=name), law).rate.choice(64) for name in ("sgd", "adam")}  # type: ignore[arg-type]
    assert "law" in rates["sgd"].reason and "default" in rates["adam"].reason


def test_the_anchor_holds_weights_near_those_that_were_shipped() -> None:
    def moved(anchor: float) -> float:
        adapter = Adapter(network(), AdaptConfig(entropy_margin=1.0, learning_rate=0.05, anchor=anchor))
        start = [parameter.detach().clone() for parameter in adapter.network.parameters()]
        for seed in range(4):
            assert adapter.step(stream(seed=seed)).adapted
        now = adapter.network.parameters()
        return float(torch.stack([(a.detach() - b).norm() for a, b in zip(now, start, strict=True)]).norm())

    assert moved(1.0) == 0 < moved(0.5) < 0.7 * moved(0.0)


def test_the_anchor_is_what_was_shipped_not_what_was_learnt_before() -> None:
    shipped = [parameter.detach().clone() for parameter in network().parameters()]
    other = network()
    for parameter in other.parameters():
        parameter.data += 1.0
    adapter = Adapter(other, AdaptConfig(learning_rate=0.0, anchor=0.25), shipped=shipped)
    adapter.step(stream())
    for now, was in zip(other.parameters(), shipped, strict=True):
        assert torch.allclose(now.detach(), was + 0.75, atol=1e-6)


def test_regulariser_pulls_back_when_nothing_is_confident() -> None:
    adapter = Adapter(network(), AdaptConfig(entropy_margin=1e-6, learning_rate=0.02, regulariser=5.0))
    distances = [adapter.step(stream()).regulariser for _ in range(20)]
    assert adapter.empty == 20 and distances[-1] < 0.8 * distances[0]


@pytest.mark.parametrize(("when", "expected"), [("always", [1, 1, 1, 1]), ("off", [0] * 4), ("every 3", [1, 0, 0, 1])])
def test_schedule(when: str, expected: list[int]) -> None:
    adapter = Adapter(network(), AdaptConfig(when=when))
    assert [int(adapter.step(stream()).adapted) for _ in range(4)] == expected


@pytest.mark.parametrize("policy", ["ema", "batch"])
@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
def test_a_batch_that_is_not_finite_changes_nothing_and_is_counted(policy: str, passes: int, bad: float) -> None:
    """1e30 is finite; the variance of what it makes is not, though the logits are."""
    adapter = Adapter(network(policy), AdaptConfig(entropy_margin=1.0, passes=passes))
    adapter.step(stream())
    before = learnt(adapter)
    poisoned = stream()
    poisoned[3, 1, 4, 4] = bad
    result = adapter.step(poisoned)
    assert result.reason == "non-finite" and not result.adapted and adapter.skipped == 1
    assert same(before, learnt(adapter)), "neither weights nor running statistics nor momentum may move"
    assert adapter.step(stream()).adapted, "and the stream goes on"


def test_a_second_pass_that_fails_takes_the_first_back() -> None:
    adapter = Adapter(network("ema"), AdaptConfig(entropy_margin=1.0, passes=2, learning_rate=1e37, momentum=0.0))
    before = snapshot(adapter.network)
    assert adapter.step(stream()).reason == "non-finite" and adapter.skipped == 1
    assert same(before, snapshot(adapter.network))
    calm = Adapter(network("ema"), AdaptConfig(entropy_margin=1.0, passes=2))
    calm.step(stream())
    momentum = {i: buffer.clone() for i, buffer in calm.optimizer_tensors().items()}
    calm.rate.given = 1e37
    assert calm.step(stream()).reason == "non-finite"
    assert all(torch.equal(momentum[i], buffer) for i, buffer in calm.optimizer_tensors().items())


@pytest.mark.parametrize("policy", ["ema", "batch"])
@pytest.mark.parametrize("bad", [math.inf, 1e30])
def test_prediction_of_a_bad_batch_leaves_running_statistics_alone(policy: str, bad: float) -> None:
    adapter = Adapter(network(policy), AdaptConfig(when="off"))
    before = snapshot(adapter.network)
    adapter.step(torch.full((4, 3, 16, 16), bad))
    assert same(before, snapshot(adapter.network))


def test_small_batches_are_answered_at_once_and_gathered() -> None:
    adapter = Adapter(network(), AdaptConfig(window=6, entropy_margin=1.0))
    images = stream(12)
    results = [adapter.step(images[i : i + 1]) for i in range(12)]
    assert all(result.logits.shape == (1, 5) for result in results)
    assert [i for i, result in enumerate(results) if result.adapted] == [5, 11]
    assert adapter.updates == 2 and results[5].kept == 6


def test_a_frame_that_is_not_finite_does_not_cost_its_window_the_update() -> None:
    adapter = Adapter(network(), AdaptConfig(window=6, entropy_margin=1.0))
    images = stream(7)
    images[2] = math.nan
    results = [adapter.step(images[i : i + 1]) for i in range(7)]
    assert [i for i, result in enumerate(results) if result.adapted] == [6] and results[6].kept == 6


def test_the_window_holds_frames_whose_buffer_is_filled_again() -> None:
    images, ends = stream(6), []
    buffer = torch.empty(1, 3, 16, 16)
    for reuse in (False, True):
        adapter = Adapter(network(), AdaptConfig(window=6, entropy_margin=1.0))
        for i in range(6):
            adapter.step(buffer.copy_(images[i]) if reuse else images[i : i + 1])
        ends.append(snapshot(adapter.network))
    assert same(*ends)


def test_updates_from_a_window_leave_running_statistics_to_the_frames() -> None:
    """A window of 16 and more is normalised with its own statistics, which must not replace the running ones."""
    frames, ends = stream(20), []
    for when in ("always", "off"):
        adapter = Adapter(network(), AdaptConfig(window=20, when=when, entropy_margin=1.0))
        adapted = [adapter.step(frames[i : i + 1]).adapted for i in range(20)]
        assert any(adapted) == (when == "always")
        ends.append({name: t for name, t in snapshot(adapter.network).items() if ".state." in name})
    assert ends[0] and same(*ends)


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
