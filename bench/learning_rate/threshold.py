"""Predicted and measured largest stable rates: curvature first, written down, and only then the trial runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgetta.bench.learning_rate.networks import DATA, VGG, Narrow, surface_operator, trained
from edgetta.offline.curvature import DataOperator
from edgetta.offline.learning_rate import AdamReference, Trial, analyse_learning_rate, stable_rate
from edgetta.rate_law import RateLaw

Say = Callable[[str], None]
OPTIMIZERS = ("sgd", "momentum", "adam")
MOMENTUM = 0.9


@dataclass(frozen=True)
class ThresholdConfig:
    """The protocol; it is written into the result file."""

    network: Narrow = VGG
    batch_sizes: tuple[int, ...] = (8, 16, 32, 64, 128)
    samples: int = 2048  # of the data set that batches are drawn from
    batches: int = 4  # per size, for the eigenvalues
    iterations: int = 20
    tolerance: float = 0.05
    adam_reference: int = 32  # batch size at which Adam's rate is measured, and left out of the score
    bisection: float = 0.1  # the unstable rate is at most this much above the stable one
    steps: int = 100
    factor: float = 2.0  # diverged: the loss is above this times the loss at the start
    check_every: int = 20
    evaluation_samples: int = 256
    sweep_rates: int = 8  # of the sweep that the analysis is compared with


class Thresholds:
    """The bench, step by step; what an earlier run left is not done again."""

    def __init__(self, config: ThresholdConfig, work: Path, earlier: Mapping[str, Any] | None = None) -> None:
        self.config, self.work = config, work
        found = earlier or {}
        self.rows: list[dict[str, Any]] = list(found.get("rows", []))
        self.facts: dict[str, Any] = {name: found[name] for name in _FACTS if name in found}
        self._operator: DataOperator | None = None

    @property
    def operator(self) -> DataOperator:
        """The loss of the checkpoint over the data; stored BatchNorm statistics."""
        if self._operator is None:
            module = trained(self.config.network, self.work)
            self._operator = surface_operator(module, self.config.samples)
        return self._operator

    def predict(self, say: Say) -> None:
        """Make every prediction; afterwards the rows are there, without what is to be measured."""
        if self.rows:
            return
        config, operator = self.config, self.operator
        begun = time.perf_counter()
        say("a rate for Adam at one batch size")
        reference = stable_rate(
            operator,
            config.adam_reference,
            _factory("adam"),
            start=1e-2,
            tolerance=config.bisection,
            trial=_trial(config),
        )
        analysis = analyse_learning_rate(
            operator,
            config.batch_sizes,
            momentum=MOMENTUM,
            adam=AdamReference(config.adam_reference, reference),
            batches=config.batches,
            iterations=config.iterations,
            tolerance=config.tolerance,
            progress=lambda event: say(event.message),
        )
        laws = {name: analysis.law(name) for name in OPTIMIZERS}
        self.facts = {
            "analysis_seconds": time.perf_counter() - begun,
            "sweep_seconds": None,
            "predicted_at": _now(),
            "measured_at": None,
            "support": analysis.support.reason,
            "laws": {name: law.to_json() for name, law in laws.items()},
            "eigenvalues": [asdict(rung) for rung in analysis.ladder.rungs],
            "seconds_per_step": {},
        }
        for name, law in laws.items():
            for size in config.batch_sizes:
                low, high = law.interval(size)
                self.rows.append(
                    {
                        "network": config.network.name,
                        "optimizer": name,
                        "batch_size": size,
                        "predicted_lr": law.rate(size),
                        "predicted_low": low,
                        "predicted_high": high,
                        "measured_lr": reference.value if _is_reference(config, name, size) else None,
                        "reference": _is_reference(config, name, size),
                    }
                )

    def measure(self) -> Iterator[dict[str, Any]]:
        """Measure what is missing; yields each row when its threshold is known."""
        for row in self.rows:
            if row["measured_lr"] is not None:
                continue
            name, size = row["optimizer"], row["batch_size"]
            seconds = self._seconds_per_step(name, size)
            found = stable_rate(
                self.operator,
                size,
                _factory(name),
                start=row["predicted_lr"],
                tolerance=self.config.bisection,
                trial=_trial(self.config),
            )
            row["measured_lr"] = found.value
            self.facts["seconds_per_step"][f"{name} {size}"] = seconds
            self.facts["measured_at"] = _now()
            yield row
        known = list(self.facts["seconds_per_step"].values())
        config = self.config
        if len(known) >= len(self.rows) - 1:
            # Adam's reference batch was not timed: its neighbours stand for it.
            each = sum(known) * len(self.rows) / len(known)
            self.facts["sweep_seconds"] = each * config.sweep_rates * config.steps

    def verdict(self) -> dict[str, Any]:
        """How far predictions are off, and the exponents over the batch size."""
        facts: dict[str, Any] = {}
        for name in OPTIMIZERS:
            own = [row for row in self.rows if row["optimizer"] == name and row["measured_lr"] is not None]
            scored = [row for row in own if not row["reference"]]
            if len(own) < 2 or not scored:
                continue
            ratios = [row["predicted_lr"] / row["measured_lr"] for row in scored]
            facts[name] = {
                "worst_factor": max(max(ratio, 1 / ratio) for ratio in ratios),
                "ratios": ratios,
                "exponent_predicted": _slope(own, "predicted_lr"),
                "exponent_measured": _slope(own, "measured_lr"),
            }
        return facts

    def measured_laws(self) -> dict[str, RateLaw]:
        """The measured thresholds as laws, for whoever needs rates where theory and measurement disagree."""
        laws = {}
        for name in OPTIMIZERS:
            own = [row for row in self.rows if row["optimizer"] == name and row["measured_lr"] is not None]
            if own:
                half = (1 + self.config.bisection) ** 0.5
                rates = tuple(row["measured_lr"] for row in own)
                laws[name] = RateLaw(
                    name,
                    "measured",
                    tuple(row["batch_size"] for row in own),
                    rates,
                    tuple(rate / half for rate in rates),
                    tuple(rate * half for rate in rates),
                    momentum=MOMENTUM if name == "momentum" else 0.0,
                )
        return laws

    def _seconds_per_step(self, name: str, size: int) -> float:
        """Of a training step, the median of a few on a copy."""
        import copy

        from edgetta.offline.learning_rate import draw_batches, optimizer_step

        trained_copy = self.operator.with_model(copy.deepcopy(self.operator.surface.model))
        step = optimizer_step(trained_copy, _factory(name), 1e-6)
        samples = []
        for indices in draw_batches(len(trained_copy.samples), size, 5, 0):
            begun = time.perf_counter()
            step(trained_copy.on_batch(indices))
            samples.append(time.perf_counter() - begun)
        return float(np.median(samples))


def plot(bench: Thresholds, path: Path) -> Path:
    """Predicted bands and measured thresholds."""
    from edgetta.offline.learning_rate import plot_rates

    laws = {name: RateLaw.from_json(law) for name, law in bench.facts["laws"].items()}
    measured = {
        name: {row["batch_size"]: row["measured_lr"] for row in bench.rows if row["optimizer"] == name}
        for name in laws
    }
    return plot_rates(laws, path, measured=measured)


def settings(config: ThresholdConfig) -> dict[str, Any]:
    """The protocol as the result file has it."""
    plain = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(config).items()}
    return {**plain, "momentum": MOMENTUM, "data": DATA, "batch_norm": "source"}


_FACTS = (
    *("analysis_seconds", "sweep_seconds", "predicted_at", "measured_at", "support", "laws", "eigenvalues"),
    "seconds_per_step",
)


def _factory(name: str) -> Callable[[list[torch.nn.Parameter], float], torch.optim.Optimizer]:
    if name == "adam":
        return lambda parameters, rate: torch.optim.Adam(parameters, lr=rate)
    return lambda parameters, rate: torch.optim.SGD(parameters, rate, MOMENTUM if name == "momentum" else 0.0)


def _trial(config: ThresholdConfig) -> Trial:
    return Trial(config.steps, config.factor, config.check_every, config.evaluation_samples)


def _is_reference(config: ThresholdConfig, name: str, size: int) -> bool:
    return name == "adam" and size == config.adam_reference


def _slope(rows: list[dict[str, Any]], key: str) -> float:
    x, y = np.log([[row["batch_size"], row[key]] for row in rows]).T
    return float(np.polyfit(x, y, 1)[0])


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
