"""The law that the device takes its rates from: what bounds its steps, the tuned height, the law that follows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from edgetta.segmented.adapter import AdaptConfig, Adapter
from edgetta.adaptation.network import AdaptiveNetwork
from edgetta.segmented.step_rate import divergence
from edgetta.errors import UsageError
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
    settled,
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
from edgetta.rate_law import RateLaw
from tests.adaptation.backbones import network_of, small_model

CONFIG = AdaptConfig(entropy_margin=1.0, regulariser=0.3, statistics="batch")
STREAM = replace(CONFIG, statistics="stream")
SIZES = (4, 8, 16)


def images(count: int = 40, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


DOMAINS = {"dark": images(seed=1) * 0.5, "bright": 1 - images(seed=2) * 0.5}
LABELLED = {name: (x, torch.arange(len(x)) % 5) for name, x in DOMAINS.items()}


def network(policy: str = "auto", dtype: torch.dtype = torch.float32) -> AdaptiveNetwork:
    return network_of(small_model(), policy, dtype=dtype)  # type: ignore[arg-type]


def unmoved(of: AdaptiveNetwork, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, before[name]) for name, tensor in of.state_dict().items())


def state(of: AdaptiveNetwork) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in of.state_dict().items()}


@pytest.fixture(scope="module")
def measured() -> AdaptationCurvature:
    return measure_adaptation(network(), DOMAINS, CONFIG, SIZES, batches=2, probes=6, iterations=25)


@pytest.mark.parametrize("policy", ["source", "ema"])
def test_the_speed_is_the_fisher_product_along_the_gradient(policy: str) -> None:
    of = network(policy, torch.float64)
    batch = images(12, seed=5).double()
    surface = adaptation_surface(of, regulariser=CONFIG.regulariser, margin=CONFIG.entropy_margin)
    gradient = HessianOperator(surface, batch, batch_size=12).gradient()
    labels = torch.zeros(12, dtype=torch.int64)  # the Gauss-Newton matrix of cross-entropy does not depend on them
    fisher = GaussNewtonOperator(adaptation_surface(of, "cross_entropy"), (batch, labels), batch_size=12)
    before = state(of)
    found = gradient_speed(of, batch, CONFIG)
    assert found == pytest.approx(float(gradient @ fisher.product(gradient)), rel=0.1)
    assert unmoved(of, before) and all(p.grad is None for p in of.parameters())


def test_statistics_that_follow_the_step_take_part_of_the_change_back() -> None:
    of = network("batch", torch.float64)
    batch = images(12, seed=5).double()
    found = gradient_speed(of, batch, CONFIG)
    assert found is not None
    # what a step of the device itself does, no momentum having gathered yet
    rate = (2 * 1e-5 / found) ** 0.5
    adapter = Adapter(of, replace(CONFIG, learning_rate=rate, momentum=0.0, small_batch=1))
    before = adapter.step(batch).logits
    assert divergence(before, of.forward(batch, keep=False, track=False)[0]) == pytest.approx(1e-5, rel=0.1)


def test_no_confident_image_no_speed() -> None:
    assert gradient_speed(network(), images(8), replace(CONFIG, entropy_margin=1e-6)) is None
    with pytest.raises(NotFiniteError, match="no batch of 4 has an image below the entropy margin"):
        measure_adaptation(network(), DOMAINS, replace(CONFIG, entropy_margin=1e-6), (4,), batches=1, probes=2)


def test_eigenvalues_are_those_of_batches_of_one_domain_each(measured: AdaptationCurvature) -> None:
    assert measured.ladder.batch_sizes == SIZES and measured.domains == ("dark", "bright")
    rung = measured.ladder.rungs[2]
    assert [len(r.largest) for r in measured.ladder.rungs] == [2, 2, 2]
    for number, domain in enumerate(DOMAINS.values()):
        (indices,) = draw_batches(40, 16, 1, number)
        surface = adaptation_surface(network(), regulariser=CONFIG.regulariser, margin=1.0)
        exact = extreme_eigenpairs(
            HessianOperator(surface, domain[indices], batch_size=16), iterations=60, tolerance=1e-4
        )
        assert rung.magnitudes[number] == pytest.approx(exact.magnitude, rel=0.05)
        assert rung.largest[number] == pytest.approx(exact.largest.values[0], abs=0.1 * exact.magnitude)
        assert rung.smallest[number] == pytest.approx(exact.smallest.values[0], abs=0.1 * exact.magnitude)


def test_small_batches_are_measured_with_statistics_of_their_domain() -> None:
    of = network("ema")
    before = state(of)
    with settled(of, DOMAINS["dark"], 4, CONFIG):
        settled_state = state(of)
    assert unmoved(of, before) and not all(torch.equal(before[k], settled_state[k]) for k in before)
    batchwise = network("batch")
    start = state(batchwise)
    with settled(batchwise, DOMAINS["dark"], 4, CONFIG):
        assert unmoved(batchwise, start), "statistics of each batch have nothing to settle"


@pytest.mark.parametrize("size", [4, 20])
def test_a_stream_is_measured_with_the_average_over_its_images(size: int) -> None:
    of = network("auto")
    before = state(of)
    adapter = Adapter(of, replace(STREAM, when="off"))
    for k in range(0, 40, size):
        adapter.step(DOMAINS["dark"][k : k + size])
    averaged = state(of)
    of.load_state_dict(before)
    with settled(of, DOMAINS["dark"], size, STREAM):
        assert unmoved(of, averaged)
        of.forward(DOMAINS["bright"][:20], keep=False)
        assert unmoved(of, averaged), "a probe moves nothing"
    assert unmoved(of, before) and of.batch_norm == "auto"


def test_a_law_can_be_measured_for_a_stream() -> None:
    of = network("auto")
    found = measure_adaptation(of, DOMAINS, STREAM, (4, 16), batches=2, probes=2, iterations=4, tolerance=0.5)
    rates = adaptation_rates(of, LABELLED, STREAM, found, batch_size=16, rates=(1e-3,))
    smaller = first_divergence(of, LABELLED, STREAM, rates.law().rate(4) / 10, 4)
    assert smaller == pytest.approx(rates.expected[4] / 100, rel=0.5), "the statistics are the same before and after"


def test_measuring_leaves_the_network_as_it_was() -> None:
    of = network()
    before = state(of)
    measure_adaptation(of, DOMAINS, CONFIG, (4, 16), batches=2, probes=2, iterations=4, tolerance=0.5)
    tune_rate(of, LABELLED, CONFIG, 8, (1e-3,))
    first_divergence(of, LABELLED, CONFIG, 1e-3, 8)
    assert unmoved(of, before)


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
            wrong += int((of.forward(x[k : k + 8], keep=False)[0].argmax(1) != y[k : k + 8]).sum())
    assert tuning.errors[0.0] == pytest.approx(wrong / 80)
    assert tuning.errors[0.5] == stream_error(of, LABELLED, replace(CONFIG, learning_rate=0.5, small_batch=1), 8)
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
    adapter = Adapter(of, CONFIG, law)
    for k in range(0, 32, 8):
        adapter.step(DOMAINS["bright"][k : k + 8])
    assert adapter.rate.damping > 0.3, "a stream like the source's is not damped much"


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
