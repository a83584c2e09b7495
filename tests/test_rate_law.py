"""The rate law: its forms, its intervals, and the JSON that travels in a bundle."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pytest

from edgetta.errors import BundleError, UsageError
from edgetta.rate_law import RateLaw, inflation

SIZES = (8, 16, 32, 64)


def law(form: str = "marchenko_pastur", **changes: Any) -> RateLaw:
    facts: dict[str, Any] = {
        "optimizer": "sgd",
        "form": form,
        "batch_sizes": SIZES,
        "rates": (0.1, 0.2, 0.3, 0.35),
        "low": (0.05, 0.15, 0.28, 0.3),
        "high": (0.2, 0.25, 0.33, 0.4),
        "source": {"objective": "entropy"},
    }
    if form != "measured":
        facts |= {"limit": 0.4, "crossover": 24.0}
    return RateLaw(**(facts | changes))


def exponent(rates: RateLaw, batch_size: float) -> float:
    step = 1.001
    return float(np.log(rates.rate(batch_size * step) / rates.rate(batch_size / step)) / np.log(step**2))


def test_the_eigenvalue_form_is_linear_below_its_crossover_and_constant_beyond() -> None:
    rates = law()
    assert exponent(rates, 0.01) == pytest.approx(1, abs=1e-3)
    assert exponent(rates, 24) == pytest.approx(0.5, abs=1e-3)
    assert rates.rate(1e9) == pytest.approx(0.4)
    assert rates.rate(24) == pytest.approx(0.2)
    assert rates.regime(8) == "noise-limited" and rates.regime(64) == "curvature-limited"


def test_the_wigner_form_is_a_square_root_below_its_crossover_and_joins_smoothly() -> None:
    rates = law("wigner")
    assert exponent(rates, 2) == pytest.approx(0.5)
    assert rates.rate(23.999999) == pytest.approx(rates.rate(24.000001), rel=1e-6)
    assert rates.rate(48) == law().rate(48)
    assert rates.rate(6) == pytest.approx(0.4 * 0.5 / 2)
    np.testing.assert_allclose(inflation("wigner", np.array([0.25, 1, 4])), [4, 2, 1.25])
    with pytest.raises(ValueError):
        inflation("square_root", 1.0)


def test_the_square_root_form_is_capped_at_its_crossover() -> None:
    rates = law("square_root", optimizer="adam")
    assert rates.rate(6) == pytest.approx(0.2)
    assert rates.rate(24) == rates.rate(500) == pytest.approx(0.4)


def test_the_measured_form_goes_through_its_points_and_is_careful_outside() -> None:
    rates = law("measured")
    for size, rate in zip(SIZES, rates.rates, strict=True):
        assert rates.rate(size) == pytest.approx(rate)
    assert rates.rate(4) == pytest.approx(0.05) and rates.rate(1000) == pytest.approx(0.35)
    assert rates.rate(11.3137085) == pytest.approx((0.1 * 0.2) ** 0.5)
    assert rates.regime(10) == "noise-limited" and rates.regime(40) == "curvature-limited"


@pytest.mark.parametrize("form", ["marchenko_pastur", "wigner", "measured"])
def test_intervals_hold_the_rate_and_widen_outside_the_measured_sizes(form: str) -> None:
    rates = law(form)
    for size in (1, 2, 8, 20, 64, 300):
        low, high = rates.interval(size)
        assert 0 < low < rates.rate(size) < high
    low, high = law("measured").interval(16)
    assert (low, high) == (pytest.approx(0.15), pytest.approx(0.25))
    widths = [np.log(np.divide(*reversed(rates.interval(size)))) for size in (64, 128, 256)]
    assert widths[1] == pytest.approx(2 * widths[0]) and widths[2] == pytest.approx(3 * widths[0])


def test_a_fraction_scales_rate_and_interval() -> None:
    whole, half = law(), law(fraction=0.5)
    assert half.rate(16) == pytest.approx(whole.rate(16) / 2)
    assert half.stable_rate(16) == whole.stable_rate(16)
    np.testing.assert_allclose(half.interval(16), np.array(whole.interval(16)) / 2)


def test_the_expected_divergence_is_interpolated_and_dropped_with_the_rate_it_belongs_to() -> None:
    rates = law("measured", divergence=(4e-2, 1e-2, 1e-2, 1e-3))
    assert rates.expected_divergence(8) == pytest.approx(4e-2) and rates.expected_divergence(2) == pytest.approx(4e-2)
    assert rates.expected_divergence(8 * 2**0.5) == pytest.approx(2e-2)
    assert rates.expected_divergence(1000) == pytest.approx(1e-3)
    assert RateLaw.from_json(rates.to_json()) == rates
    with pytest.raises(UsageError, match="not measured"):
        rates.anchored(64, 0.01).expected_divergence(8)
    with pytest.raises(BundleError, match="divergence has 1 entries for 4"):
        law(divergence=(0.1,))


def test_anchoring_keeps_the_shape() -> None:
    anchored = law().anchored(64, 0.01)
    assert anchored.rate(64) == pytest.approx(0.01)
    assert anchored.rate(8) / anchored.rate(64) == pytest.approx(law().rate(8) / law().rate(64))
    with pytest.raises(BundleError, match="rate holds 0"):
        law().anchored(64, 0)


@pytest.mark.parametrize("form", ["marchenko_pastur", "wigner", "square_root", "measured"])
def test_json_keeps_everything(form: str) -> None:
    before = law(form, fraction=0.3, momentum=0.9)
    after = RateLaw.from_json(json.loads(json.dumps(before.to_json())))
    assert after == before
    assert after.rate(20) == before.rate(20)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version is 2"),
        ({"optimizer": "lion"}, "'lion' is not one of"),
        ({"form": "linear"}, "'linear' is not one of"),
        ({"rates": [0.1, 0.2, 0.3]}, "rates has 3 entries for 4"),
        ({"rates": [0.1, float("nan"), 0.3, 0.35]}, "rates holds nan"),
        ({"rates": [0.1, "0.2", 0.3, 0.35]}, "rates holds '0.2'"),
        ({"rates": 0.1}, "rates is not a list"),
        ({"low": [0.15, 0.15, 0.28, 0.3]}, "does not hold the rate 0.1"),
        ({"batch_sizes": [8, 32, 16, 64]}, "do not ascend"),
        ({"batch_sizes": [8, 16, 32, 64.0]}, "batch size 64.0 is wrong"),
        ({"batch_sizes": [], "rates": [], "low": [], "high": []}, "batch_sizes is empty"),
        ({"limit": None}, "limit holds None"),
        ({"crossover": -1}, "crossover holds -1"),
        ({"form": "measured"}, "limit must be absent"),
        ({"fraction": 0}, "fraction holds 0"),
        ({"momentum": 1.0}, "momentum 1.0"),
        ({"source": {"a": 1}}, "words to words"),
        ({"speed": 1}, "unknown field speed"),
    ],
)
def test_a_damaged_law_is_refused_with_the_reason(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError, match=message) as caught:
        RateLaw.from_json(law().to_json() | change)
    assert "edgetta learning-rate" in str(caught.value)


def test_what_is_no_law_at_all_is_refused() -> None:
    with pytest.raises(BundleError, match="list instead of an object"):
        RateLaw.from_json([])
    incomplete = law().to_json()
    del incomplete["high"], incomplete["form"]
    with pytest.raises(BundleError, match="missing field form, high"):
        RateLaw.from_json(incomplete)
    for size in (0, -4, float("nan"), "8"):
        with pytest.raises(UsageError, match="batch size"):
            law().rate(size)  # type: ignore[arg-type]


def test_it_is_frozen_and_needs_no_torch() -> None:
    with pytest.raises(FrozenInstanceError):
        law().limit = 3  # type: ignore[misc]
    assert replace(law(), limit=0.8).rate(24) == pytest.approx(0.4)
    code = "import sys, edgetta.rate_law; sys.exit('torch' in sys.modules or 'scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
