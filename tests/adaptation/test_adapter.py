"""The adapter on real engines: predict, learn, follow, undo."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edgetta.adaptation.adapter import Adapter, merged
from edgetta.adaptation.config import AdaptConfig
from edgetta.adaptation.objective import log_softmax
from edgetta.adaptation.step_plan import StepPlan
from edgetta.engines.contract import Engine, Mixing, Moments
from edgetta.engines.onnxruntime import OnnxRuntimeEngine
from edgetta.engines.torch import TorchEngine
from tests.adaptation.backbones import small_programs
from tests.adaptation.pictures import pictures
from tests.small_bundle import small_content

ALWAYS = AdaptConfig(learning_rate=0.05, entropy_margin=1.0, window=8, small_batch=4, hold_back=False)
ENGINES = {"torch": TorchEngine, "onnxruntime": OnnxRuntimeEngine}


def engine(name: str = "torch") -> Engine:
    return ENGINES[name](small_programs())  # type: ignore[no-any-return]


def adapter(config: AdaptConfig = ALWAYS, name: str = "torch", content: bool = True) -> Adapter:
    programs = small_programs()
    return Adapter(engine(name), config, small_content(programs) if content else None)


def same(a: Adapter, b: Adapter) -> bool:
    """Whether both stand where the other does; what steps took in seconds apart."""
    one, other = a.state.arrays(), b.state.arrays()
    return one.keys() == other.keys() and all(
        np.array_equal(one[name], other[name]) for name in one if name != "spent"
    )


@pytest.mark.parametrize("name", list(ENGINES))
def test_a_step_predicts_then_learns(name: str) -> None:
    adapting = adapter(name=name)
    before = adapting.state
    result = adapting.step(pictures(16))
    assert result.adapted and result.reason == "adapted" and 12 <= result.kept <= 16 and result.kept_bytes > 0
    assert result.logits.shape == (16, 5) and result.logits.dtype == np.float32
    assert not np.array_equal(before.parameters, adapting.state.parameters)
    assert adapting.state.counters() == {"steps": 1, "updates": 1, "skipped": 0, "empty": 0, "unusable": 0}
    assert math.isfinite(result.objective) and result.regulariser > 0


def test_engines_make_the_same_steps() -> None:
    one, other = adapter(), adapter(name="onnxruntime")
    for seed in range(4):
        a, b = one.step(pictures(16, seed)), other.step(pictures(16, seed))
        np.testing.assert_allclose(a.logits, b.logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(one.state.parameters, other.state.parameters, rtol=1e-3, atol=1e-4)


def test_the_shipped_network_is_one_word_away() -> None:
    source = adapter(AdaptConfig(when="off", batch_norm="source"))
    programs = source.engine.programs
    for seed in range(2):
        logits = source.step(pictures(8, seed)).logits
        np.testing.assert_array_equal(
            logits, source.engine.predict(pictures(8, seed), programs.shipped, programs.source)
        )


def test_statistics_of_the_batch_are_those_of_measure() -> None:
    batch = adapter(AdaptConfig(when="off", batch_norm="batch"))
    programs = batch.engine.programs
    mixing = Mixing.plain(Moments(programs.source.mean, programs.source.variance), 1.0)
    expected = batch.engine.measure(pictures(8), programs.shipped, mixing)[0]
    np.testing.assert_array_equal(batch.step(pictures(8)).logits, expected)


def test_off_follows_the_stream_and_learns_nothing() -> None:
    off = adapter(replace(ALWAYS, when="off"))
    for seed in range(3):
        assert off.step(pictures(32, seed, 0.4)).reason == "off"
    assert np.array_equal(off.state.parameters, off.engine.programs.shipped)
    assert off.state.stream.average.count > 60 and off.normaliser.evidence(off.state.stream) > 0


def test_only_a_share_of_a_batch_is_learnt_from_and_all_of_it_is_predicted() -> None:
    config = replace(ALWAYS, learn_images=8)
    part, whole = adapter(config), adapter(replace(ALWAYS, when="off"))
    for seed in range(12):  # beyond the first images, which are all measured
        some, every = part.step(pictures(32, seed)), whole.step(pictures(32, seed))
        assert some.kept <= 8 and some.logits.shape == every.logits.shape
    assert np.isfinite(some.logits).all()


@pytest.mark.parametrize("name", list(ENGINES))
def test_recomputing_gives_the_gradients_of_keeping(name: str) -> None:
    kept, again = adapter(name=name), adapter(name=name)
    kept.step(pictures(16))
    again.step(pictures(16), StepPlan(keep=False))
    np.testing.assert_allclose(kept.state.parameters, again.state.parameters, rtol=1e-3, atol=1e-5)


def test_small_batches_are_gathered() -> None:
    single = adapter()
    results = [single.step(pictures(1, seed)) for seed in range(16)]
    assert [result.adapted for result in results] == ([False] * 7 + [True]) * 2
    assert {result.reason for result in results} == {"waiting", "adapted"}
    assert results[7].kept == 8, "the update sees the window"


def test_a_still_camera_teaches_nothing() -> None:
    single = adapter()
    frame = pictures(1)
    reasons = [single.step(frame).reason for _ in range(20)]
    assert set(reasons[1:]) == {"nothing new"} and single.state.updates == 0
    assert single.state.stream.average.count == pytest.approx(1.0)
    still = adapter()
    still.step(pictures(16))
    before = still.state.parameters
    assert still.step(np.repeat(pictures(16)[-1:], 16, 0)).reason == "nothing new"
    assert np.array_equal(before, still.state.parameters)


def test_an_image_that_is_not_finite_spoils_only_itself() -> None:
    whole, others = adapter(), adapter()
    for one in (whole, others):
        one.step(pictures(16))
    batch = pictures(17, 1)
    batch[3] = np.nan
    good = np.arange(17) != 3
    result, expected = whole.step(batch), others.step(batch[good])
    assert result.adapted and whole.state.unusable == 1
    np.testing.assert_array_equal(result.logits[good], expected.logits)
    assert np.isnan(result.logits[3]).all() and np.array_equal(whole.state.parameters, others.state.parameters)


def test_a_batch_without_a_usable_image_moves_nothing() -> None:
    adapting = adapter()
    adapting.step(pictures(16))
    before = adapting.state
    result = adapting.step(np.full((4, 3, 16, 16), np.inf, np.float32))
    assert result.reason == "non-finite" and not result.adapted and result.logits.shape == (4, 5)
    assert np.array_equal(before.parameters, adapting.state.parameters)
    assert adapting.state.stream is before.stream and adapting.state.unusable == 4
    assert adapting.step(pictures(16, 2)).adapted


@pytest.mark.parametrize("where", ["predict", "measure", "forward", "backward"])
def test_a_step_that_fails_has_not_been(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(ALWAYS, change=math.inf)
    straight, failing = adapter(config), adapter(config)
    for seed in range(9):  # beyond the first images, all of which are measured
        straight.step(pictures(64, seed))
        failing.step(pictures(64, seed))
    assert failing.state.stream.average.count > 256
    called = getattr(failing.engine, where)
    calls = iter(range(100))

    def broken(*arguments: Any, **options: Any) -> Any:
        if next(calls) == 0:
            raise MemoryError("no room")
        return called(*arguments, **options)

    monkeypatch.setattr(failing.engine, where, broken)
    if where == "measure":  # which beyond the first images those that are not learnt from need
        failing.config = straight.config = replace(config, when="off")
        failing._due = straight._due = lambda *_: False
    before = failing.state
    with pytest.raises(MemoryError):
        failing.step(pictures(64, 9))
    assert failing.state is before
    monkeypatch.undo()
    np.testing.assert_array_equal(failing.step(pictures(64, 9)).logits, straight.step(pictures(64, 9)).logits)
    assert same(failing, straight)


def test_meta_networks_alone_learn_where_affine_values_are_left() -> None:
    adapting = adapter(replace(ALWAYS, adapt_affine=False, anchor=0.0))
    layout = adapting.engine.programs.parameters
    before = layout.split(adapting.state.parameters)
    adapting.step(pictures(16))
    moved = {name for name, array in layout.split(adapting.state.parameters).items() if (array != before[name]).any()}
    assert moved and all(name.startswith("metas.") for name in moved)
    assert any(not name.startswith("metas.") for name in layout.shapes)


def test_the_anchor_leads_back_to_what_was_shipped() -> None:
    free, held = adapter(replace(ALWAYS, anchor=0.0)), adapter(replace(ALWAYS, anchor=0.5))
    for seed in range(4):
        free.step(pictures(16, seed))
        held.step(pictures(16, seed))
    shipped = free.engine.programs.shipped
    assert np.linalg.norm(held.state.parameters - shipped) < 0.6 * np.linalg.norm(free.state.parameters - shipped)


def test_mirrored_predictions_are_means_of_probabilities() -> None:
    off = AdaptConfig(when="off", batch_norm="source")
    plain, mirrored = adapter(off), adapter(replace(off, mirrored=True))
    frames = pictures(4)
    p = np.exp(log_softmax(plain.step(frames).logits)) + np.exp(log_softmax(plain.step(frames[..., ::-1]).logits))
    np.testing.assert_allclose(np.exp(mirrored.step(frames).logits), p / 2, rtol=1e-5)


def test_predicting_moves_statistics_unless_told_not_to() -> None:
    adapting = adapter()
    adapting.predict(pictures(16), track=False)
    assert adapting.state.stream.average.count == 0
    adapting.predict(pictures(16))
    assert adapting.state.stream.average.count > 10 and adapting.state.steps == 0


def test_results_of_pieces_are_that_of_the_batch() -> None:
    adapting = adapter(replace(ALWAYS, small_batch=1))
    pieces = [adapting.step(pictures(8, seed)) for seed in range(2)]
    whole = merged(pieces)
    assert whole.logits.shape == (16, 5) and whole.kept == 16 and whole.adapted
    assert merged(pieces[:1]) is pieces[0]


def sure(of: Adapter, shipped: float, adapted: float) -> None:
    """Have the shipped network's logits multiplied by one number and the adapted network's by another."""
    predict, measure = of.engine.predict, of.engine.measure
    start = of.engine.programs.shipped

    def predicting(frames: np.ndarray, parameters: np.ndarray, statistics: Any) -> np.ndarray:
        here = parameters is start and statistics is of.engine.programs.source
        return predict(frames, parameters, statistics) * np.float32(shipped if here else adapted)

    def measuring(frames: np.ndarray, parameters: np.ndarray, mixing: Mixing) -> tuple[np.ndarray, Moments]:
        logits, own = measure(frames, parameters, mixing)
        return logits * np.float32(adapted), own

    of.engine.predict, of.engine.measure = predicting, measuring  # type: ignore[method-assign]


@pytest.mark.parametrize("when", ["always", "off"])
def test_where_the_shipped_network_is_surer_it_predicts_until_it_is_not(when: str) -> None:
    adapting = adapter(replace(ALWAYS, when=when, hold_back=True))
    plain = engine()
    programs = plain.programs
    sure(adapting, 8.0, 0.1)
    for seed in range(3):
        result = adapting.step(pictures(32, seed, 0.3))
        expected = 8 * plain.predict(pictures(32, seed, 0.3), programs.shipped, programs.source)
        np.testing.assert_allclose(result.logits, expected, rtol=1e-5)
        assert not result.adapted
    comparison = adapting.state.stream.comparison
    assert comparison.held and comparison.times == 1 and adapting.state.updates == 0
    again = adapter(replace(ALWAYS, when=when, hold_back=True))
    again.state = adapting.state
    sure(again, 0.1, 8.0)
    for seed in range(3, 40):
        result = again.step(pictures(32, seed, 0.3))
    assert not again.state.stream.comparison.held and result.adapted == (when == "always")


def test_agreement_with_the_shipped_network_is_counted() -> None:
    off = adapter(replace(ALWAYS, when="off", hold_back=True))
    programs = off.engine.programs
    logits = off.step(pictures(64)).logits
    shipped = off.engine.predict(pictures(64), programs.shipped, programs.source)
    comparison = off.state.stream.comparison
    assert comparison.images == 64
    if not comparison.held:
        assert comparison.agree == pytest.approx((logits.argmax(1) == shipped.argmax(1)).mean())
