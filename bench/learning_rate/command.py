"""`edgetta bench learning-rate`: is the law right, and does it pay? Four parts, each with a result file."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgetta.cli.settings import config_option
from edgetta.errors import UsageError

if TYPE_CHECKING:
    from edgetta.bench.learning_rate.learner import LearnerBenchConfig

Until = Callable[[], bool]


@click.command(
    epilog="\b\nExamples:\n  edgetta bench learning-rate --part stream --json learning_rate_stream.json\n"
    "  edgetta bench learning-rate --part stream --minutes 8 --json stream.json   (again and again, until done)"
)
@click.option(
    "--part",
    type=click.Choice(["stream", "threshold", "hessian", "learner"]),
    required=True,
    help="What is measured; see above.",
)
@click.option(
    "--json", "path", type=click.Path(path_type=Path), help="Write the result file here; what is in it is not redone."
)
@click.option(
    "--minutes",
    metavar="N",
    type=click.FloatRange(0, min_open=True),
    help="Stop after about N minutes; the same command continues (with --json).",
)
@click.option(
    "--work",
    default="build/learning_rate",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Keeps the trained networks.",
)
@click.option("--model", default="preresnet20", show_default=True, help="learner: built-in network.")
@click.option("--width", default=0.25, show_default=True, help="learner: share of its published channels.")
@click.option("--data", default="cifar10-jpeg", show_default=True, help="learner: a folder of classes, .npz or name.")
@click.option("--training-images", default=10_000, show_default=True, type=click.IntRange(1), help="learner: at most.")
@click.option("--test-images", default=5000, show_default=True, type=click.IntRange(1), help="learner: at most.")
@click.option("--epochs", default=5, show_default=True, type=click.IntRange(1), help="learner: of training.")
@click.option("--batch", default=64, show_default=True, type=click.IntRange(1), help="learner: images per step.")
@click.option(
    "--momentum", default=0.9, show_default=True, type=click.FloatRange(0, 1, max_open=True), help="learner."
)
@click.option("--weight-decay", default=0.0, show_default=True, type=click.FloatRange(0), help="learner: of SGD.")
@click.option(
    "--rules", default="quantile,ssgdm-median", show_default=True, help="learner: of rates from curvature, by name."
)
@click.option("--grid", default="0.01,0.03,0.1,0.3,1", show_default=True, help="learner: constant rates.")
@click.option("--device", default="cpu", show_default=True, help="learner: cpu or cuda.")
@config_option
def command(part: str, path: Path | None, minutes: float | None, work: Path, **training: Any) -> None:
    """Measure what curvature predicts, and what its rates are worth.

    \b
    stream     the error of an adapting stream with the law, against one rate for all batch sizes, linear and
               square-root scaling, the rule of SAR's code, the best of a grid, and no adaptation
    threshold  largest stable rates of SGD, momentum and Adam, predicted and written down, then measured
    hessian    extreme eigenvalues of batches, beside those of the whole data and those that theory predicts
    learner    training with rates from curvature, against a grid of constant rates

    Needs the images and weights of EDGETTA_DATA.
    """
    end = None if minutes is None else time.monotonic() + 60 * minutes

    def over() -> bool:
        return end is not None and time.monotonic() > end

    if part == "learner":
        from edgetta.bench.learning_rate.learner import LearnerBenchConfig

        rules, grid = _listed("--rules", training.pop("rules")), _rates(training.pop("grid"))
        _learner(path, over, LearnerBenchConfig(**training, rules=rules, grid=grid))
    else:
        {"stream": _stream, "threshold": _threshold, "hessian": _hessian}[part](path, over, work)
    if path is not None:
        click.echo(f"wrote {path}")


def _stream(path: Path | None, over: Until, work: Path) -> None:
    from edgetta.bench.learning_rate.stream import RULES, Stream, StreamConfig, settings
    from edgetta.bench.result_file import results_to_continue, write_results
    from edgetta.cli.progress import progress_bar

    config = StreamConfig()
    facts = settings(config)
    stream = Stream(config, None if path is None else results_to_continue(path, facts))

    def save() -> None:
        if path is not None:
            write_results(path, stream.rows(), facts, stream.facts())

    with progress_bar("rate law") as update:
        stream.make_law(lambda text: update(0, note=text))
    save()
    with progress_bar("streams", unit="runs") as update:
        for done, total, run in stream.advance():
            update(done, total, f"batch {run['batch_size']}, rate {run['rate']:.2g}")
            save()
            if over():
                break
    _table(
        "Error in percent, mean over seeds",
        ("batch", "window", *RULES, "oracle", "off"),
        [
            (
                f"{batch}",
                f"{window or '-'}",
                *(f"{_mean(own, f'{name}_error'):.2f}" for name in (*RULES, "oracle", "no_adaptation")),
            )
            for (batch, window), own in _grouped(stream.rows(), ("batch_size", "window"))
        ],
    )
    for name, value in stream.verdict().items():
        click.echo(f"{name}: {value:+.2f} points")


def _threshold(path: Path | None, over: Until, work: Path) -> None:
    from edgetta.bench.learning_rate.threshold import ThresholdConfig, Thresholds, checkpoint, plot, settings
    from edgetta.bench.result_file import results_to_continue, write_results
    from edgetta.cli.progress import progress_bar
    from edgetta.errors import MissingDependencyError

    config = ThresholdConfig()
    facts = settings(config)
    earlier = None if path is None else results_to_continue(path, facts)
    bench = Thresholds(config, checkpoint(config, work), earlier)

    def save() -> None:
        if path is not None:
            write_results(path, bench.rows, facts, bench.facts())

    with progress_bar("predicting") as update:
        for _ in bench.predict(lambda text: update(0, note=text)):
            save()
    if not over():
        with progress_bar("measuring", len(bench.rows), unit="thresholds") as update:
            for row in bench.measure():
                save()
                done = sum(each["measured_lr"] is not None for each in bench.rows)
                update(done, note=f"{row['optimizer']}, batch {row['batch_size']}")
                if over():
                    break
    if path is not None:
        with suppress(MissingDependencyError):
            for name in bench.analyses:
                plot(bench, name, path.with_name(f"{path.stem}.{name.replace(' x ', '-')}.svg"))
    _table(
        "Largest stable rate",
        ("network", "optimizer", "batch", "predicted", "low", "high", "measured", "predicted / measured"),
        [
            (
                row["network"],
                row["optimizer"],
                str(row["batch_size"]),
                *(_figure(row[key]) for key in ("predicted_lr", "predicted_low", "predicted_high", "measured_lr")),
                "reference" if row["reference"] else "-" if row["measured_lr"] is None else f"{_ratio(row):.2f}",
            )
            for row in bench.rows
        ],
    )
    for name, found in bench.verdict().items():
        click.echo(
            f"{name}: off by a factor of {found['worst_factor']:.2f} at most; exponent "
            f"{found['exponent_predicted']:.2f} predicted, {found['exponent_measured']:.2f} measured"
        )


def _hessian(path: Path | None, over: Until, work: Path) -> None:
    from edgetta.bench.learning_rate.batch_hessian import BatchHessianConfig, checkpoint, measure, settings
    from edgetta.bench.result_file import rows_to_continue, write_results
    from edgetta.cli.progress import progress_bar

    config = BatchHessianConfig()
    facts = settings(config)
    rows = [] if path is None else rows_to_continue(path, facts)
    done = {row["network"] for row in rows}
    with progress_bar("batch Hessians") as update:
        for found in measure(config, checkpoint(config, work), done, lambda text: update(0, note=text)):
            rows += found
            if path is not None:
                write_results(path, rows, facts)
            if over():
                break
    keys = ("lambda_max", "predicted_max", "gauss_newton_max", "perturbed_max", "whole_max", "lambda_min", "whole_min")
    _table(
        "Extreme eigenvalues of batches, mean; predicted; of the whole data",
        ("network", "operator", "batch", *keys),
        [
            (row["network"], row["operator"], str(row["batch_size"]), *(_figure(row[key]) for key in keys))
            for row in rows
        ],
    )


def _learner(path: Path | None, over: Until, config: LearnerBenchConfig) -> None:
    from edgetta.bench.learning_rate.learner import against_the_grid, measure, planned, settings
    from edgetta.bench.result_file import rows_to_continue, write_results
    from edgetta.cli.progress import progress_bar

    facts = settings(config)
    rows = [] if path is None else rows_to_continue(path, facts)
    done = {(row["method"], row["seed"]) for row in rows}
    with progress_bar("training", len(planned(config)), unit="runs") as update:
        for row in measure(config, done):
            rows.append(row)
            update(len(rows), note=f"{row['method']}: {100 * row['final_accuracy']:.1f} %")
            if path is not None:
                write_results(path, rows, facts)
            if over():
                break
    _table(
        "Accuracy in percent at equal epochs, mean over seeds",
        ("method", "seeds", "accuracy", "lowest", "time on curvature"),
        [
            (
                method,
                str(len(own)),
                f"{100 * _mean(own, 'final_accuracy'):.2f}",
                f"{100 * min(row['final_accuracy'] for row in own):.2f}",
                f"{100 * _mean(own, 'analysis_share'):.1f} %",
            )
            for (method,), own in _grouped(rows, ("method",))
        ],
    )
    for method, points in against_the_grid(rows, config.rules).items():
        for kind, difference in points.items():
            click.echo(f"{method}: {difference:+.2f} points against the best {kind} rate")


def _listed(option: str, text: str) -> tuple[str, ...]:
    entries = tuple(entry.strip() for entry in text.split(",") if entry.strip())
    if not entries:
        raise UsageError(f"{option} names nothing; separate entries by commas")
    return entries


def _rates(text: str) -> tuple[float, ...]:
    try:
        rates = tuple(float(entry) for entry in _listed("--grid", text))
    except ValueError as error:
        raise UsageError(f"--grid {text}: write numbers separated by commas") from error
    if min(rates) <= 0:
        raise UsageError(f"--grid {text}: rates are positive")
    return rates


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _ratio(row: dict[str, Any]) -> float:
    return float(row["predicted_lr"] / row["measured_lr"])


def _grouped(
    rows: Sequence[dict[str, Any]], keys: Sequence[str]
) -> list[tuple[tuple[Any, ...], list[dict[str, Any]]]]:
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return list(groups.items())


def _mean(rows: Sequence[dict[str, Any]], key: str) -> float:
    return sum(row[key] for row in rows) / len(rows)


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.width = max(console.width, 110)
    console.print(table)
