"""From measured batch curvature to rates: the table, the supported law, and the files that carry them."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgetta.errors import UsageError
from edgetta.offline.curvature import CurvatureError, DataOperator, ProgressCallback, describe
from edgetta.offline.learning_rate.fit import FLOOR, FormFit, Support, fit_forms
from edgetta.offline.learning_rate.interval import Interval, mean_interval
from edgetta.offline.learning_rate.ladder import BatchExtremes, Ladder, measure_ladder
from edgetta.offline.learning_rate.rates import (
    gauss_newton_damping,
    gradient_descent_rate,
    heavy_ball_rate,
    mean_square_rate,
    square_root_rate,
)
from edgetta.offline.learning_rate.sharpness import BatchSharpness, batch_sharpness
from edgetta.offline.learning_rate.threshold import Threshold
from edgetta.rate_law import RateLaw
from edgetta.storage import atomic_write_json

VERSION = 1
FILE = "learning_rate.json"
Curvature = Literal["largest", "magnitude"]
ADAM_AVERAGE = 0.9
"""Adam's first beta, as torch has it."""


@dataclass(frozen=True)
class Row:
    """What follows for one batch size."""

    batch_size: int
    lambda_max: float  # mean over batches, from the supported form; measured where neither form holds
    lambda_max_low: float
    lambda_max_high: float
    lambda_min: float | None  # mean over batches; None for a batch size that was not measured
    lr_sgd: float  # largest stable rates
    lr_momentum: float  # the smaller of 2 (1 + beta) / lambda and the limit in mean square, `mean_square_rate`
    lr_adam: float | None  # None without a measured reference
    damping: float  # smallest stable damping of a Gauss-Newton step at rate 1; proportional to the rate
    regime: str  # "noise-limited" or "curvature-limited"


@dataclass(frozen=True)
class AdamReference:
    """A measured largest stable rate of Adam at one batch size."""

    batch_size: int
    threshold: Threshold


@dataclass(frozen=True)
class LearningRateAnalysis:
    """Measured curvature over batch size, the form that the data support, and the rates that follow."""

    ladder: Ladder
    support: Support
    curvature: Curvature  # "largest" eigenvalue, or largest "magnitude" for an indefinite matrix
    momentum: float  # for the momentum column and law
    adam: AdamReference | None
    seconds: float  # that the measurement took
    description: dict[str, Any] = field(default_factory=dict)
    sharpness: tuple[BatchSharpness, ...] = ()  # a cheaper second opinion, where it was asked for

    def with_adam(self, reference: AdamReference) -> LearningRateAnalysis:
        """The same with a measured reference for Adam."""
        return replace(self, adam=reference)

    def eigenvalue(self, batch_size: int) -> Interval:
        """lambda(b): the supported form's value, or the measured mean.

        Raises:
            UsageError: neither form is supported and the batch size was not measured.
        """
        if self.support.fit is not None:
            return self.support.fit.interval(batch_size)
        return _measured(self._rung(batch_size), self.curvature)

    def rows(self, batch_sizes: Sequence[int] | None = None) -> list[Row]:
        """The table, for the measured batch sizes or for others."""
        laws = {name: self.law(name) for name in ("sgd", "momentum", *(("adam",) if self.adam else ()))}
        limit = self._better.limit if self.support.fit else self.eigenvalue(self.ladder.batch_sizes[-1]).value
        rows = []
        for size in batch_sizes or self.ladder.batch_sizes:
            value = self.eigenvalue(size)
            measured = size in self.ladder.batch_sizes
            rows.append(
                Row(
                    size,
                    value.value,
                    value.low,
                    value.high,
                    self._rung(size).lambda_min.value if measured else None,
                    laws["sgd"].stable_rate(size),
                    laws["momentum"].stable_rate(size),
                    laws["adam"].stable_rate(size) if self.adam else None,
                    gauss_newton_damping(1.0, value.value, limit),
                    laws["sgd"].regime(size),
                )
            )
        return rows

    def law(self, optimizer: str = "sgd", *, fraction: float = 1.0) -> RateLaw:
        """The law for "sgd", "momentum" or "adam", ready for a bundle.

        Args:
            optimizer: Adam's needs a measured reference.
            fraction: of the largest stable rate that the law gives.

        Raises:
            UsageError: no such optimizer, or no reference for Adam.
        """
        source = {
            "operator": str(self.description.get("operator", "")),
            "batch_norm": str(self.description.get("batch_norm", "")),
            "curvature": self.curvature,
            "samples": str(self.ladder.samples),
            "support": self.support.reason,
            "date": str(self.description.get("date", "")),
        }
        sizes = self.ladder.batch_sizes
        if optimizer == "adam":
            return self._adam_law(fraction, source)
        if optimizer not in ("sgd", "momentum"):
            raise UsageError(f"there is a law for sgd, momentum and adam, not for {optimizer!r}")
        momentum = self.momentum if optimizer == "momentum" else 0.0
        values = [self.eigenvalue(size) for size in sizes]
        fit = self.support.fit
        if momentum:
            # Where batches are small, noise limits heavy ball long before the eigenvalue of a batch does.
            columns = [
                [self._momentum_rate(size, value) for value in (mid.value, mid.high, mid.low)]
                for size, mid in zip(sizes, values, strict=True)
            ]
            rates, low, high = zip(*columns, strict=True)
            source = {**source, "noise": "mean-square limit"}
            return RateLaw(
                optimizer, "measured", sizes, rates, low, high, fraction=fraction, momentum=momentum, source=source
            )
        return RateLaw(
            optimizer,
            self.support.choice,
            sizes,
            tuple(gradient_descent_rate(value.value) for value in values),
            tuple(gradient_descent_rate(value.high) for value in values),
            tuple(gradient_descent_rate(value.low) for value in values),
            limit=None if fit is None else gradient_descent_rate(fit.limit),
            crossover=None if fit is None else fit.crossover,
            fraction=fraction,
            source=source,
        )

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values: the table under "rows", the laws, the fits and every measured eigenvalue."""
        optimizers = ["sgd", "momentum", *(["adam"] if self.adam else [])]
        return {
            "version": VERSION,
            "rows": [asdict(row) for row in self.rows()],
            "laws": {name: self.law(name).to_json() for name in optimizers},
            "curvature": self.curvature,
            "momentum": self.momentum,
            "support": {
                "choice": self.support.choice,
                "reason": self.support.reason,
                "fits": {name: _fit_facts(fit) for name, fit in self.support.fits.items()},
            },
            "measured": [asdict(rung) for rung in self.ladder.rungs],
            "sharpness": [
                {"batch_size": each.batch_size, **asdict(each.value), "lr_sgd": 2 / each.value.value}
                for each in self.sharpness
                if each.value.value > 0
            ],
            "adam_reference": None if self.adam is None else asdict(self.adam),
            "samples": self.ladder.samples,
            "sample_products": self.ladder.sample_products,
            "seconds": self.seconds,
            "description": self.description,
        }

    def save(self, folder: Path) -> Path:
        """Write `learning_rate.json` into a folder, which is made if missing."""
        folder.mkdir(parents=True, exist_ok=True)
        return atomic_write_json(folder / FILE, self.to_json())

    def _adam_law(self, fraction: float, source: dict[str, str]) -> RateLaw:
        if self.adam is None:
            raise UsageError("Adam's law needs a rate measured at one batch size; give an AdamReference")
        threshold, reference = self.adam.threshold, self.adam.batch_size
        # As for heavy ball: averaging gradients moves the end of the noise-limited range to larger batches.
        later = (1 + ADAM_AVERAGE) / (1 - ADAM_AVERAGE)
        found = self._better.crossover_interval
        crossover = Interval(*(later * value for value in (found.value, found.low, found.high)))

        def rates(start: float, cross: float) -> list[float]:
            return [square_root_rate(start, reference, size, cross) for size in self.ladder.batch_sizes]

        corners = [
            rates(start, cross)
            for start in (threshold.stable, threshold.unstable)
            for cross in (crossover.low, crossover.high)
        ]
        middle = rates(threshold.value, crossover.value)
        columns = list(zip(middle, *corners, strict=True))
        return RateLaw(
            "adam",
            "square_root",
            self.ladder.batch_sizes,
            tuple(middle),
            tuple(min(column) for column in columns),
            tuple(max(column) for column in columns),
            limit=square_root_rate(threshold.value, reference, crossover.value, crossover.value),
            crossover=crossover.value,
            fraction=fraction,
            source={**source, "reference": f"{threshold.value:.4g} at batch size {reference}"},
        )

    def _momentum_rate(self, batch_size: int, eigenvalue: float) -> float:
        """The smaller of the paper's limit, 2 (1 + beta) / lambda(b), and the mean-square one (ours)."""
        limit = min(self._better.limit, eigenvalue)
        noisy = mean_square_rate(limit, eigenvalue - limit, batch_size, self.momentum)
        return min(heavy_ball_rate(eigenvalue, self.momentum), noisy)

    @property
    def _better(self) -> FormFit:
        return self.support.fit or min(self.support.fits.values(), key=lambda fit: fit.chi_square)

    def _rung(self, batch_size: int) -> BatchExtremes:
        for rung in self.ladder.rungs:
            if rung.batch_size == batch_size:
                return rung
        raise UsageError(f"batch size {batch_size} was not measured; measured are {self.ladder.batch_sizes}")


def analyse_learning_rate(
    operator: DataOperator,
    batch_sizes: Sequence[int],
    *,
    curvature: Curvature = "largest",
    momentum: float = 0.9,
    adam: AdamReference | None = None,
    batches: int = 8,
    iterations: int = 30,
    tolerance: float = 0.02,
    smallest: bool = True,
    sharpness: bool = False,
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> LearningRateAnalysis:
    """Measure lambda(b) on real batches, fit its law, and derive the largest stable rates.

    Valid under any BatchNorm policy, because nothing but measured batches enters.

    Args:
        operator: the matrix, the data and the policy.
        batch_sizes: two or more; those below the crossover tell the forms apart.
        curvature: "magnitude" for an indefinite objective such as entropy.
        momentum: for the momentum column.
        adam: a reference measured with `stable_rate`, where Adam's column is wanted.
        sharpness: also measure `batch_sharpness`, at one product per batch.
        batches, iterations, tolerance, smallest, seed: see `measure_ladder`.

    Raises:
        CurvatureError: the largest eigenvalue of some batch size is not positive.
        DataSetTooSmallError: a batch is larger than the data set.
    """
    begun = time.perf_counter()
    ladder = measure_ladder(
        operator,
        batch_sizes,
        batches=batches,
        iterations=iterations,
        tolerance=tolerance,
        smallest=smallest,
        seed=seed,
        progress=progress,
    )
    values = {rung.batch_size: _values(rung, curvature) for rung in ladder.rungs}
    flat = [size for size, found in values.items() if min(found) <= 0]
    if flat:
        raise CurvatureError(
            f"the largest eigenvalue of a batch of {flat[0]} is not positive, so no rate follows from it; measure the "
            "largest magnitude instead (curvature='magnitude'), or another point in training"
        )
    return LearningRateAnalysis(
        ladder,
        fit_forms(values, seed=seed),
        curvature,
        momentum,
        adam,
        time.perf_counter() - begun,
        describe(operator),
        tuple(batch_sharpness(operator, batch_sizes, batches=batches, seed=seed)) if sharpness else (),
    )


def load_rows(path: Path) -> list[Row]:
    """The table of a saved analysis.

    Raises:
        CurvatureError: the file is missing, damaged or of another version.
    """
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        if facts["version"] != VERSION:
            raise CurvatureError(f"{path} is of version {facts['version']}; this edgetta reads version {VERSION}")
        return [Row(**row) for row in facts["rows"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CurvatureError(f"no readable learning-rate analysis at {path} ({error}); make it again") from error


def _values(rung: BatchExtremes, curvature: Curvature) -> tuple[float, ...]:
    return rung.largest if curvature == "largest" else rung.magnitudes


def _measured(rung: BatchExtremes, curvature: Curvature) -> Interval:
    """The mean over batches; a single batch carries the error floor of a Lanczos run."""
    found = mean_interval(np.array(_values(rung, curvature)))
    low = found.low if math.isfinite(found.low) and found.low > 0 else found.value * (1 - 2 * FLOOR)
    high = found.high if math.isfinite(found.high) else found.value * (1 + 2 * FLOOR)
    return Interval(found.value, low, high)


def _fit_facts(fit: FormFit) -> dict[str, Any]:
    return {
        "limit": asdict(fit.limit_interval),
        "crossover": asdict(fit.crossover_interval),
        "residuals": list(fit.residuals),
        "chi_square": fit.chi_square,
        "plausible": fit.plausible,
    }
