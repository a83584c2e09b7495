"""Extreme eigenvalues of batches beside those of the whole data, and beside what random-matrix theory predicts.

That batch extremes exceed those of the whole is the first theorem (Granziol, Zohren and Roberts, as their abstract has
it); here it is shown with numbers, on narrow networks of the kinds that the paper uses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgetta.bench.learning_rate.networks import DATA, NETWORKS, Narrow, surface_operator, trained
from edgetta.offline.curvature import OPERATORS
from edgetta.offline.learning_rate import measure_ladder, measure_whole

Say = Callable[[str], None]


@dataclass(frozen=True)
class BatchHessianConfig:
    """The protocol; it is written into the result file."""

    networks: tuple[Narrow, ...] = NETWORKS
    operators: tuple[str, ...] = ("hessian", "ggn")
    samples: int = 1024  # of the whole data set
    batch_sizes: tuple[int, ...] = (8, 16, 32, 64, 128)
    batches: int = 4  # per size
    iterations: int = 25
    tolerance: float = 0.03
    variance_sizes: tuple[int, ...] = (16, 64)
    probes: int = 4


THEORY = {"hessian": "wigner", "ggn": "marchenko_pastur"}
"""Which noise the paper takes for which matrix: additive for the Hessian, multiplicative for Gauss-Newton."""


def measure(
    config: BatchHessianConfig, work: Path, done: set[tuple[str, str]], say: Say
) -> Iterator[list[dict[str, Any]]]:
    """The rows of one network and operator after the other, without those that are `done`.

    Every row has the mean extremes over batches with an interval of lambda_max (`low`, `high`), what theory predicts
    for them from the whole data, and the extremes of the whole (`whole_max`, `whole_min`). For Hessians
    `perturbed_max` is the prediction from the noise along the top eigenvector instead of isotropic noise.
    """
    for network in config.networks:
        kinds = [kind for kind in config.operators if (network.name, kind) not in done]
        if not kinds:
            continue
        say(f"training {network.name}")
        module = trained(network, work)
        for kind in kinds:
            operator = surface_operator(module, config.samples, OPERATORS[kind])
            options = {"iterations": config.iterations, "tolerance": config.tolerance}
            whole = measure_whole(
                operator,
                **options,  # type: ignore[arg-type]
                batch_sizes=config.variance_sizes,
                probes=config.probes,
                progress=lambda event: say(event.message),
            )
            ladder = measure_ladder(
                operator,
                config.batch_sizes,
                batches=config.batches,
                **options,  # type: ignore[arg-type]
                progress=lambda event: say(event.message),
            )
            rows = []
            for rung in ladder.rungs:
                size, top = rung.batch_size, rung.lambda_max
                predicted = whole.predict(size, THEORY[kind])
                rows.append(
                    {
                        "network": network.name,
                        "operator": kind,
                        "batch_size": size,
                        "lambda_max": top.value,
                        "lambda_min": rung.lambda_min.value,
                        "predicted_max": predicted.maximum.value,
                        "predicted_min": None if predicted.minimum is None else predicted.minimum.value,
                        "low": top.low,
                        "high": top.high,
                        "theory": predicted.theory,
                        "perturbed_max": whole.predict(size, "perturbed").maximum.value,
                        "whole_max": whole.largest,
                        "whole_min": whole.smallest,
                        "parameters": operator.dimension,
                        "exceeding": sum(value > whole.largest for value in rung.largest),
                        "batches": len(rung.largest),
                    }
                )
            yield rows


def settings(config: BatchHessianConfig) -> dict[str, Any]:
    """The protocol as the result file has it."""
    plain = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(config).items()}
    return {**plain, "networks": [asdict(each) for each in config.networks], "data": DATA, "batch_norm": "source"}
