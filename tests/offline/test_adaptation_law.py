"""The law that the device takes its rates from: what bounds its steps, the tuned height, the law that follows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from edgetta.adaptation.config import AdaptConfig
from edgetta.adaptation.objective import divergence
from edgetta.errors import UsageError
from edgetta.export.content import measure_content
from edgetta.offline.curvature import (
    DataSetTooSmallError,
    GaussNewtonOperator,
    HessianOperator,
    MemoryLimitError,
    NotFiniteError,
    extreme_eigenpairs,
)
from edgetta.offline.curvature.adaptation import adaptation_surface
from edgetta.offline.learning_rate.adaptation_curvature import (
    AdaptationCurvature,
    gradient_speed,
    measure_adaptation,
    mixing_of,
    settled_statistics,
)
from edgetta.offline.learning_rate.adaptation_law import (
    Tuning,
    adaptation_rates,
    first_divergence,
    rate_law,
    stream_error,
    tune_rate,
)
from edgetta.offline.learning_rate.ladder import BatchExtremes, Ladder, draw_batches
from edgetta.offline.network import Network
from edgetta.rate_law import RateLaw
from tests.adaptation.backbones import small_programs
from tests.offline.far_network import far_from_its_start as network

CONFIG = AdaptConfig(entropy_margin=1.0, regulariser=0.3, batch_norm="batch")
STREAM = replace(CONFIG, batch_norm="stream")
SIZES = (4, 8, 16)


def images(count: int = 40, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


DOMAINS = {"dark": images(seed=1) * 0.5, "bright": 1 - images(seed=2) * 0.5}
LABELLED = {name: (x, torch.arange(len(x)) % 5) for name, x in DOMAINS.items()}


@pytest.fixture(scope="module")
def measured() -> AdaptationCurvature:
    return measure_adaptation(network(), DOMAINS, CONFIG, SIZES, batches=2, probes=6, iterations=25)


def test_the_speed_is_the_fisher_product_along_the_gradient() -> None:
    """Where statistics are those of the source, and nothing of the gradient goes through them: no meta-network."""
    of = network("bias")
    batch, config = images(12, seed=5), replace(CONFIG, batch_norm="source", regulariser=0.0)
    statistics = of.programs.source
    found = gradient_speed(of.engine, batch.numpy(), config, statistics)
    gradient = of.engine.backward(
        (passed := of.engine.forward(batch.numpy(), of.programs.shipped, statistics)).residuals,
        _gradient_of_entropy(passed.logits),
        0.0,
        of.programs.shipped,
    )
    labels = torch.zeros(12, dtype=torch.int64)  # the Gauss-Newton matrix of cross-entropy does not depend on them
    surface = adaptation_surface(of.programs, "cross_entropy", statistics=statistics, moving=False)
    along = torch.from_numpy(gradient)
    fisher = GaussNewtonOperator(surface, (batch, labels), batch_size=12).product(along)
    assert found == pytest.approx(float(along @ fisher), rel=0.1)


def _gradient_of_entropy(logits: np.ndarray) -> np.ndarray:
    given = torch.from_numpy(logits).requires_grad_()
    probabilities = given.log_softmax(1)
    (-(probabilities.exp() * probabilities).sum(1).mean()).backward()
    assert given.grad is not None
    return given.grad.numpy()


def test_statistics_that_follow_the_step_take_part_of_the_change_back() -> None:
    of, config = network(), replace(CONFIG, regulariser=0.0)
    batch = images(12, seed=5).numpy()
    found = gradient_speed(of.engine, batch, config, None)
    assert found is not None
    # what a step of the device itself does, no momentum having gathered yet
    rate = (2 * 1e-3 / found) ** 0.5
    adapter = of.adapter(replace(config, learning_rate=rate, momentum=0.0, small_batch=1, anchor=0.0))
    before = adapter.step(batch).logits
    after = of.engine.measure(batch, adapter.state.parameters, mixing_of(of.engine, None))[0]
    assert divergence(before, after) == pytest.approx(1e-3, rel=0.2)


def test_no_confident_image_no_speed() -> None:
    config = replace(CONFIG, entropy_margin=1e-6)
    assert gradient_speed(network().engine, images(8).numpy(), config, None) is None
    with pytest.raises(NotFiniteError, match="no batch of 4 has an image below the entropy margin"):
        measure_adaptation(network(), DOMAINS, config, (4,), batches=1, probes=2)


def test_only_what_adapts_is_measured() -> None:
    of, batch, config = network(), images(12, seed=5).numpy(), replace(CONFIG, regulariser=0.0)
    alone = gradient_speed(of.engine, batch, replace(config, adapt_affine=False), None)
    everything = gradient_speed(of.engine, batch, config, None)
    assert alone is not None and everything is not None and alone != everything


def test_eigenvalues_are_those_of_batches_of_one_domain_each(measured: AdaptationCurvature) -> None:
    assert measured.ladder.batch_sizes == SIZES and measured.domains == ("dark", "bright")
    rung = measured.ladder.rungs[2]
    assert [len(r.largest) for r in measured.ladder.rungs] == [2, 2, 2]
    for number, domain in enumerate(DOMAINS.values()):
        (indices,) = draw_batches(40, 16, 1, number)
        surface = adaptation_surface(network().programs, regulariser=CONFIG.regulariser, margin=1.0)
        assert surface.dimension == network().programs.parameters.size, "all that adapts, not the meta-networks alone"
        exact = extreme_eigenpairs(
            HessianOperator(surface, domain[indices], batch_size=16), iterations=60, tolerance=1e-4
        )
        assert rung.magnitudes[number] == pytest.approx(exact.magnitude, rel=0.05)
        assert rung.largest[number] == pytest.approx(exact.largest.values[0], abs=0.1 * exact.magnitude)
        assert rung.smallest[number] == pytest.approx(exact.smallest.values[0], abs=0.1 * exact.magnitude)


@pytest.mark.parametrize("size", [4, 20])
def test_a_stream_is_measured_with_the_statistics_that_it_leads_to(size: int) -> None:
    programs = small_programs()
    of = Network(programs, measure_content(programs, images(300, seed=9).split(50)))
    adapter = of.adapter(replace(STREAM, when="off"))
    for k in range(0, 40, size):
        adapter.step(DOMAINS["dark"][k : k + size].numpy())
    expected = adapter.normaliser.statistics(adapter.state.stream)
    found = settled_statistics(of, DOMAINS["dark"], size, STREAM)
    assert found is not None
    np.testing.assert_array_equal(found.mean, expected.mean)
    assert float(np.abs(found.mean - of.programs.source.mean).max()) > 1e-3, "the domain is not the source's"
    assert settled_statistics(of, DOMAINS["dark"], size, CONFIG) is None, "of each batch: nothing to settle"
    assert settled_statistics(of, DOMAINS["dark"], size, replace(CONFIG, batch_norm="source")) is of.programs.source


def test_a_law_can_be_measured_for_a_stream() -> None:
    of = network()
    found = measure_adaptation(of, DOMAINS, STREAM, (4, 16), batches=2, probes=2, iterations=4, tolerance=0.5)
    rates = adaptation_rates(of, LABELLED, STREAM, found, batch_size=16, rates=(1e-3,))
    smaller = first_divergence(of, LABELLED, STREAM, rates.law().rate(4) / 10, 4)
    assert smaller == pytest.approx(rates.expected[4] / 100, rel=0.5), "the statistics are the same before and after"


def curvature(speeds: dict[int, float], largest: dict[int, float]) -> AdaptationCurvature:
    """Without spread, so that laws are exact."""
    rungs = tuple(BatchExtremes(size, (value,) * 3, (-value / 2,) * 3, 3, 0) for size, value in largest.items())
    return AdaptationCurvature(Ladder(rungs, 100), {k: (v,) * 3 for k, v in speeds.items()}, ("dark",), 0)


SPEEDS = {4: 64.0, 16: 4.0, 64: 1.0}
LARGEST = {4: 17.0, 16: 5.0, 64: 2.0}  # 1 + 64 / batch: multiplicative noise


def test_the_divergence_law_lets_every_image_change_predictions_equally_much() -> None:
    law = rate_law(curvature(SPEEDS, LARGEST), 64, 0.03, CONFIG, "divergence")
    shares = [(size / 64) ** 0.5 for size in SPEEDS]
    expected = np.multiply([0.03 / 8, 0.03 / 2, 0.03], shares)
    np.testing.assert_allclose([law.rate(size) for size in SPEEDS], expected, rtol=1e-12)
    assert law.optimizer == "momentum" and law.momentum == 0.9 and law.source["tuned"] == "0.03 at batch size 64"
    per_image = [0.5 * law.rate(size) ** 2 * speed / size for size, speed in SPEEDS.items()]
    np.testing.assert_allclose(per_image, per_image[0])


def test_the_eigenvalue_law_is_inverse_to_the_largest_magnitude() -> None:
    law = rate_law(curvature(SPEEDS, LARGEST), 64, 0.03, CONFIG, "eigenvalue")
    expected = [0.03 * 2 / value for value in LARGEST.values()]
    np.testing.assert_allclose([law.rate(size) for size in LARGEST], expected, rtol=0.02)
    assert law.form == "marchenko_pastur" and law.rate(1e9) == pytest.approx(0.06, rel=0.05)


def test_intervals_come_from_the_spread_over_batches(measured: AdaptationCurvature) -> None:
    for bound in ("divergence", "eigenvalue"):
        law = rate_law(measured, 16, 1e-2, CONFIG, bound)  # type: ignore[arg-type]
        for size in SIZES:
            low, high = law.interval(size)
            assert 0 < low < law.rate(size) < high
        assert law.rate(16) == pytest.approx(1e-2)
        assert RateLaw.from_json(law.to_json()) == law


def test_errors_are_those_of_an_adapter_on_the_stream() -> None:
    of = network()
    tuning = tune_rate(of, LABELLED, CONFIG, 8, (1e-3, 0.5))
    assert list(tuning.errors) == [0.0, 1e-3, 0.5]
    wrong = 0
    for x, y in LABELLED.values():
        for k in range(0, 40, 8):
            batch = x[k : k + 8].numpy()
            logits = of.engine.measure(batch, of.programs.shipped, mixing_of(of.engine, None))[0]
            wrong += int((logits.argmax(1) != y[k : k + 8].numpy()).sum())
    assert tuning.errors[0.0] == pytest.approx(wrong / 80)
    whole = replace(CONFIG, learning_rate=0.5, small_batch=1, learn_images=8)
    assert tuning.errors[0.5] == stream_error(of, LABELLED, whole, 8)
    assert tuning.best in (1e-3, 0.5)


def test_of_rates_that_err_alike_the_smallest_is_taken() -> None:
    assert Tuning(64, {0.0: 0.1, 1e-2: 0.3, 1e-3: 0.3, 1e-1: 0.4}).best == 1e-3


def test_the_law_expects_what_the_first_updates_do(measured: AdaptationCurvature) -> None:
    of = network()
    rates = adaptation_rates(of, LABELLED, CONFIG, measured, batch_size=16, rates=(1e-3, 1e-2))
    law = rates.law()
    assert law.rate(16) == rates.tuning.best and len(law.divergence) == len(SIZES)
    assert law.divergence[0] == first_divergence(of, LABELLED, CONFIG, law.rate(4), 4)
    smaller = first_divergence(of, LABELLED, CONFIG, law.rate(4) / 10, 4)
    assert smaller == pytest.approx(law.divergence[0] / 100, rel=0.5), "it grows with the square of the rate"
    facts = rates.to_json()
    assert RateLaw.from_json(facts["law"]) == law and RateLaw.from_json(facts["other"]).source["bound"] == "eigenvalue"
    adapter = of.adapter(replace(CONFIG, small_batch=1), law)
    for k in range(0, 32, 8):
        adapter.step(DOMAINS["bright"][k : k + 8].numpy())
    assert len(adapter.state.damping.ratios) == CONFIG.watched
    assert adapter.state.damping.factor > 0.3, "a stream like the source's is not damped much"


def test_bad_input_is_named() -> None:
    with pytest.raises(DataSetTooSmallError, match="64 is larger than the 40 images under dark"):
        measure_adaptation(network(), DOMAINS, CONFIG, (4, 64))
    with pytest.raises(UsageError, match="a domain"):
        measure_adaptation(network(), {}, CONFIG, (4,))
    with pytest.raises(MemoryLimitError, match="smaller batch size"):
        measure_adaptation(network(), DOMAINS, CONFIG, (32,), memory_limit=1000)
    with pytest.raises(UsageError, match="batch size 5 was not measured; measured are 4, 16, 64"):
        rate_law(curvature(SPEEDS, LARGEST), 5, 0.03, CONFIG, "divergence")
    with pytest.raises(UsageError, match="give positive ones"):
        tune_rate(network(), LABELLED, CONFIG, 8, (0.0,))
