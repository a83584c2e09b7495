"""Extreme eigenvalues of batches beside those of the whole data, and beside what random-matrix theory predicts.

That batch extremes exceed those of the whole is the first theorem (Granziol, Zohren and Roberts, as their abstract has
it); here it is shown with numbers, on narrow networks of the kinds that the paper uses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgetta.bench.learning_rate.networks import DATA, NETWORKS, Narrow, surface_operator, trained
from edgetta.offline.curvature import OPERATORS, DataOperator
from edgetta.offline.learning_rate import BatchExtremes, WholeCurvature, measure_ladder, measure_whole

Say = Callable[[str], None]
Operators = Mapping[str, DataOperator]


@dataclass(frozen=True)
class BatchHessianConfig:
    """The protocol; it is written into the result file."""

    networks: tuple[Narrow, ...] = NETWORKS
    operators: tuple[str, ...] = ("hessian", "ggn")
    samples: int = 512  # of the whole data set
    batch_sizes: tuple[int, ...] = (8, 16, 32, 64, 128)
    batches: int = 4  # per size
    iterations: int = 30  # of Lanczos, per batch
    tolerance: float = 5e-3
    # A random start lies almost in the null space, where a small residual says nothing of the smallest eigenvalue.
    whole_iterations: int = 50
    whole_tolerance: float = 1e-9  # all iterations are made
    variance_sizes: tuple[int, ...] = (16, 64)
    probes: int = 4


THEORY = {"hessian": "wigner", "ggn": "marchenko_pastur"}
"""Which noise the paper takes for which matrix: additive for the Hessian, multiplicative for Gauss-Newton."""


def measure(
    config: BatchHessianConfig, operators_of: Callable[[Narrow], Operators], done: set[str], say: Say
) -> Iterator[list[dict[str, Any]]]:
    """The rows of one network after the other, without the networks that are `done`.

    Every row has the mean extremes over batches with an interval of lambda_max (`low`, `high`), what theory predicts
    for them from the whole data (`THEORY`), and the extremes of the whole (`whole_max`, `whole_min`) with the bound on
    the error of the smallest (`whole_min_residual`). Beside the prediction stand two of ours: `perturbed_max` and
    `perturbed_min`, from the noise that the extreme eigenvectors themselves meet, and, in rows of the Hessian,
    `gauss_newton_max`, what the multiplicative form says of its Gauss-Newton part.
    """
    for network in config.networks:
        if network.name in done:
            continue
        say(network.name)
        operators = operators_of(network)
        whole = {
            kind: measure_whole(
                operator,
                iterations=config.whole_iterations,
                tolerance=config.whole_tolerance,
                batch_sizes=config.variance_sizes,
                probes=config.probes,
                progress=lambda event: say(event.message),
            )
            for kind, operator in operators.items()
        }
        rows: list[dict[str, Any]] = []
        for kind, operator in operators.items():
            ladder = measure_ladder(
                operator,
                config.batch_sizes,
                batches=config.batches,
                iterations=config.iterations,
                tolerance=config.tolerance,
                progress=lambda event: say(event.message),
            )
            for rung in ladder.rungs:
                facts = {"network": network.name, "operator": kind, "parameters": operator.dimension}
                rows.append({**facts, **_row(rung, kind, whole)})
        yield rows


def checkpoint(config: BatchHessianConfig, work: Path) -> Callable[[Narrow], Operators]:
    """Gives the matrices of a network over `samples` images by their kind; trained once, then kept in a folder."""

    def operators(network: Narrow) -> Operators:
        module = trained(network, work)
        return {kind: surface_operator(module, config.samples, OPERATORS[kind]) for kind in config.operators}

    return operators


def _row(rung: BatchExtremes, kind: str, whole: Mapping[str, WholeCurvature]) -> dict[str, Any]:
    size, top, own = rung.batch_size, rung.lambda_max, whole[kind]
    predicted, perturbed = own.predict(size, THEORY[kind]), own.predict(size, "perturbed")
    beside = whole["ggn"].predict(size, "marchenko_pastur") if kind == "hessian" and "ggn" in whole else None
    return {
        "batch_size": size,
        "lambda_max": top.value,
        "lambda_min": rung.lambda_min.value,
        "predicted_max": predicted.maximum.value,
        "predicted_min": predicted.minimum and predicted.minimum.value,
        "low": top.low,
        "high": top.high,
        "theory": predicted.theory,
        "perturbed_max": perturbed.maximum.value,
        "perturbed_min": perturbed.minimum and perturbed.minimum.value,
        "gauss_newton_max": beside and beside.maximum.value,
        "whole_max": own.largest,
        "whole_min": own.smallest,
        "whole_min_residual": own.smallest_residual,
        "exceeding": sum(value > own.largest for value in rung.largest),
        "below": sum(value < own.smallest for value in rung.smallest),
        "batches": len(rung.largest),
    }


def settings(config: BatchHessianConfig) -> dict[str, Any]:
    """The protocol as the result file has it."""
    plain = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(config).items()}
    return {**plain, "networks": [asdict(each) for each in config.networks], "data": DATA, "batch_norm": "source"}
