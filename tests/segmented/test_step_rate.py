"""The learning rate of an update: what is given wins, else the law by the images of the update; damped if too fast."""

from __future__ import annotations

import math

import pytest
import torch

from edgetta.rate_law import RateLaw
from edgetta.segmented.adapter import AdaptConfig, Adapter
from edgetta.segmented.step_rate import DEFAULT_RATE, TOLERANCE, StepRate, choose_rate, divergence
from tests.adaptation.test_adapter import network, snapshot, stream

LAW = RateLaw("momentum", "measured", (4, 16, 64), (1e-3, 4e-3, 1e-2), (5e-4,) * 3, (1e-1,) * 3, momentum=0.9)


def watched(expected: float) -> RateLaw:
    """The same law, that expects so much of every update."""
    return RateLaw(
        optimizer="momentum",
        form="measured",
        batch_sizes=(4, 64),
        rates=(1e-2, 1e-2),
        low=(1e-3, 1e-3),
        high=(1e-1, 1e-1),
        momentum=0.9,
        divergence=(expected, expected),
    )


def test_a_given_rate_wins_over_the_law_and_the_law_over_the_default() -> None:
    assert choose_rate(0.2, LAW, 0.9, 16).rate == 0.2
    assert choose_rate(0.0, LAW, 0.9, 16).rate == 0.0
    assert choose_rate(None, LAW, 0.9, 16).rate == pytest.approx(4e-3)
    assert choose_rate(None, None, 0.9, 16).rate == DEFAULT_RATE
    adam = RateLaw("adam", "measured", (4,), (1.0,), (0.5,), (2.0,))
    chosen = choose_rate(None, adam, 0.9, 16)
    assert chosen.rate == DEFAULT_RATE and "adam" in chosen.reason


def test_another_momentum_keeps_what_a_gradient_moves_in_all() -> None:
    assert choose_rate(None, LAW, 0.0, 64).rate == pytest.approx(0.1)
    assert choose_rate(None, LAW, 0.95, 64).rate == pytest.approx(5e-3)


def test_each_update_takes_the_rate_of_its_own_size() -> None:
    adapter = Adapter(network(), AdaptConfig(entropy_margin=1.0, window=32, small_batch=8), LAW)
    rates = []
    for count in (64, 16, 24, 4, 4, 4, 4, 4, 4, 4, 4):
        adapter.step(stream(count))
        rates.append(adapter.optimizer.param_groups[0]["lr"])
    assert rates[:3] == pytest.approx([LAW.rate(64), LAW.rate(16), LAW.rate(24)])
    assert rates[3:10] == [rates[2]] * 7, "nothing is updated while the window fills"
    assert rates[10] == pytest.approx(LAW.rate(32)), "small batches count as their window"
    assert [adapter.update_images(batch) for batch in (4, 8, 64)] == [32, 8, 64]


def test_without_a_law_the_default_is_taken() -> None:
    given, default = (Adapter(network(), AdaptConfig(learning_rate=rate)) for rate in (DEFAULT_RATE, None))
    for adapter in (given, default):
        adapter.step(stream())
    before, after = snapshot(given.network), snapshot(default.network)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_divergence_is_that_of_kullback_and_leibler() -> None:
    generator = torch.Generator().manual_seed(0)
    before, after = torch.randn(2, 6, 4, generator=generator, dtype=torch.float64)
    expected = torch.nn.functional.kl_div(after.log_softmax(1), before.softmax(1), reduction="batchmean")
    assert divergence(before, after) == pytest.approx(float(expected))
    assert divergence(before, before) == 0.0


def seen(law: RateLaw, updates: int, **config: object) -> Adapter:
    adapter = Adapter(network(), AdaptConfig(entropy_margin=1.0, **config), law)  # type: ignore[arg-type]
    for seed in range(updates):
        adapter.step(stream(seed=seed))
    return adapter


def test_updates_that_change_predictions_more_than_expected_damp_the_rate() -> None:
    observed = seen(watched(1.0), 4).rate._ratios  # the divergences themselves, since one is expected
    assert len(observed) == 4 and min(observed) > 0
    median = sorted(observed)[2]

    calm = seen(watched(median / (0.9 * TOLERANCE)), 6).rate
    assert calm.damping == 1.0 and not calm.watching
    hasty = seen(watched(median / (2 * TOLERANCE)), 6)
    assert hasty.rate.damping == pytest.approx((2 * TOLERANCE) ** -0.5, rel=1e-3)
    chosen = hasty.rate.choice(24)
    assert chosen.rate == pytest.approx(1e-2 * hasty.rate.damping) and "damped" in chosen.reason
    assert hasty.optimizer.param_groups[0]["lr"] == chosen.rate


def test_the_watch_moves_nothing() -> None:
    with_watch, without = seen(watched(1e3), 3), seen(watched(1e3), 3, watched=0)
    before, after = snapshot(with_watch.network), snapshot(without.network)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert with_watch.rate._ratios and not without.rate._ratios


def test_a_given_rate_is_never_damped() -> None:
    assert not seen(watched(1e-9), 0, learning_rate=0.1).rate.watching
    assert seen(watched(1e-9), 5, learning_rate=0.1).rate.choice(24).rate == 0.1


def test_what_is_not_finite_damps_as_far_as_damping_goes() -> None:
    rate = StepRate(None, watched(1.0), 0.9, 1)
    rate.watch(torch.zeros(4, 3), torch.full((4, 3), math.nan))
    assert rate.damping == 1e-3


def test_a_watch_that_fails_undoes_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = Adapter(network(), AdaptConfig(entropy_margin=1.0), watched(1.0))
    adapter.step(stream())
    before, watching = snapshot(adapter.network), adapter.rate.watching

    def fail(*_: object) -> None:
        raise MemoryError("none left")

    monkeypatch.setattr(adapter.rate, "watch", fail)
    with pytest.raises(MemoryError):
        adapter.step(stream(seed=2))
    after = snapshot(adapter.network)
    assert watching and all(torch.equal(before[name], after[name]) for name in before) and adapter.updates == 1
