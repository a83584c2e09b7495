"""Costs in accuracy are measured on the same images, from the same state, and continue where they were interrupted."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edgetta.adaptation.adapter import Adapter
from edgetta.adaptation.config import AdaptConfig
from edgetta.adaptation.step_plan import KEEP, StepPlan
from edgetta.engines.contract import Engine
from edgetta.errors import UsageError
from edgetta.memory.accuracy_costs import AccuracyCosts
from edgetta.offline.accuracy_costs import BATCH, CHOICES, REFERENCE, accuracy_costs, measure_accuracy_costs
from tests.offline.far_network import far_from_its_start

CONFIG = AdaptConfig(learning_rate=2.0, entropy_margin=1.0, hold_back=False)


def domains(count: int = 80) -> dict[str, tuple[Any, Any]]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, count)
    images = rng.integers(0, 256, (count, 3, 16, 16), dtype=np.uint8)
    images[::2] //= 2  # each image is new beside the one before
    return {"dark": (images // 3, labels), "light": (255 - images // 3, labels)}


@pytest.fixture(scope="module")
def engine() -> Engine:
    """Its predictions are not all alike."""
    return far_from_its_start().engine


def streamed(engine: Engine, plan: StepPlan, config: AdaptConfig = CONFIG) -> list[bool]:
    """Which images a stream gets wrong, written down once more."""
    adapter = Adapter(engine, replace(config, small_batch=1))
    wrong: list[bool] = []
    for images, labels in domains().values():
        for i in range(0, len(labels), BATCH):
            logits = adapter.step((images[i : i + BATCH] / np.float32(255)).astype(np.float32), plan).logits
            wrong += (logits.argmax(1) != labels[i : i + BATCH]).tolist()
    return wrong


def test_costs_are_differences_between_streams(engine: Engine) -> None:
    found = measure_accuracy_costs(engine, domains(), CONFIG)
    reference = streamed(engine, KEEP)
    assert found.error == pytest.approx(100 * sum(reference) / 160)
    assert (found.batch, found.learn) == (BATCH, 32)
    for (kind, value), plan, config in (
        (("adaptation", "off"), KEEP, replace(CONFIG, when="off")),
        (("learn", "8"), StepPlan(learn=8), CONFIG),
        (("slice", "1"), StepPlan(slice=1), CONFIG),
    ):
        differences = np.array(streamed(engine, plan, config), float) - np.array(reference, float)
        cost = found.of(kind, value)
        assert cost.points == pytest.approx(100 * differences.mean())
        assert cost.deviation == pytest.approx(100 * differences.std() / math.sqrt(160))
    assert any(abs(m.cost.points) > 0 for m in found.measured), "and these streams do tell choices apart"
    assert AccuracyCosts.from_json(found.to_json()) == found
    assert found.doubt is not None and 0 < found.doubt < 80, "of five classes"
    assert found.errors_per_doubt == pytest.approx(found.error / found.doubt)
    assert found.source["corruptions"] == "dark, light" and found.source["images"] == "160"


def test_interrupted_it_continues_to_the_same_end(engine: Engine) -> None:
    kept: dict[str, Any] = {}
    computed: list[str] = []

    def stored(name: str, compute: Callable[[], Any]) -> Any:
        if name not in kept:
            if len(computed) == 3:
                raise KeyboardInterrupt
            computed.append(name)
            kept[name] = compute()
        return kept[name]

    with pytest.raises(KeyboardInterrupt):
        measure_accuracy_costs(engine, domains(), CONFIG, stored=stored)
    assert list(kept) == ["cost-reference-64", "cost-adaptation-off", "cost-learn-16"]
    told: list[tuple[int, int, str]] = []
    again = measure_accuracy_costs(
        engine,
        domains(),
        CONFIG,
        stored=lambda name, compute: kept.get(name) or compute(),
        progress=lambda *event: told.append(event),
    )
    assert again == measure_accuracy_costs(engine, domains(), CONFIG)
    assert told[0] == (0, 6, "reference 64") and told[-1] == (5, 6, "slice 1")


def test_what_both_get_wrong_is_no_noise() -> None:
    runs = {choice: {"wrong": "1" * 50 + "0" * 50, "doubt": 20.0} for choice in (REFERENCE, *CHOICES)}
    found = accuracy_costs(runs | {("learn", "16"): {"wrong": "1" * 54 + "0" * 46, "doubt": 30.0}}, 32, {})
    assert (found.error, found.doubt, found.errors_per_doubt) == (50, 20, 2.5)
    assert found.of("slice", "8").deviation == 0
    cost = found.of("learn", "16")
    assert cost.points == pytest.approx(4) and cost.deviation == pytest.approx(100 * math.sqrt(0.04 * 0.96) / 10)


def test_too_few_images(engine: Engine) -> None:
    with pytest.raises(UsageError, match="need 64 images under each corruption, and there are 63"):
        measure_accuracy_costs(engine, domains(63), CONFIG)
