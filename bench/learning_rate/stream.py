"""The rate law on a stream: its error beside one rate for all, scaling rules, the best of a grid, and no adaptation.

The law is made as `edgetta prepare --curvature` makes it: on training images under four corruptions that are not in
the stream. One rate is tuned there, at batch size 64, and every rule starts from it; what differs is how each carries
it to other batch sizes. "law" is what a device does by default: it also gathers batches below 16 into updates of 64
images. Every other rule updates on each batch, as scaling rules have it. Only the oracle sees labels of the stream.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgetta.adaptation.config import AdaptConfig
from edgetta.corruption import CORRUPTIONS, EXTRA_CORRUPTIONS, corrupt
from edgetta.offline.learning_rate.adaptation_curvature import measure_adaptation
from edgetta.offline.learning_rate.adaptation_law import AdaptationRates, Domains, adaptation_rates
from edgetta.offline.network import Network
from edgetta.offline.source_statistics import batches_of, with_source_statistics
from edgetta.rate_law import RateLaw
from edgetta.sources.datasets import cifar10_jpeg, data_folder

Say = Callable[[str], None]
TEST_IMAGES = 10_000
TRAINING_IMAGES = 50_000


@dataclass(frozen=True)
class StreamConfig:
    """The protocol; it is written into the result file."""

    model: str = "resnet20"
    weights: str = "weights/resnet20_jpegft.npz"
    batch_sizes: tuple[int, ...] = (4, 8, 16, 32, 64, 128, 200)
    seeds: tuple[int, ...] = (0, 1, 2)  # of images, their order and their corruption
    images: int = 500  # per corruption
    severity: int = 5
    tuned_at: int = 64  # batch size at which the one rate is tuned
    tuned_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 2e-2, 3e-2, 6e-2, 1e-1)
    ladder: tuple[int, ...] = (4, 8, 16, 32, 64, 128)  # batch sizes at which curvature is measured
    source_images: int = 600  # per corruption of the source, for tuning and curvature
    statistics_images: int = 1024  # clean, for the source statistics of the meta-networks
    batches: int = 4  # of eigenvalues, per size
    probes: int = 24  # of divergence, per size
    grid: tuple[float, ...] = (0.25, 1.0, 4.0)  # times the tuned rate: tried for the oracle beside the rules' rates
    # Rates are rounded to steps of this factor from the tuned one, so that rules that agree share a run.
    rounding: float = 2**0.5
    source_seed: int = 100
    adaptation: AdaptConfig = field(default_factory=AdaptConfig)


RULES = ("law", "ungathered", "eigenvalue", "fixed", "linear", "sqrt", "sar")
"""Columns of the result beside "oracle" and "no_adaptation". "law" is what ships; "ungathered" is the same law with an
update on every batch, and "eigenvalue" the one in inverse proportion to the batch's largest |eigenvalue|."""


def rule_rates(law: RateLaw, eigenvalue: RateLaw, rate: float, config: StreamConfig, batch: int) -> dict[str, float]:
    """The rate that each rule takes for a stream of batches of this size.

    Args:
        law, eigenvalue: the law that ships, and the one of the other bound.
        rate: tuned at `config.tuned_at`.
    """
    share = batch / config.tuned_at
    exact = {
        "law": law.rate(gathered(config, batch) or batch),
        "ungathered": law.rate(batch),
        "eigenvalue": eigenvalue.rate(batch),
        "fixed": rate,
        "linear": rate * share,
        "sqrt": rate * share**0.5,
        # SAR's code for ResNets: (rate / 64) * batch * 2 below a batch of 32, else the rate itself.
        "sar": rate * share * 2 if batch < 32 else rate,
    }
    return {rule: rounded(value, rate, config.rounding) for rule, value in exact.items()}


def rounded(value: float, rate: float, step: float) -> float:
    """The power of `step`, times `rate`, that is nearest to a value."""
    return rate * step ** round(math.log(value / rate) / math.log(step))


def gathered(config: StreamConfig, batch: int) -> int:
    """Images to which a device gathers batches of this size before an update; 0: none, each batch is an update."""
    adaptation = config.adaptation
    return adaptation.window if batch < adaptation.small_batch else 0


class Stream:
    """The bench, run by run; `runs` grows, and what is in it is not done again."""

    def __init__(self, config: StreamConfig, earlier: Mapping[str, Any] | None = None) -> None:
        self.config = config
        self.runs: list[dict[str, Any]] = list((earlier or {}).get("runs", []))
        self.laws: dict[str, Any] | None = (earlier or {}).get("law")
        self._done = {_key(run): run for run in self.runs}
        self._network: Network | None = None
        self._images: tuple[int, Domains] | None = None

    def make_law(self, say: Say) -> None:
        """Measure the law, unless an earlier run did."""
        if self.laws is None:
            self.laws = source_rates(self.network, self.config, say).to_json()

    @property
    def network(self) -> Network:
        """The network as it ships; every run puts it back."""
        if self._network is None:
            self._network = shipped_network(self.config)
        return self._network

    def planned(self) -> list[dict[str, Any]]:
        """Every run that the result needs: batch size, window (0: each batch is an update), seed, rate."""
        plans = []
        for seed in self.config.seeds:
            for batch in self.config.batch_sizes:
                rates, tried = self._tried(batch)
                keys = {(0, 0.0), (gathered(self.config, batch), rates["law"]), *((0, rate) for rate in tried)}
                plans += [{"batch_size": batch, "window": w, "seed": seed, "rate": r} for w, r in sorted(keys)]
        return plans

    def _tried(self, batch: int) -> tuple[dict[str, float], list[float]]:
        """The rates of the rules, and all rates at which each batch is an update."""
        law, eigenvalue, rate = self._laws()
        rates = rule_rates(law, eigenvalue, rate, self.config, batch)
        grid = {rounded(rate * share, rate, self.config.rounding) for share in self.config.grid}
        return rates, sorted(grid | {value for rule, value in rates.items() if rule != "law"})

    def advance(self) -> Iterator[tuple[int, int, dict[str, Any]]]:
        """Do what is missing; yields (runs done, runs in all, the run) after each."""
        plans = self.planned()
        for number, plan in enumerate(plans, 1):
            if _key(plan) in self._done:
                continue
            run = {**plan, "errors": self._run(plan)}
            self.runs.append(run)
            self._done[_key(run)] = run
            yield number, len(plans), run

    def rows(self) -> list[dict[str, Any]]:
        """A row for each batch size and seed whose runs are all there; errors in percent."""
        config, rows = self.config, []
        for batch in config.batch_sizes:
            window = gathered(config, batch)
            rates, tried = self._tried(batch)
            # The oracle may also gather, at the law's rate.
            options = sorted({*((0, rate) for rate in tried), (window, rates["law"])})
            errors = {
                (seed, each): self._error(batch, each, seed) for seed in config.seeds for each in ((0, 0.0), *options)
            }
            seeds = [seed for seed in config.seeds if all(errors[seed, each] is not None for each in options)]
            seeds = [seed for seed in seeds if errors[seed, (0, 0.0)] is not None]
            if not seeds:
                continue
            # One choice for all seeds: choosing per seed would reward luck.
            best = min(options, key=lambda each: (fmean(errors[seed, each] for seed in seeds), each))  # type: ignore[misc]
            for seed in seeds:
                found = {f"{rule}_error": errors[seed, (0, r)] for rule, r in rates.items() if rule != "law"}
                rows.append(
                    {
                        "batch_size": batch,
                        "window": window,
                        "seed": seed,
                        "law_error": errors[seed, (window, rates["law"])],
                        **found,
                        "oracle_error": errors[seed, best],
                        "no_adaptation_error": errors[seed, (0, 0.0)],
                        **{f"{rule}_rate": r for rule, r in rates.items()},
                        "oracle_rate": best[1],
                        "oracle_window": best[0],
                    }
                )
        return rows

    def verdict(self) -> dict[str, float]:
        """How far the law is above (+) or below (-) others: means over seeds, then the worst or mean over sizes."""
        rows = self.rows()
        sizes = sorted({row["batch_size"] for row in rows})

        def gaps(name: str) -> list[float]:
            own = [[row["law_error"] - row[f"{name}_error"] for row in rows if row["batch_size"] == b] for b in sizes]
            return [fmean(each) for each in own]

        if not sizes:
            return {}
        others = ("ungathered", "eigenvalue", "fixed", "linear", "sqrt", "sar", "no_adaptation")
        return {
            "law against the oracle, worst batch size": max(gaps("oracle")),
            "law against no adaptation, worst batch size": max(gaps("no_adaptation")),
            **{f"law against {name}, mean over batch sizes": fmean(gaps(name)) for name in others},
        }

    def facts(self) -> dict[str, Any]:
        """What stands in the result file beside the rows."""
        return {"law": self.laws, "verdict": self.verdict(), "runs": self.runs}

    def _laws(self) -> tuple[RateLaw, RateLaw, float]:
        assert self.laws is not None
        law, other = RateLaw.from_json(self.laws["law"]), RateLaw.from_json(self.laws["other"])
        eigenvalue = next(each for each in (other, law) if each.source["bound"] == "eigenvalue")
        return law, eigenvalue, law.rate(self.config.tuned_at)

    def _run(self, plan: Mapping[str, Any]) -> list[float]:
        """Percent wrong under each corruption, one after the other without a reset."""
        if self._images is None or self._images[0] != plan["seed"]:
            self._images = plan["seed"], stream_images(self.config, plan["seed"])
        adaptation = self.config.adaptation
        small = adaptation.small_batch if plan["window"] else 1
        when = "always" if plan["rate"] else "off"
        config = replace(adaptation, learning_rate=plan["rate"], small_batch=small, when=when)
        adapter = self.network.adapter(config)
        errors = []
        for images, labels in self._images[1].values():
            frames, truth = images.numpy(), labels.numpy()
            wrong = 0
            for k in range(0, len(labels), plan["batch_size"]):
                logits = adapter.step(frames[k : k + plan["batch_size"]]).logits
                wrong += int((logits.argmax(1) != truth[k : k + plan["batch_size"]]).sum())
            errors.append(100 * wrong / len(labels))
        return errors

    def _error(self, batch: int, plan: tuple[int, float], seed: int) -> float | None:
        window, rate = plan
        run = self._done.get(_key({"batch_size": batch, "window": window, "seed": seed, "rate": rate}))
        return None if run is None else fmean(run["errors"])


def shipped_network(config: StreamConfig) -> Network:
    """Identity meta-networks with source statistics: the start that needs no warm-up."""
    from edgetta.export.content import measure_content
    from edgetta.export.recipe import Recipe, derive_recipe

    derived = derive_recipe(Recipe(config.model, weights=str(data_folder() / config.weights), adapt="meta"))
    rows = _drawn(TRAINING_IMAGES, config.statistics_images, config.source_seed + 1)
    clean = _tensor(cifar10_jpeg("train", rows).images)
    network = with_source_statistics(derived.network(), batches_of(clean, 64))
    return replace(network, content=measure_content(network.programs, batches_of(clean, 64)))


def source_rates(network: Network, config: StreamConfig, say: Say) -> AdaptationRates:
    """The law, from training images under the four corruptions that the stream does not have."""
    domains = corrupted("train", TRAINING_IMAGES, config.source_images, config.source_seed, EXTRA_CORRUPTIONS, config)
    curvature = measure_adaptation(
        network,
        {name: images for name, (images, _) in domains.items()},
        config.adaptation,
        config.ladder,
        batches=config.batches,
        probes=config.probes,
        seed=config.source_seed,
        progress=lambda event: say(event.message),
    )
    return adaptation_rates(
        network,
        domains,
        config.adaptation,
        curvature,
        batch_size=config.tuned_at,
        rates=config.tuned_rates,
        progress=lambda event: say(event.message),
    )


def stream_images(config: StreamConfig, seed: int) -> Domains:
    """The same test images under each of the 15 corruptions, drawn and ordered by the seed."""
    return corrupted("test", TEST_IMAGES, config.images, seed, CORRUPTIONS, config)


def corrupted(
    split: str, count: int, images: int, seed: int, names: Sequence[str], config: StreamConfig
) -> dict[str, tuple[Tensor, Tensor]]:
    """Images (N, C, H, W) in [0, 1] of a split under each corruption, and labels."""
    rows = _drawn(count, images, seed)
    data = cifar10_jpeg(split, rows)
    labels = torch.from_numpy(data.labels)
    return {
        name: (_tensor(corrupt(data.images, name, config.severity, seed=seed, indices=rows)), labels) for name in names
    }


def settings(config: StreamConfig) -> dict[str, Any]:
    """The protocol as the result file has it."""
    plain = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(config).items()}
    return {**plain, "data": "CIFAR-10 (JPEG-75 copy)", "source_corruptions": list(EXTRA_CORRUPTIONS)}


def _key(run: Mapping[str, Any]) -> tuple[Any, ...]:
    return run["batch_size"], run["window"], run["seed"], round(run["rate"], 9)


def _drawn(count: int, images: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(count)[:images]


def _tensor(images: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float().div_(255)
