"""The stream bench: what each rule takes, how rows follow from runs, and a whole small run on real images."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edgetta.bench.learning_rate.stream import RULES, Stream, StreamConfig, gathered, rounded, rule_rates
from edgetta.rate_law import RateLaw
from edgetta.sources.datasets import data_folder

LAW = RateLaw("momentum", "measured", (4, 64), (1e-3, 3e-2), (1e-3,) * 2, (3e-2,) * 2, source={"bound": "divergence"})
OTHER = RateLaw(
    "momentum", "measured", (4, 64), (5e-3, 3e-2), (1e-3,) * 2, (3e-2,) * 2, source={"bound": "eigenvalue"}
)
CONFIG = StreamConfig(batch_sizes=(4, 64), seeds=(0, 1), grid=(1.0,))


def earlier(error: Any) -> dict[str, Any]:
    """A result file in which every run of the plan is done, with `error(plan)` percent everywhere."""
    made = {"law": {"law": LAW.to_json(), "other": OTHER.to_json()}, "runs": []}
    made["runs"] = [{**plan, "errors": [error(plan)] * 15} for plan in Stream(CONFIG, made).planned()]
    return made


def test_rules_start_from_one_rate_and_differ_in_how_they_carry_it() -> None:
    exact = replace(CONFIG, rounding=1 + 1e-9)
    at = {batch: rule_rates(LAW, OTHER, 3e-2, exact, batch) for batch in (4, 16, 32, 64, 128)}
    assert set(at[64]) == set(RULES) and list(at[64].values()) == pytest.approx([3e-2] * len(RULES))
    assert at[16]["linear"] == pytest.approx(3e-2 / 4) and at[16]["sqrt"] == pytest.approx(3e-2 / 2)
    # the code of SAR, with its rate of 0.00025 in place of 0.03: (0.00025 / 64) * bs * 2 if bs < 32 else 0.00025
    assert at[16]["sar"] == pytest.approx(3e-2 / 64 * 16 * 2)
    assert at[32]["sar"] == pytest.approx(3e-2) and at[128]["sar"] == pytest.approx(3e-2)
    assert at[4]["ungathered"] == pytest.approx(1e-3) and at[4]["eigenvalue"] == pytest.approx(5e-3)
    assert at[4]["fixed"] == pytest.approx(3e-2)
    assert gathered(exact, 4) == 64 and gathered(exact, 16) == 0
    assert at[4]["law"] == pytest.approx(3e-2), "a window counts as its images"
    assert at[16]["law"] == at[16]["ungathered"]


def test_rates_are_rounded_to_the_nearest_step() -> None:
    steps = [rounded(value, 0.01, 2**0.5) / 0.01 for value in (0.01, 0.0111, 0.0135, 0.025, 0.0007)]
    assert steps == pytest.approx([1, 1, 2**0.5, 2**1.5, 2**-4])


def test_rows_are_the_rules_runs_and_the_oracle_has_one_choice_for_all_seeds() -> None:
    def error(plan: dict[str, Any]) -> float:
        lucky = plan["seed"] == 1 and plan["rate"] == pytest.approx(3e-2) and not plan["window"]
        own = 30 - 1000 * plan["rate"] * (plan["rate"] <= 8e-3) - 9 * lucky + plan["seed"]
        return own - 1 if plan["window"] else own

    stream = Stream(CONFIG, earlier(error))
    rows = stream.rows()
    assert [(row["batch_size"], row["window"], row["seed"]) for row in rows] == [
        *((4, 64, 0), (4, 64, 1), (64, 0, 0), (64, 0, 1)),
    ]
    small = rows[0]
    assert small["law_error"] == 29 and small["law_rate"] == pytest.approx(3e-2), "gathered"
    assert small["ungathered_error"] == pytest.approx(30 - 1000 * small["ungathered_rate"])
    assert small["fixed_error"] == small["no_adaptation_error"] == 30
    assert rows[1]["fixed_error"] == 22 and rows[1]["oracle_error"] == pytest.approx(23.5), "no seed picks its luck"
    assert small["oracle_rate"] == rows[1]["oracle_rate"] == pytest.approx(7.5e-3) and small["oracle_window"] == 0
    verdict = stream.verdict()
    gap = (29 + 30 - 22.5 - 23.5) / 2
    assert verdict["law against the oracle, worst batch size"] == pytest.approx(gap)
    assert verdict["law against no adaptation, worst batch size"] == pytest.approx(-1)


def test_a_seed_without_all_of_its_runs_has_no_row() -> None:
    made = earlier(lambda plan: 20.0)
    made["runs"] = [run for run in made["runs"] if run["seed"] == 0 or run["rate"] > 0]
    stream = Stream(CONFIG, made)
    assert {row["seed"] for row in stream.rows()} == {0}
    missing = {(p["batch_size"], p["window"], p["seed"], p["rate"]) for p in stream.planned()} - {
        (r["batch_size"], r["window"], r["seed"], r["rate"]) for r in stream.runs
    }
    assert missing == {(4, 0, 1, 0.0), (64, 0, 1, 0.0)}


def test_a_result_without_rows_has_no_verdict() -> None:
    assert Stream(CONFIG, {"law": {"law": LAW.to_json(), "other": OTHER.to_json()}}).verdict() == {}


@pytest.mark.skipif(
    not (data_folder() / StreamConfig().weights).is_file(), reason="needs the images and weights of EDGETTA_DATA"
)
def test_a_small_stream_from_the_law_to_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    few = ("gaussian_noise", "defocus_blur", "snow", "contrast")
    monkeypatch.setattr("edgetta.bench.learning_rate.stream.CORRUPTIONS", few)
    config = replace(
        StreamConfig(),
        batch_sizes=(16,),
        seeds=(0,),
        images=16,
        tuned_at=16,
        tuned_rates=(1e-2,),
        ladder=(8, 16),
        source_images=32,
        statistics_images=64,
        grid=(),
        batches=4,
        probes=4,
    )
    said: list[str] = []
    stream = Stream(config)
    stream.make_law(said.append)
    assert said and stream.laws is not None
    before = stream.network.programs.shipped.copy()
    (first,) = [run for _, run in zip(range(1), (run for _, _, run in stream.advance()), strict=False)]
    again = Stream(config, stream.facts())
    assert again.laws == stream.laws and len(again.runs) == 1, "what is done is kept"
    runs = [run for _, _, run in again.advance()]
    assert first not in runs and len(again.rows()) == 1
    assert all(
        0 <= row[f"{rule}_error"] <= 100 for row in again.rows() for rule in (*RULES, "oracle", "no_adaptation")
    )
    assert np.array_equal(stream.network.programs.shipped, before), "every run begins with what ships"
