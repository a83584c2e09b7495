"""The rate law that travels in a bundle: its shape from curvature, its height from one rate tuned on source images.

Curvature says how rates at two batch sizes compare. It does not say how fast to descend an objective without a
minimum: a rate is tuned at one batch size, by error, on labelled source images under corruptions that are not those of
the stream, and the law carries it to the others.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from typing import Any, Literal

from torch import Tensor

from edgetta.adaptation.config import AdaptConfig
from edgetta.adaptation.objective import divergence
from edgetta.engines.contract import Statistics
from edgetta.errors import UsageError
from edgetta.offline.curvature import NotFiniteError, Progress, ProgressCallback
from edgetta.offline.learning_rate.adaptation_curvature import PROBE, AdaptationCurvature, mixing_of, statistics_now
from edgetta.offline.learning_rate.analysis import LearningRateAnalysis
from edgetta.offline.learning_rate.fit import fit_forms
from edgetta.offline.network import Network
from edgetta.offline.pixels import as_floats
from edgetta.rate_law import RateLaw

Domains = Mapping[str, tuple[Tensor, Tensor]]
"""Name of a corruption -> images (N, C, H, W) under it, labels (N,)."""
Bound = Literal["divergence", "eigenvalue"]
RATES = (1e-3, 3e-3, 1e-2, 2e-2, 3e-2, 6e-2)
"""Rates tried where a height is tuned."""


@dataclass(frozen=True)
class Tuning:
    """Errors (0 to 1) on the stream of all domains, for the rates tried at one batch size."""

    batch_size: int
    errors: Mapping[float, float]  # rate -> error; rate 0: adaptation off

    @property
    def best(self) -> float:
        """The positive rate of the lowest error; of equals the smallest."""
        return min((rate for rate in self.errors if rate > 0), key=lambda rate: (self.errors[rate], rate))


@dataclass(frozen=True)
class AdaptationRates:
    """Everything that was measured, and the law that follows."""

    curvature: AdaptationCurvature
    tuning: Tuning
    config: AdaptConfig
    bound: Bound  # that gives the law its shape
    expected: Mapping[int, float]  # batch size -> divergence of one of the first updates at the law's rate
    seconds: float

    def law(self) -> RateLaw:
        """The law for the bundle."""
        law = rate_law(self.curvature, self.tuning.batch_size, self.tuning.best, self.config, self.bound)
        return replace(law, divergence=tuple(self.expected[size] for size in law.batch_sizes))

    def to_json(self) -> dict[str, Any]:
        """Plain values: the law, the law of the other bound beside it, and what they were made of."""
        other: Bound = "eigenvalue" if self.bound == "divergence" else "divergence"
        anchor = self.tuning.batch_size, self.tuning.best
        rungs = self.curvature.ladder.rungs
        return {
            "law": self.law().to_json(),
            "other": rate_law(self.curvature, *anchor, self.config, other).to_json(),
            "tuning": {"batch_size": self.tuning.batch_size, "errors": list(self.tuning.errors.items())},
            "eigenvalues": [asdict(rung) for rung in rungs],
            "speeds": [{"batch_size": size, "values": values} for size, values in self.curvature.speeds.items()],
            "unconfident": self.curvature.unconfident,
            "domains": list(self.curvature.domains),
            "adaptation": asdict(self.config),
            "seconds": self.seconds,
        }


def adaptation_rates(
    network: Network,
    domains: Domains,
    config: AdaptConfig,
    curvature: AdaptationCurvature,
    *,
    batch_size: int = 64,
    rates: Sequence[float] = RATES,
    bound: Bound = "divergence",
    progress: ProgressCallback | None = None,
) -> AdaptationRates:
    """Tune one rate, carry it to every batch size by the curvature, and see what the first updates then do.

    Args:
        network: as in `measure_adaptation`.
        domains: with labels.
        config: everything but the rate.
        curvature: of the same network, objective and domains.
        batch_size: that the rate is tuned at; one of those measured.
        rates: to try.
        bound: that gives the shape.
    """
    begun = time.perf_counter()
    tuning = tune_rate(network, domains, config, batch_size, rates, progress)
    law = rate_law(curvature, batch_size, tuning.best, config, bound)
    expected = {size: first_divergence(network, domains, config, law.rate(size), size) for size in law.batch_sizes}
    return AdaptationRates(curvature, tuning, config, bound, expected, time.perf_counter() - begun)


def rate_law(
    curvature: AdaptationCurvature, batch_size: int, rate: float, config: AdaptConfig, bound: Bound
) -> RateLaw:
    """The law through `rate` at `batch_size`, in the shape that a bound gives.

    "divergence": rates at which the stream's images change the predictions equally much, whatever batches they come
    in: a step of b images may change those of its own by b / `batch_size` of what one at `batch_size` does, so the
    rate is sqrt(2 d b / E[g^T F g]), as measured. Equal change per step would let small batches, which make more
    steps, drift further. "eigenvalue": proportional to 2 / |lambda|(b), in the form that the eigenvalues support.

    Raises:
        UsageError: `batch_size` was not measured.
    """
    sizes = curvature.ladder.batch_sizes
    if batch_size not in sizes:
        raise UsageError(f"batch size {batch_size} was not measured; measured are {', '.join(map(str, sizes))}")
    source = {
        "objective": f"filtered entropy + {config.regulariser:g} x regulariser",
        "bound": bound,
        "domains": ", ".join(curvature.domains),
        "tuned": f"{rate:g} at batch size {batch_size}",
        "date": datetime.now(timezone.utc).date().isoformat(),
    }
    if bound == "eigenvalue":
        ladder = curvature.ladder
        values = {rung.batch_size: rung.magnitudes for rung in ladder.rungs}
        analysis = LearningRateAnalysis(ladder, fit_forms(values), "magnitude", config.momentum, None, 0.0)
        law = analysis.law("sgd").anchored(batch_size, rate)
        return replace(
            law,
            optimizer="momentum" if config.momentum else "sgd",
            momentum=config.momentum,
            source={**source, "support": analysis.support.reason},
        )
    if bound != "divergence":
        raise UsageError(f"bound {bound!r} is unknown; choose divergence or eigenvalue")
    speeds = [curvature.speed(size) for size in sizes]
    budgets = [PROBE * size / batch_size for size in sizes]
    law = RateLaw(
        "momentum" if config.momentum else "sgd",
        "measured",
        sizes,
        tuple((2 * d / speed.value) ** 0.5 for d, speed in zip(budgets, speeds, strict=True)),
        tuple((2 * d / speed.high) ** 0.5 for d, speed in zip(budgets, speeds, strict=True)),
        tuple((2 * d / speed.low) ** 0.5 for d, speed in zip(budgets, speeds, strict=True)),
        momentum=config.momentum,
        source=source,
    )
    return law.anchored(batch_size, rate)


def tune_rate(
    network: Network,
    domains: Domains,
    config: AdaptConfig,
    batch_size: int,
    rates: Sequence[float],
    progress: ProgressCallback | None = None,
) -> Tuning:
    """The error of each rate, and with adaptation off, on one stream of all domains, one after the other.

    Every batch is an update, from all of its images.

    Raises:
        UsageError: no rate, or one that is not positive.
    """
    tried = sorted(set(rates))
    if not tried or tried[0] <= 0:
        raise UsageError(f"rates {list(rates)} cannot be tried; give positive ones")
    errors: dict[float, float] = {}
    for number, rate in enumerate((0.0, *tried), 1):
        plan = replace(_whole_batches(config, batch_size), learning_rate=rate, when="always" if rate else "off")
        errors[rate] = stream_error(network, domains, plan, batch_size)
        if progress is not None:
            progress(Progress(f"rate {rate:g}: {100 * errors[rate]:.2f} % error", number, len(tried) + 1))
    return Tuning(batch_size, errors)


def stream_error(network: Network, domains: Domains, config: AdaptConfig, batch_size: int) -> float:
    """Share (0 to 1) of images that an adapter, from the state that ships, gets wrong before it learns from them."""
    wrong = seen = 0
    adapter = network.adapter(config)
    for images, labels in domains.values():
        for k in range(0, len(images), batch_size):
            logits = adapter.step(as_floats(images[k : k + batch_size]).numpy()).logits
            wrong += int((logits.argmax(1) != labels[k : k + batch_size].numpy()).sum())
            seen += len(logits)
    return wrong / seen


def first_divergence(network: Network, domains: Domains, config: AdaptConfig, rate: float, batch_size: int) -> float:
    """How much one of the first updates changes the predictions of its images: the median over updates and domains.

    Of whole batches of the size, as many as a device watches.

    Raises:
        NotFiniteError: they do not change.
    """
    plan = replace(_whole_batches(config, batch_size), learning_rate=rate, when="off")
    engine, found = network.engine, []
    for images, _ in domains.values():
        adapter = network.adapter(plan)
        for k in range(0, min(max(config.watched, 1), len(images) // batch_size) * batch_size, batch_size):
            batch = as_floats(images[k : k + batch_size]).numpy()
            adapter.step(batch)  # statistics follow; the update is made here, where both sides of it are seen
            statistics = statistics_now(adapter)
            if statistics is None:
                own = engine.measure(batch, adapter.state.parameters, mixing_of(engine, None))[1]
                statistics = Statistics(own.mean, own.variance)
            moved, learnt = adapter.learner.update(adapter.state, batch, statistics)
            after = engine.predict(batch, moved.parameters, statistics)
            found.append(divergence(learnt.logits, after))
            adapter.state = moved
    median = sorted(found)[len(found) // 2]
    if not median > 0:
        raise NotFiniteError(f"updates of {batch_size} images at rate {rate:g} change no prediction")
    return median


def _whole_batches(config: AdaptConfig, batch_size: int) -> AdaptConfig:
    """Updates from all images of every batch."""
    return replace(config, small_batch=1, learn_images=batch_size)
