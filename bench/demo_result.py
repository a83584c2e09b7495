"""What the demo is set to and what came out of it: figures, claims, and the content of `demo.json`."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from edgetta.adaptation.config import AdaptConfig
from edgetta.bench.baselines import TentConfig
from edgetta.bench.demo_backbone import TrainingConfig
from edgetta.corruption import CORRUPTIONS, frost_source
from edgetta.environment import environment
from edgetta.offline.warm_up import WarmUpConfig, WarmUpReport

if TYPE_CHECKING:
    from edgetta.export.batch_norm import Adapt

METHODS = ("source", "bn", "tent", "warm_up_only", "adapted")
"""In the order of the table; `warm_up_only` is our network with adaptation off."""

LEAST_GAIN = 10.0  # points of error that adaptation must take off the source
LARGEST_LOSS = 0.5  # points that it may be worse than the same network with adaptation off


@dataclass(frozen=True)
class DemoConfig:
    """Everything that decides what the demo finds, with the seeds."""

    training: TrainingConfig = field(default_factory=TrainingConfig)
    parts: int = 4
    adapt: Adapt = "affine"
    warm_up: WarmUpConfig = field(default_factory=lambda: WarmUpConfig(epochs=3))
    warm_up_severity: int = 4  # of the four corruptions that warm-up sees
    adaptation: AdaptConfig = field(default_factory=AdaptConfig)
    tent: TentConfig = field(default_factory=TentConfig)
    corruptions: tuple[str, ...] = CORRUPTIONS
    severity: int = 5
    parameters: str = "imagenet"  # the severity table: digits have no detail that the CIFAR table could destroy
    count: int = 640  # held-out digits under each corruption
    batch: int = 64
    repetitions: int = 15  # of the timing
    limit: int | None = None  # so many digits of each split; None: all
    seed: int = 0
    judge: bool = True  # whether the claims must hold

    @staticmethod
    def quick() -> DemoConfig:
        """The same way in seconds, to see that it works: too little training for its figures to mean anything."""
        whole = DemoConfig()
        return replace(
            whole,
            training=replace(whole.training, width=0.25, epochs=2),
            warm_up=replace(whole.warm_up, epochs=1),
            corruptions=("gaussian_noise", "brightness", "contrast"),
            count=64,
            batch=32,
            repetitions=2,
            limit=128,
            judge=False,
        )


@dataclass(frozen=True)
class Claim:
    """Something that the demo must show."""

    text: str
    holds: bool


@dataclass(frozen=True)
class DemoResult:
    """What came out. Errors are percent wrong, times medians in seconds per batch, bytes those of one batch."""

    errors: dict[str, dict[str, float]]  # method -> corruption -> error
    clean_error: float  # of the source, on the held-out digits as they are
    warm_up: WarmUpReport
    parameters: int  # of the backbone
    saved_bytes: int  # kept for the backward, as the contract counts
    stock_saved_bytes: int  # EcoTTA on stock autograd, without the regulariser and without biases
    stock_saved_bytes_with_regulariser: int
    tent_saved_bytes: int
    step_seconds: float  # prediction and update
    predict_seconds: float  # adaptation off
    inference_seconds: float  # the source network as one graph, BatchNorm folded, same engine
    stage_seconds: dict[str, float]
    curves: dict[str, list[float]]  # method -> percent wrong, batch by batch

    def mean(self, method: str) -> float:
        """Mean error over the corruptions."""
        return statistics.fmean(self.errors[method].values())

    def claims(self) -> tuple[Claim, ...]:
        gain = self.mean("source") - self.mean("adapted")
        over_bn = self.mean("adapted") - self.mean("bn")
        over_off = self.mean("adapted") - self.mean("warm_up_only")
        return (
            Claim(
                f"edgetta takes {gain:.1f} points off the source's error (at least {LEAST_GAIN:g})", gain >= LEAST_GAIN
            ),
            Claim(f"edgetta against BatchNorm statistics: {over_bn:+.2f} points (below 0)", over_bn < 0),
            Claim(
                f"adaptation on against off: {over_off:+.2f} points (at most +{LARGEST_LOSS:g})",
                over_off <= LARGEST_LOSS,
            ),
            Claim(
                f"kept bytes are {self.stock_saved_bytes / self.saved_bytes:.1f} times fewer than stock autograd's "
                "(more than 1)",
                self.saved_bytes < self.stock_saved_bytes,
            ),
        )

    def as_json(self, config: DemoConfig, engine: str) -> dict[str, Any]:
        """The content of `demo.json`."""
        names = list(self.errors["source"])
        return {
            **{f"{method}_error": self.mean(method) for method in METHODS},
            "error_unit": "percent wrong, mean over corruptions",
            "clean_source_error": self.clean_error,
            "saved_bytes": self.saved_bytes,
            "stock_saved_bytes": self.stock_saved_bytes,
            "stock_saved_bytes_with_regulariser": self.stock_saved_bytes_with_regulariser,
            "tent_saved_bytes": self.tent_saved_bytes,
            "step_seconds": self.step_seconds,
            "predict_seconds": self.predict_seconds,
            "inference_seconds": self.inference_seconds,
            "corruptions": [{"corruption": n, **{m: self.errors[m][n] for m in METHODS}} for n in names],
            "warm_up": asdict(self.warm_up),
            "backbone_parameters": self.parameters,
            "claims": [asdict(claim) for claim in self.claims()] if config.judge else [],
            "engine": engine,
            "stage_seconds": self.stage_seconds,
            "frost": frost_source(),
            **environment(),
            "settings": asdict(config),
        }
