"""Predicted and measured largest stable rates: curvature first, written down, and only then the trial runs."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgetta.bench.learning_rate.networks import DATA, VGG, Narrow, settled, surface_operator
from edgetta.offline.curvature import DataOperator
from edgetta.offline.learning_rate import (
    AdamReference,
    Trial,
    analyse_learning_rate,
    draw_batches,
    heavy_ball_rate,
    optimizer_step,
    plot_rates,
    stable_rate,
)
from edgetta.rate_law import RateLaw

Say = Callable[[str], None]
OPTIMIZERS = ("sgd", "momentum", "adam")
MOMENTUM = 0.9


@dataclass(frozen=True)
class ThresholdConfig:
    """The protocol; it is written into the result file."""

    networks: tuple[Narrow, ...] = (VGG, Narrow("preresnet20", 0.25))
    batch_sizes: tuple[int, ...] = (8, 16, 32, 64, 128)
    samples: int = 2048  # of the data set that batches are drawn from
    batches: int = 4  # per size, for the eigenvalues
    iterations: int = 15
    tolerance: float = 0.05
    adam_reference: int = 32  # batch size at which Adam's rate is measured, and left out of the score
    bisection: float = 0.1  # the unstable rate is at most this much above the stable one
    steps: int = 100
    factor: float = 2.0  # diverged: the loss is above this times the loss at the start
    check_every: int = 2
    evaluation_samples: int = 128
    warm_batches: int = 30  # for the squared gradients of Adam
    sweep_rates: int = 8  # of the sweep that the analysis is compared with


class Thresholds:
    """The bench, step by step; what an earlier run left is not done again.

    Args:
        config: the protocol.
        operator_of: gives the loss of a network's checkpoint over the data; stored BatchNorm statistics.
        earlier: the content of a result file.
    """

    def __init__(
        self,
        config: ThresholdConfig,
        operator_of: Callable[[Narrow], DataOperator],
        earlier: Mapping[str, Any] | None = None,
    ) -> None:
        self.config, self._operator_of = config, operator_of
        found = earlier or {}
        self.rows: list[dict[str, Any]] = list(found.get("rows", []))
        self.analyses: dict[str, Any] = dict(found.get("analyses", {}))
        self.steps: dict[str, float] = dict(found.get("seconds_per_step", {}))
        self._operators: dict[str, DataOperator] = {}

    def operator(self, name: str) -> DataOperator:
        """The loss of the network of this name."""
        if name not in self._operators:
            network = next(each for each in self.config.networks if each.name == name)
            self._operators[name] = self._operator_of(network)
        return self._operators[name]

    def predict(self, say: Say) -> Iterator[str]:
        """Make the predictions of each network; yields its name when its rows are there, without what is measured."""
        for network in self.config.networks:
            if network.name not in self.analyses:
                say(network.name)
                self._predict(network.name, say)
                yield network.name

    def _predict(self, name: str, say: Say) -> None:
        config, operator = self.config, self.operator(name)
        begun = time.perf_counter()
        analysis = analyse_learning_rate(
            operator,
            config.batch_sizes,
            momentum=MOMENTUM,
            batches=config.batches,
            iterations=config.iterations,
            tolerance=config.tolerance,
            smallest=False,
            progress=lambda event: say(event.message),
        )
        curvature = time.perf_counter() - begun
        say("a rate for Adam at one batch size")
        reference = stable_rate(
            operator,
            config.adam_reference,
            _factory("adam"),
            start=1e-3,
            tolerance=config.bisection,
            trial=_trial(config),
        )
        analysis = analysis.with_adam(AdamReference(config.adam_reference, reference))
        laws = {optimizer: analysis.law(optimizer) for optimizer in OPTIMIZERS}
        self.analyses[name] = {
            "seconds": time.perf_counter() - begun,
            "seconds_of_curvature": curvature,
            "predicted_at": _now(),
            "measured_at": None,
            "loss": operator.loss(),
            "support": analysis.support.reason,
            "laws": {optimizer: law.to_json() for optimizer, law in laws.items()},
            "eigenvalues": [asdict(rung) for rung in analysis.ladder.rungs],
        }
        for optimizer, law in laws.items():
            for size in config.batch_sizes:
                low, high = law.interval(size)
                known = _is_reference(config, optimizer, size)
                self.rows.append(
                    {
                        "network": name,
                        "optimizer": optimizer,
                        "batch_size": size,
                        "predicted_lr": law.rate(size),
                        "predicted_low": low,
                        "predicted_high": high,
                        "measured_lr": reference.value if known else None,
                        "reference": known,
                        # What the eigenvalue of a batch alone says, the paper's way.
                        "eigenvalue_lr": None
                        if optimizer == "adam"
                        else heavy_ball_rate(
                            analysis.eigenvalue(size).value, MOMENTUM if optimizer == "momentum" else 0.0
                        ),
                    }
                )

    def measure(self) -> Iterator[dict[str, Any]]:
        """Measure what is missing; yields each row when its threshold is known."""
        for row in self.rows:
            if row["measured_lr"] is not None:
                continue
            name, optimizer, size = row["network"], row["optimizer"], row["batch_size"]
            self.steps[f"{name} {optimizer} {size}"] = self._seconds_per_step(name, optimizer, size)
            found = stable_rate(
                self.operator(name),
                size,
                _factory(optimizer),
                start=row["predicted_lr"],
                tolerance=self.config.bisection,
                trial=_trial(self.config),
            )
            row["measured_lr"] = found.value
            self.analyses[name]["measured_at"] = _now()
            yield row

    def facts(self) -> dict[str, Any]:
        """What stands in the result file beside the rows."""
        complete = self.rows and all(row["measured_lr"] is not None for row in self.rows)
        return {
            "analysis_seconds": sum(each["seconds"] for each in self.analyses.values()),
            "sweep_seconds": self._sweep_seconds() if complete else None,
            "verdict": self.verdict(),
            "measured_laws": {name: law.to_json() for name, law in self.measured_laws().items()},
            "analyses": self.analyses,
            "seconds_per_step": self.steps,
        }

    def verdict(self) -> dict[str, Any]:
        """How far predictions are off, and the exponents over the batch size, for each network and optimizer."""
        facts: dict[str, Any] = {}
        for label, own in self._measured().items():
            scored = [row for row in own if not row["reference"]]
            if len(own) < 2 or not scored:
                continue
            ratios = [row["predicted_lr"] / row["measured_lr"] for row in scored]
            facts[label] = {
                "worst_factor": max(max(ratio, 1 / ratio) for ratio in ratios),
                "ratios": ratios,
                "exponent_predicted": _slope(own, "predicted_lr"),
                "exponent_measured": _slope(own, "measured_lr"),
            }
        return facts

    def measured_laws(self) -> dict[str, RateLaw]:
        """The measured thresholds as laws, for whoever needs rates where theory and measurement disagree."""
        laws = {}
        half = (1 + self.config.bisection) ** 0.5
        for label, own in self._measured().items():
            optimizer = own[0]["optimizer"]
            rates = tuple(row["measured_lr"] for row in own)
            laws[label] = RateLaw(
                optimizer,
                "measured",
                tuple(row["batch_size"] for row in own),
                rates,
                tuple(rate / half for rate in rates),
                tuple(rate * half for rate in rates),
                momentum=MOMENTUM if optimizer == "momentum" else 0.0,
            )
        return laws

    def _measured(self) -> dict[str, list[dict[str, Any]]]:
        """Measured rows by "network, optimizer"."""
        groups: dict[str, list[dict[str, Any]]] = {}
        for row in self.rows:
            if row["measured_lr"] is not None:
                groups.setdefault(f"{row['network']}, {row['optimizer']}", []).append(row)
        return groups

    def _sweep_seconds(self) -> float:
        """Of `sweep_rates` runs for each network, optimizer and batch size, their evaluations not counted."""
        # Adam's reference batch was not timed: the mean of the others stands for it.
        each = sum(self.steps.values()) * len(self.rows) / len(self.steps)
        return each * self.config.sweep_rates * self.config.steps

    def _seconds_per_step(self, name: str, optimizer: str, size: int) -> float:
        """Of a training step, the median of a few on a copy."""
        operator = self.operator(name)
        trained_copy = operator.with_model(copy.deepcopy(operator.surface.model))
        step = optimizer_step(trained_copy, _factory(optimizer), 1e-6)
        samples = []
        for indices in draw_batches(len(trained_copy.samples), size, 5, 0):
            begun = time.perf_counter()
            step(trained_copy.on_batch(indices))
            samples.append(time.perf_counter() - begun)
        return float(np.median(samples))


def checkpoint(config: ThresholdConfig, work: Path) -> Callable[[Narrow], DataOperator]:
    """Gives a network near a minimum of its loss over `samples` images; trained once, then kept in a folder."""
    return lambda network: surface_operator(settled(network, work, config.samples), config.samples)


def plot(bench: Thresholds, name: str, path: Path) -> Path:
    """Predicted bands and measured thresholds of one network."""
    laws = {optimizer: RateLaw.from_json(law) for optimizer, law in bench.analyses[name]["laws"].items()}
    measured = {
        optimizer: {
            row["batch_size"]: row["measured_lr"]
            for row in bench.rows
            if (row["network"], row["optimizer"]) == (name, optimizer) and row["measured_lr"] is not None
        }
        for optimizer in laws
    }
    return plot_rates(laws, path, measured=measured)


def settings(config: ThresholdConfig) -> dict[str, Any]:
    """The protocol as the result file has it."""
    plain = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(config).items()}
    networks = [asdict(each) for each in config.networks]
    return {**plain, "networks": networks, "momentum": MOMENTUM, "data": DATA, "batch_norm": "source"}


def _factory(optimizer: str) -> Callable[[list[torch.nn.Parameter], float], torch.optim.Optimizer]:
    if optimizer == "adam":
        return lambda parameters, rate: torch.optim.Adam(parameters, lr=rate)
    return lambda parameters, rate: torch.optim.SGD(parameters, rate, MOMENTUM if optimizer == "momentum" else 0.0)


def _trial(config: ThresholdConfig) -> Trial:
    return Trial(config.steps, config.factor, config.check_every, config.evaluation_samples, config.warm_batches)


def _is_reference(config: ThresholdConfig, optimizer: str, size: int) -> bool:
    return optimizer == "adam" and size == config.adam_reference


def _slope(rows: list[dict[str, Any]], key: str) -> float:
    x, y = np.log([[row["batch_size"], row[key]] for row in rows]).T
    return float(np.polyfit(x, y, 1)[0])


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
