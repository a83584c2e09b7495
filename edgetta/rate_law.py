"""The learning rate as a function of the batch size: a law measured before shipping that travels in the bundle.

Only the standard library and numpy are needed here, so that a device and a planner can read it without torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from edgetta.errors import BundleError, UsageError

VERSION = 1
OPTIMIZERS = ("sgd", "momentum", "nesterov", "adam")
FORMS = ("marchenko_pastur", "wigner", "square_root", "measured")
_TABLES = ("batch_sizes", "rates", "low", "high", "divergence")


@dataclass(frozen=True)
class RateLaw:
    """The largest stable learning rate for each batch size, with intervals, and the fraction of it to be used.

    Forms, with x = batch size / crossover:

    - "marchenko_pastur": limit / (1 + 1/x): linear in the batch size where noise rules, constant beyond.
    - "wigner": limit / (1 + 1/x) for x > 1, else limit * sqrt(x) / 2: a square root where noise rules.
    - "square_root": limit * sqrt(x), and limit from the crossover on: the rule for Adam-like methods.
    - "measured": straight lines between the table's points on logarithmic axes; proportional to the batch size below
      the smallest, constant above the largest.

    That adaptive methods follow a square root is the paper's (Granziol, Zohren and Roberts, JMLR 23(173), 2022,
    abstract); its full text could not be read here. The other two forms are the outlier formulas of spiked random
    matrices, and which of them holds is fitted, never assumed; see `edgetta.offline.learning_rate`.
    """

    optimizer: str  # "sgd", "momentum", "nesterov" or "adam"
    form: str  # see above
    batch_sizes: tuple[int, ...]  # where it was measured, ascending
    rates: tuple[float, ...]  # largest stable rate at each
    low: tuple[float, ...]  # lower end of the interval at each
    high: tuple[float, ...]  # upper end of the interval at each
    limit: float | None = None  # largest stable rate of very large batches; None for "measured"
    crossover: float | None = None  # batch size below which noise limits the rate; None for "measured"
    fraction: float = 1.0  # of the largest stable rate that `rate` gives
    momentum: float = 0.0  # that the law was made for
    divergence: tuple[float, ...] = ()  # KL, nats per image, that one update at `rate` was seen to cause; or nothing
    source: Mapping[str, str] = field(default_factory=dict)  # objective, policy, data, date, for the reader

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            BundleError: names the field and what is wrong with it.
        """
        for name in _TABLES:
            object.__setattr__(self, name, tuple(getattr(self, name)))
        _require(self.optimizer in OPTIMIZERS, f"optimizer {self.optimizer!r} is not one of {', '.join(OPTIMIZERS)}")
        _require(self.form in FORMS, f"form {self.form!r} is not one of {', '.join(FORMS)}")
        count = len(self.batch_sizes)
        _require(count > 0, "batch_sizes is empty")
        for size in self.batch_sizes:
            _require(
                isinstance(size, int) and not isinstance(size, bool) and size > 0, f"batch size {size!r} is wrong"
            )
        _require(list(self.batch_sizes) == sorted(set(self.batch_sizes)), "batch_sizes do not ascend")
        for name in _TABLES[1:]:
            values = getattr(self, name)
            absent = name == "divergence" and not values
            _require(absent or len(values) == count, f"{name} has {len(values)} entries for {count} batch sizes")
            for value in values:
                _require_positive(name, value)
        for low, rate, high in zip(self.low, self.rates, self.high, strict=True):
            _require(low <= rate <= high, f"the interval [{low}, {high}] does not hold the rate {rate}")
        for name in ("limit", "crossover"):
            value = getattr(self, name)
            if self.form == "measured":
                _require(value is None, f"{name} must be absent from a measured law")
            else:
                _require_positive(name, value)
        _require_positive("fraction", self.fraction)
        _require(_is_number(self.momentum) and 0 <= self.momentum < 1, f"momentum {self.momentum!r} is not in [0, 1)")
        _require(
            isinstance(self.source, Mapping)
            and all(isinstance(key, str) and isinstance(value, str) for key, value in self.source.items()),
            "source must map words to words",
        )

    def rate(self, batch_size: float) -> float:
        """The learning rate to use at a batch size: `fraction` of the largest stable one.

        Raises:
            UsageError: the batch size is not positive.
        """
        return self.fraction * self.stable_rate(batch_size)

    def stable_rate(self, batch_size: float) -> float:
        """The largest stable learning rate at a batch size."""
        _check_batch_size(batch_size)
        if self.limit is None or self.crossover is None:
            smallest = self.batch_sizes[0]
            inside = float(np.exp(np.interp(math.log(batch_size), np.log(self.batch_sizes), np.log(self.rates))))
            return inside * min(1.0, batch_size / smallest)
        x = batch_size / self.crossover
        if self.form == "square_root":
            return self.limit * math.sqrt(min(x, 1.0))
        return self.limit / float(inflation(self.form, x))

    def interval(self, batch_size: float) -> tuple[float, float]:
        """The interval around `rate(batch_size)`.

        Between measured batch sizes it is interpolated; outside them its width, as a factor, is raised to the power
        1 + the number of doublings to the nearest one. That widening is ours, a caution and no statistical result.
        """
        rate = self.rate(batch_size)
        position = math.log(batch_size)
        sizes = np.log(self.batch_sizes)
        beyond = max(sizes[0] - position, position - sizes[-1], 0.0) / math.log(2)
        power = 1 + beyond
        below = np.interp(position, sizes, np.log(np.divide(self.low, self.rates)))
        above = np.interp(position, sizes, np.log(np.divide(self.high, self.rates)))
        return rate * math.exp(power * float(below)), rate * math.exp(power * float(above))

    def regime(self, batch_size: float) -> str:
        """What bounds the rate at a batch size.

        "noise-limited": the stable rate grows faster than the square root of the batch size (below the crossover);
        "curvature-limited": a larger batch bears hardly a larger rate.
        """
        _check_batch_size(batch_size)
        if self.crossover is not None:
            return "noise-limited" if batch_size < self.crossover else "curvature-limited"
        step = 2**0.25  # the slope over half a doubling around the batch size
        gain = self.stable_rate(batch_size * step) / self.stable_rate(batch_size / step)
        return "noise-limited" if gain > step else "curvature-limited"

    def expected_divergence(self, batch_size: float) -> float:
        """How much one update at `rate(batch_size)` changes the predictions of its own images: KL in nats per image.

        Between measured batch sizes it is interpolated, beyond them that of the nearest is taken.

        Raises:
            UsageError: it was not measured.
        """
        _check_batch_size(batch_size)
        if not self.divergence:
            raise UsageError("this rate law has no divergence: it was not measured")
        logarithms = np.log(self.divergence)
        return math.exp(float(np.interp(math.log(batch_size), np.log(self.batch_sizes), logarithms)))

    def anchored(self, batch_size: float, rate: float) -> RateLaw:
        """The law of the same shape that gives `rate` at `batch_size`: a rate tuned once serves every batch size.

        What an update does to the predictions belongs to the old rate and is dropped.
        """
        _require_positive("rate", rate)
        return replace(self, fraction=rate / self.stable_rate(batch_size), divergence=())

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        return {"version": VERSION, **plain, "source": dict(self.source)}

    @classmethod
    def from_json(cls, value: Any) -> RateLaw:
        """Read what `to_json` wrote.

        Raises:
            BundleError: it is of another version, a field is missing, unknown, or holds what it cannot hold.
        """
        _require(isinstance(value, Mapping), f"it is a {type(value).__name__} instead of an object")
        _require(
            value.get("version") == VERSION, f"its version is {value.get('version')!r}; this edgetta reads {VERSION}"
        )
        known = {item.name for item in fields(cls)}
        given = set(value) - {"version"}
        _require(given <= known, f"unknown field {', '.join(sorted(given - known))}")
        needed = {"optimizer", "form", "batch_sizes", "rates", "low", "high"}
        _require(needed <= given, f"missing field {', '.join(sorted(needed - given))}")
        for name in given & set(_TABLES):
            _require(isinstance(value[name], list), f"{name} is not a list")
        return cls(**{name: value[name] for name in given})


def inflation(form: str, x: np.ndarray | float) -> np.ndarray:
    """How much larger the top eigenvalue of a batch is than that of very large batches, at x = batch / crossover.

    "marchenko_pastur": 1 + 1/x; "wigner": 1 + 1/x above x = 1, else 2/sqrt(x) (both are 2 at x = 1).
    """
    ratio = np.asarray(x, dtype=np.float64)
    outlier = 1 + 1 / ratio
    if form == "marchenko_pastur":
        return outlier
    if form == "wigner":
        return np.where(ratio > 1, outlier, 2 / np.sqrt(ratio))
    raise ValueError(f"{form!r} is no form of a top eigenvalue")


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise BundleError(f"unusable rate law: {problem}; measure it again with `edgetta learning-rate`")


def _check_batch_size(batch_size: float) -> None:
    if not _is_number(batch_size) or batch_size <= 0:
        raise UsageError(f"batch size {batch_size!r} is not possible; give a positive number")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _require_positive(name: str, value: Any) -> None:
    _require(_is_number(value) and value > 0, f"{name} holds {value!r} instead of a positive number")
