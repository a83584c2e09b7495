"""Measure what a plan's choices cost in accuracy, on source images under corruptions that no benchmark's stream has.

The same stream, corruption after corruption, is adapted to once in the best way that there is (updates that learn from
as many images as configured, all at once) and once for every choice that gives something up, each time from the state
that ships. Image by image the two runs are compared, so that what both get wrong is no noise.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetta.adaptation.adapter import Adapter
from edgetta.adaptation.config import AdaptConfig
from edgetta.adaptation.content import ContentModel
from edgetta.adaptation.normaliser import softmax
from edgetta.adaptation.step_plan import KEEP, StepPlan
from edgetta.engines.contract import Engine
from edgetta.errors import UsageError
from edgetta.memory.accuracy_costs import OFF, AccuracyCost, AccuracyCosts, MeasuredCost
from edgetta.rate_law import RateLaw

BATCH = 64
"""Images of a batch."""

CHOICES: tuple[tuple[str, str], ...] = (
    OFF,
    ("learn", "16"),
    ("learn", "8"),
    ("slice", "8"),
    ("slice", "1"),
)
REFERENCE = ("reference", str(BATCH))

Array = NDArray[Any]

Domains = Mapping[str, tuple[Array, Array]]
"""Corruption -> images (N, C, H, W), bytes or floats in [0, 1], and labels (N,)."""

Runs = Mapping[tuple[str, str], Mapping[str, Any]]
"""Kind and value of a choice -> its run:

wrong   "0" for each image that was classified right, "1" for each that was not
doubt   1 minus the probability of the class predicted, its mean over the images in %
"""


def measure_accuracy_costs(
    engine: Engine,
    domains: Domains,
    config: AdaptConfig | None = None,
    rate_law: RateLaw | None = None,
    content: ContentModel | None = None,
    *,
    stored: Callable[[str, Callable[[], Any]], Any] = lambda name, compute: compute(),
    progress: Callable[[int, int, str], None] | None = None,
) -> AccuracyCosts:
    """What the choices of a plan cost on the programs of an engine, as shipped.

    domains     the same images under each corruption, at least `BATCH` of them
    config      of adaptation; every batch is learnt from at once
    rate_law    gives each number of images its rate where the configuration has none
    content     what content explains of the moments; None where it was not measured
    stored      the result of a run by its name, kept from an interrupted measurement, or computed
    progress    told of runs done, of all, and of the choice
    Raises `UsageError` for too few images.
    """
    fewest = min(len(labels) for _, labels in domains.values())
    if fewest < BATCH:
        raise UsageError(f"accuracy costs need {BATCH} images under each corruption, and there are {fewest}")
    config = replace(config or AdaptConfig(), small_batch=1, when="always")
    runs: dict[tuple[str, str], dict[str, Any]] = {}
    wanted = (REFERENCE, *CHOICES)
    for number, choice in enumerate(wanted):
        if progress is not None:
            progress(number, len(wanted), " ".join(choice))
        run = partial(_run, engine, domains, choice, config, rate_law, content)
        runs[choice] = stored(f"cost-{'-'.join(choice)}", run)
    return accuracy_costs(runs, config.learn_images, _source(domains, config, rate_law))


def accuracy_costs(runs: Runs, learn: int, source: Mapping[str, str]) -> AccuracyCosts:
    """The costs that follow from runs over the same images; updates of the reference learn from `learn` of a batch."""
    reference = runs[REFERENCE]["wrong"]
    measured = [
        MeasuredCost(kind, value, _cost(runs[kind, value]["wrong"], reference))
        for kind, value in CHOICES
        if (kind, value) in runs
    ]
    error = 100 * reference.count("1") / len(reference)
    return AccuracyCosts(error, BATCH, learn, tuple(measured), source, runs[REFERENCE]["doubt"])


def _cost(wrong: str, reference: str) -> AccuracyCost:
    """The mean difference of two runs in points, and its standard error."""
    differences = np.array([int(a) - int(b) for a, b in zip(wrong, reference, strict=True)], np.float64)
    return AccuracyCost(100 * float(differences.mean()), 100 * float(differences.std()) / math.sqrt(len(differences)))


def _run(
    engine: Engine,
    domains: Domains,
    choice: tuple[str, str],
    config: AdaptConfig,
    rate_law: RateLaw | None,
    content: ContentModel | None,
) -> dict[str, Any]:
    """A stream with one choice: see `Runs`."""
    kind, value = choice
    plans = {"learn": lambda n: StepPlan(learn=n), "slice": lambda n: StepPlan(slice=n)}
    plan = plans[kind](int(value)) if kind in plans else KEEP
    adapter = Adapter(engine, replace(config, when="off") if choice == OFF else config, content, rate_law)
    wrong, doubts = [], []
    for images, labels in domains.values():
        for start in range(0, len(labels), BATCH):
            shown = np.asarray(images[start : start + BATCH])
            scale = np.float32(1 / 255 if shown.dtype == np.uint8 else 1)
            logits = adapter.step(shown.astype(np.float32) * scale, plan, gather=False).logits
            probabilities = softmax(logits)
            wrong.append(probabilities.argmax(1) != np.asarray(labels[start : start + BATCH]))
            doubts.append(1 - probabilities.max(1))
    flags = "".join("01"[int(flag)] for flag in np.concatenate(wrong))
    return {"wrong": flags, "doubt": 100 * float(np.concatenate(doubts).mean())}


def _source(domains: Domains, config: AdaptConfig, rate_law: RateLaw | None) -> dict[str, str]:
    given = config.learning_rate
    rate = f"{given:g}" if given is not None else "the bundle's law" if rate_law is not None else "the default"
    return {
        "corruptions": ", ".join(domains),
        "images": str(sum(len(labels) for _, labels in domains.values())),
        "learning rate": rate,
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
    }
