"""Fits over batch size: they find the truth, name the form, and say when they cannot."""

from __future__ import annotations

import numpy as np
import pytest

from edgetta.errors import UsageError
from edgetta.offline.learning_rate import DampingPoint, fit_damping, fit_form, fit_forms
from edgetta.offline.learning_rate.fit import exceedance
from edgetta.offline.learning_rate.interval import mean_interval, ratio_interval
from edgetta.rate_law import inflation

SIZES = (4, 8, 16, 32, 64, 128, 256)


def batches(
    form: str, limit: float, crossover: float, *, spread: float = 0.1, seed: int = 0
) -> dict[int, list[float]]:
    """Eight noisy eigenvalues per batch size, of a known law."""
    generator = np.random.default_rng(seed)
    return {
        size: (limit * inflation(form, size / crossover) * np.exp(spread * generator.standard_normal(8))).tolist()
        for size in SIZES
    }


@pytest.mark.parametrize("form", ["marchenko_pastur", "wigner"])
def test_the_true_law_is_found_and_lies_in_the_intervals(form: str) -> None:
    hits = 0
    for seed in range(6):
        support = fit_forms(batches(form, 10.0, 60.0, seed=seed), replicates=100)
        assert support.choice == form and f"{form} is supported" in support.reason
        fit = support.fits[form]
        assert fit.limit == pytest.approx(10, rel=0.25) and fit.crossover == pytest.approx(60, rel=0.4)
        assert fit.eigenvalue(2) == pytest.approx(10 * float(inflation(form, 2 / 60)), rel=0.2)
        assert fit.plausible and max(map(abs, fit.residuals)) < 0.2
        hits += 10.0 in fit.limit_interval and 60.0 in fit.crossover_interval
        low, high = fit.interval(16).low, fit.interval(16).high
        assert low < fit.eigenvalue(16) < high
    assert hits >= 5


def test_the_slope_is_what_the_noise_adds_per_inverse_batch() -> None:
    fit = fit_form(batches("marchenko_pastur", 10.0, 60.0, spread=1e-6), "marchenko_pastur", replicates=10)
    assert fit.slope == pytest.approx(600, rel=0.01)
    assert fit.eigenvalue(8) == pytest.approx(10 + 600 / 8, rel=0.01)


def test_above_the_crossover_the_forms_cannot_be_told_apart_and_the_careful_one_is_kept() -> None:
    support = fit_forms(batches("wigner", 10.0, 3.0), replicates=50)
    assert support.choice == "marchenko_pastur" and "cannot tell" in support.reason
    first, second = support.fits["marchenko_pastur"], support.fits["wigner"]
    assert first.eigenvalue(1) >= second.eigenvalue(1) * 0.999


def test_data_that_follow_neither_form_are_kept_as_measured() -> None:
    values = {size: [1.0 + 5 * (k % 2) + 0.01 * j for j in range(8)] for k, size in enumerate(SIZES)}
    support = fit_forms(values, replicates=20)
    assert support.choice == "measured" and support.fit is None and "neither" in support.reason


def test_a_crossover_outside_the_data_comes_out_as_such() -> None:
    noise = fit_form({size: [100.0 / size] * 3 for size in SIZES}, "marchenko_pastur", replicates=10)
    assert noise.crossover > 1e4
    flat = fit_form({size: [7.0] * 3 for size in SIZES}, "wigner", replicates=10)
    assert flat.crossover < 0.1 and flat.limit == pytest.approx(7, rel=0.02)


def test_fits_need_two_sizes_and_positive_values() -> None:
    with pytest.raises(UsageError, match="two batch sizes at least"):
        fit_form({8: [1.0, 2.0]}, "wigner")
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(UsageError, match="not positive"):
            fit_forms({8: [1.0, 2.0], 16: [1.0, wrong]})
    two = fit_forms({8: [2.0], 64: [1.0]}, replicates=10)
    assert two.choice == "marchenko_pastur"


def test_chi_square_exceedance_agrees_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    for value, freedom in ((0.5, 1), (3.0, 2), (9.0, 3), (12.0, 5), (2.0, 8)):
        assert exceedance(value, freedom) == pytest.approx(stats.chi2.sf(value, freedom), abs=0.015)
    assert exceedance(0, 3) == 1


def test_intervals_cover_the_truth_also_for_small_samples() -> None:
    generator = np.random.default_rng(0)
    for count in (4, 8):
        hits = sum(5.0 in mean_interval(generator.normal(5, 1, count), replicates=300, seed=k) for k in range(200))
        assert 0.9 <= hits / 200 <= 0.99
    alone = mean_interval(np.array([3.0]))
    assert (alone.value, alone.low, alone.high) == (3.0, -np.inf, np.inf)
    above = np.array([1.0, 2.0, 3.0])
    assert ratio_interval(2 * above, above).low == pytest.approx(2)


def test_the_damping_law_finds_its_constant_and_exponent() -> None:
    generator = np.random.default_rng(0)
    points = [
        DampingPoint(rate, size, 3.0 * (rate / size) ** 1.0 * float(np.exp(0.05 * generator.standard_normal())))
        for rate in (0.5, 1.0)
        for size in SIZES
    ]
    law = fit_damping(points)
    assert 3.0 in law.constant and law.proportional
    assert law.exponent.value == pytest.approx(1, abs=0.05)
    assert law.damping(1.0, 64) == pytest.approx(3 / 64, rel=0.1)
    assert max(map(abs, law.residuals)) < 0.2
    rooted = fit_damping([DampingPoint(1.0, size, (1 / size) ** 0.5) for size in SIZES])
    assert not rooted.proportional and rooted.exponent.value == pytest.approx(0.5)
    with pytest.raises(UsageError, match="three positive points"):
        fit_damping(points[:2])
    with pytest.raises(UsageError, match="different rates"):
        fit_damping([points[0]] * 3)
