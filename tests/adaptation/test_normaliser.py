"""Statistics of a stream: what content explains, novelty, evidence, changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgetta.adaptation.content import ContentModel, fit_content
from edgetta.adaptation.normaliser import Normaliser, StreamState, fixed
from edgetta.adaptation.signals import image_signals
from edgetta.engines.contract import Layout, Mixing, Moments, Statistics

CLASSES, CHANNELS = 4, 6
RNG = np.random.default_rng(5)
OF_CLASS = RNG.standard_normal((CLASSES, CHANNELS))
SOURCE = Statistics(OF_CLASS.mean(0), 1.0 + OF_CLASS.var(0))
LAYERS = Layout({"first": (4,), "second": (2,)})
SHIFT = np.array([2.0, -2.0, 2.0, 2.0, -2.0, 2.0])


def content(count: int = 3000) -> ContentModel:
    labels = np.random.default_rng(1).integers(0, CLASSES, count)
    noise = np.random.default_rng(2)
    means = OF_CLASS[labels] + 0.3 * noise.standard_normal((count, CHANNELS))
    variances = np.exp(0.1 * noise.standard_normal((count, CHANNELS)))
    return fit_content(codes(labels), means, variances, noise.standard_normal((count, 8)))


def codes(labels: np.ndarray) -> np.ndarray:
    return np.eye(CLASSES)[labels]


def normaliser(**options: float) -> Normaliser:
    return Normaliser(LAYERS, SOURCE, options.pop("content", content()), CLASSES, **options)  # type: ignore[arg-type]


def moments(labels: np.ndarray, shift: np.ndarray | float = 0.0, seed: int = 0) -> tuple[Moments, np.ndarray]:
    """A batch's own moments, and its logits: a network that is always right."""
    noise = np.random.default_rng(seed)
    images = OF_CLASS[labels] + shift + 0.3 * noise.standard_normal((len(labels), CHANNELS))
    own = Moments(images.mean(0), images.var(0) + 1.0)
    return own, 20.0 * codes(labels)


def mixed(labels: np.ndarray, shift: np.ndarray | float = 0.0, seed: int = 0):  # type: ignore[no-untyped-def]
    own, logits = moments(labels, shift, seed)
    return lambda mixing: (logits, own)


def settled(of: Normaliser, labels: np.ndarray, shift: np.ndarray | float = 0.0) -> tuple[Statistics, StreamState]:
    _, statistics, state = of.settle(of.begin(), float(len(labels)), mixed(labels, shift))
    return statistics, state


EVERY = np.random.default_rng(3).integers(0, CLASSES, 128)
ONE = np.full(128, 2)


def test_before_the_first_image_it_is_the_source() -> None:
    of = normaliser()
    used = of.statistics(of.begin())
    np.testing.assert_allclose(used.mean, SOURCE.mean)
    np.testing.assert_allclose(used.variance, SOURCE.variance)
    assert of.evidence(of.begin()) == 0


@pytest.mark.parametrize("labels", [EVERY, ONE])
def test_without_a_shift_it_stays_the_source_whatever_is_in_view(labels: np.ndarray) -> None:
    of = normaliser()
    used, state = settled(of, labels)
    np.testing.assert_allclose(used.mean, SOURCE.mean, atol=0.02)
    np.testing.assert_allclose(used.variance, SOURCE.variance, rtol=0.1)
    assert of.evidence(state) < 0.4


@pytest.mark.parametrize("labels", [EVERY, ONE])
def test_a_shift_is_followed_whatever_is_in_view(labels: np.ndarray) -> None:
    of = normaliser()
    used, state = settled(of, labels, SHIFT)
    np.testing.assert_allclose(used.mean, SOURCE.mean + SHIFT, atol=0.15)
    assert of.evidence(state) > 0.45


def test_one_image_is_followed_less_than_many() -> None:
    of = normaliser()
    few, many = (of.settle(of.begin(), n, mixed(EVERY, SHIFT))[1].mean for n in (0.3, 100.0))
    assert (np.abs(few - SOURCE.mean) < np.abs(many - SOURCE.mean)).all()


def test_an_image_that_is_not_new_changes_nothing() -> None:
    of = normaliser()
    _, state = settled(of, EVERY, SHIFT)
    own, logits = moments(EVERY, -SHIFT)
    after, changed = of.follow(state, 0.0, own, logits)
    assert after is state and not changed


def test_averages_are_those_of_all_images() -> None:
    of = normaliser()
    _, state = settled(of, EVERY[:64])
    own, logits = moments(EVERY[64:])
    after, _ = of.follow(state, 64.0, own, logits)
    first, second = moments(EVERY[:64])[0], own
    mean = (first.mean + second.mean) / 2
    np.testing.assert_allclose(after.average.mean, mean)
    between = ((first.mean - second.mean) / 2) ** 2
    np.testing.assert_allclose(after.average.variance, (first.variance + second.variance) / 2 + between)


def test_a_change_begins_anew_and_a_new_class_is_none() -> None:
    of = normaliser()
    _, state = settled(of, EVERY, SHIFT)
    for seed in range(3):
        state, changed = of.follow(state, 32.0, *moments(EVERY[:32], SHIFT, seed))
        assert not changed
    same, changed = of.follow(state, 32.0, *moments(ONE[:32], SHIFT, 9))
    assert not changed and same.average.count == state.average.count + 32
    after, changed = of.follow(state, 32.0, *moments(EVERY[:32], -SHIFT, 10))
    assert changed and after.average.count == 0 and after.changes == 1


def test_a_change_within_the_first_images_is_seen_too() -> None:
    of = normaliser()
    _, state = settled(of, EVERY[:64], SHIFT)
    _, used, after = of.settle(state, 64.0, mixed(EVERY[64:], -SHIFT))
    assert after.changes == 1 and after.average.count == 64
    np.testing.assert_allclose(used.mean, SOURCE.mean - SHIFT, atol=0.3)


def test_single_images_are_gathered_before_they_are_compared() -> None:
    of = normaliser()
    _, state = settled(of, EVERY, SHIFT)
    changes = []
    for i in range(20):
        state, changed = of.follow(state, 1.0, *moments(EVERY[i : i + 1], -SHIFT, i))
        changes.append(changed)
    assert changes.index(True) == 15


def test_nothing_is_a_change_where_none_is_looked_for() -> None:
    of = normaliser(change=float("inf"))
    _, state = settled(of, EVERY, SHIFT)
    assert not of.follow(state, 64.0, *moments(EVERY[:64], -SHIFT))[1]


def test_predictions_that_lean_a_little_are_not_taken_for_content() -> None:
    of = normaliser()
    average = of.begin().average
    leaning = replace(average, content=of.content.usual + np.array([0.06, -0.02, -0.02, -0.02]))
    np.testing.assert_allclose(of.content_of(leaning), of.content.usual)
    np.testing.assert_allclose(of.content_of(replace(average, content=np.eye(4)[1])), np.eye(4)[1])


def test_content_in_runs_counts_even_where_it_leans_a_little() -> None:
    of = normaliser()
    leaning = replace(of.begin().average, content=of.content.usual + np.array([0.06, -0.02, -0.02, -0.02]), pairs=256)
    alone = 0.9
    shuffled = replace(leaning, alone=alone, alike=float(leaning.content @ leaning.content))
    runs = replace(leaning, alone=alone, alike=0.8 * alone)
    np.testing.assert_allclose(of.content_of(shuffled), of.content.usual)
    np.testing.assert_allclose(of.content_of(runs), leaning.content)


def test_runs_are_seen_in_the_order_of_predictions() -> None:
    of = normaliser()
    runs, shuffled = np.sort(EVERY), EVERY
    for labels, more in ((runs, True), (shuffled, False)):
        _, state = settled(of, labels)
        chance = float(state.average.content @ state.average.content)
        assert (state.average.alike > chance + 0.3) == more


def test_the_mixing_that_it_asks_for_gives_the_statistics_that_it_returns() -> None:
    """What `measure` makes of the mixing and the batch's moments is what `forward` is given afterwards."""
    of = normaliser()
    asked: list[Mixing] = []
    own, logits = moments(EVERY, SHIFT)

    def measure(mixing: Mixing) -> tuple[np.ndarray, Moments]:
        asked.append(mixing)
        return logits, own

    _, used, _ = of.settle(of.begin(), 64.0, measure)
    last = asked[-1]
    m = last.before.mean + last.share * (own.mean - last.before.mean)
    v = (1 - last.share) * last.before.variance + last.share * own.variance
    v += last.share * (1 - last.share) * (own.mean - last.before.mean) ** 2
    np.testing.assert_allclose(last.gain * m + last.offset, used.mean, rtol=1e-6)
    np.testing.assert_allclose(last.factor * (v + last.floor) ** last.power, used.variance, rtol=1e-6)
    first = asked[0]
    np.testing.assert_allclose(first.gain * m + first.offset, SOURCE.mean)
    np.testing.assert_allclose(first.factor * (v + first.floor) ** first.power, SOURCE.variance)


def test_fixed_statistics_are_used_whatever_the_batch() -> None:
    mixing = fixed(SOURCE)
    assert not mixing.gain.any() and not mixing.power.any() and mixing.share == 0
    np.testing.assert_array_equal(mixing.offset, SOURCE.mean)
    np.testing.assert_array_equal(mixing.factor, SOURCE.variance)


def test_without_source_images_it_stays_near_the_source_and_says_so() -> None:
    of = Normaliser(LAYERS, SOURCE, None, CLASSES)
    assert not of.knows_content
    used, _ = settled(of, ONE)
    content_moves = OF_CLASS[2] - SOURCE.mean
    assert np.abs(used.mean - SOURCE.mean).mean() < np.abs(content_moves).mean()
    far, _ = settled(of, EVERY, 5 * SHIFT)
    np.testing.assert_allclose(far.mean, SOURCE.mean + 5 * SHIFT, rtol=0.2, atol=0.5)


def test_a_state_goes_to_arrays_and_back() -> None:
    of = normaliser()
    _, state = settled(of, EVERY, SHIFT)
    images = np.random.default_rng(0).random((2, 3, 8, 8)).astype(np.float32)
    state = replace(state, last=image_signals(images)[-1].astype(np.float64))
    again = of.restored(state.arrays())
    own, logits = moments(ONE, SHIFT)
    a, b = (of.follow(s, 20.0, own, logits)[0] for s in (state, again))
    assert np.array_equal(of.statistics(a).mean, of.statistics(b).mean)
    assert np.array_equal(a.arrays()["average.variance"], b.arrays()["average.variance"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("average.mean"), "not whole"),
        (lambda a: a.update({"average.mean": np.zeros(3)}), "another network"),
        (lambda a: a.update({"average.mean": np.full(CHANNELS, np.nan)}), "not finite"),
        (lambda a: a.update({"recent.variance": np.full(CHANNELS, -1.0)}), "negative"),
        (lambda a: a.update({"last": np.zeros(3)}), "signals of other images"),
        (lambda a: a.update({"code": np.zeros(9)}), "content of other classes"),
    ],
)
def test_a_state_of_another_network_or_damaged_is_refused(change, message: str) -> None:  # type: ignore[no-untyped-def]
    of = normaliser()
    arrays = settled(of, EVERY)[1].arrays()
    change(arrays)
    with pytest.raises(ValueError, match=message):
        of.restored(arrays)
