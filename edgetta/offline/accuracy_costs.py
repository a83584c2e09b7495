"""Measure what a plan's choices cost in accuracy, on source images under corruptions that no benchmark's stream has.

The same stream, corruption after corruption, is adapted to once in the best way that there is (exact gradients,
everything kept, the largest batch) and once for every choice that gives something up, each time from the state that
ships. Image by image the two runs are compared, so that what both get wrong is no noise.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from edgetta.adaptation.network import AdaptiveNetwork
from edgetta.adaptation.step_memory import FULL, StepMemory
from edgetta.errors import UsageError
from edgetta.memory.accuracy_costs import AccuracyCost, AccuracyCosts, MeasuredCost
from edgetta.rate_law import RateLaw
from edgetta.segmented.adapter import AdaptConfig, Adapter

BATCH = 64
"""Images per update of the reference."""

CHOICES: tuple[tuple[str, str], ...] = (
    ("adaptation", "off"),
    ("gradient", "local"),
    ("storage", "half"),
    ("storage", "int8"),
    ("storage", "recompute-int8"),
    ("batch", "32"),
    ("batch", "16"),
    ("batch", "8"),
)
REFERENCE = ("reference", str(BATCH))

Domains = Mapping[str, tuple[Tensor, Tensor]]
"""Corruption -> images (N, C, H, W), bytes or floats in [0, 1], and labels (N,)."""

Runs = Mapping[tuple[str, str], Mapping[str, Any]]
"""Kind and value of a choice -> its run:

wrong   "0" for each image that was classified right, "1" for each that was not
doubt   1 minus the probability of the class predicted, its mean over the images in %
"""


def measure_accuracy_costs(
    network: AdaptiveNetwork,
    domains: Domains,
    config: AdaptConfig | None = None,
    rate_law: RateLaw | None = None,
    *,
    stored: Callable[[str, Callable[[], Any]], Any] = lambda name, compute: compute(),
    progress: Callable[[int, int, str], None] | None = None,
) -> AccuracyCosts:
    """What the choices of a plan cost; the network is as before afterwards.

    domains     the same images under each corruption, at least `BATCH` of them
    config      of adaptation; every batch is learnt from at once
    rate_law    gives each batch size its rate where the configuration has none
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
        run = partial(_run, network, domains, choice, config, rate_law)
        runs[choice] = stored(f"cost-{'-'.join(choice)}", run)
    return accuracy_costs(runs, _source(domains, config, rate_law))


def accuracy_costs(runs: Runs, source: Mapping[str, str]) -> AccuracyCosts:
    """The costs that follow from runs over the same images."""
    reference = runs[REFERENCE]["wrong"]
    measured = [
        MeasuredCost(kind, value, _cost(runs[kind, value]["wrong"], reference))
        for kind, value in CHOICES
        if (kind, value) in runs
    ]
    error = 100 * reference.count("1") / len(reference)
    return AccuracyCosts(error, BATCH, tuple(measured), source, runs[REFERENCE]["doubt"])


def _cost(wrong: str, reference: str) -> AccuracyCost:
    """The mean difference of two runs in points, and its standard error."""
    differences = torch.tensor([int(a) - int(b) for a, b in zip(wrong, reference, strict=True)], dtype=torch.float64)
    return AccuracyCost(
        100 * float(differences.mean()), 100 * float(differences.std(correction=0)) / math.sqrt(len(differences))
    )


def _run(
    network: AdaptiveNetwork, domains: Domains, choice: tuple[str, str], config: AdaptConfig, rate_law: RateLaw | None
) -> dict[str, Any]:
    """A stream with one choice: see `Runs`."""
    kind, value = choice
    before, start = network.memory, {name: tensor.clone() for name, tensor in network.state_dict().items()}
    storage: Any = value if kind == "storage" else "full"
    network.memory = StepMemory(storage, local=kind == "gradient") if choice != REFERENCE else FULL
    adapter = Adapter(network, replace(config, when="off") if kind == "adaptation" else config, rate_law)
    batch, wrong, doubts = int(value) if kind == "batch" else BATCH, [], []
    try:
        for images, labels in domains.values():
            for shown, truth in zip(images.split(batch), labels.split(batch), strict=True):
                floats = shown.float() / 255 if shown.dtype == torch.uint8 else shown
                logits = adapter.step(floats.to(network.device), gather=False).logits
                confidence, predicted = logits.softmax(1).max(1)
                wrong.append(predicted.cpu() != truth)
                doubts.append(1 - confidence.double().cpu())
    finally:
        network.memory = before
        network.load_state_dict(start)
    flags = "".join("01"[int(flag)] for flag in torch.cat(wrong))
    return {"wrong": flags, "doubt": 100 * float(torch.cat(doubts).mean())}


def _source(domains: Domains, config: AdaptConfig, rate_law: RateLaw | None) -> dict[str, str]:
    given = config.learning_rate
    rate = f"{given:g}" if given is not None else "the bundle's law" if rate_law is not None else "the default"
    return {
        "corruptions": ", ".join(domains),
        "images": str(sum(len(labels) for _, labels in domains.values())),
        "learning rate": rate,
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
    }
