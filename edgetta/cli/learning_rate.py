"""`edgetta learning-rate`: the largest stable learning rate for each batch size, from curvature of real batches."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgetta.cli.help_tiers import two_tiers
from edgetta.cli.settings import config_option
from edgetta.cli.surface_options import make_folder, measured_operator, surface_options
from edgetta.errors import UsageError

if TYPE_CHECKING:
    from edgetta.offline.curvature import DataOperator, ProgressCallback
    from edgetta.offline.learning_rate import AdamReference, LearningRateAnalysis


@click.command(
    cls=two_tiers(
        *("out", "data", "samples", "parameters", "batch_sizes", "batches", "device"),
        *("weights", "input_size", "mean", "std", "option", "quiet"),
    )
)
@click.argument("model")
@click.option("-o", "--out", metavar="DIR", required=True, type=click.Path(path_type=Path), help="For the results.")
@surface_options
@click.option(
    "--batch-sizes",
    metavar="A,B,C",
    default="8,16,32,64,128",
    show_default=True,
    help="Two or more; small ones show where noise limits the rate.",
)
@click.option(
    "--batches", metavar="N", type=click.IntRange(1), default=8, show_default=True, help="Batches of each size."
)
@click.option(
    "--curvature",
    type=click.Choice(["auto", "largest", "magnitude"]),
    default="auto",
    show_default=True,
    help="What bounds a step: the largest eigenvalue, or the largest |eigenvalue|. auto: magnitude for entropy.",
)
@click.option("--iterations", metavar="N", type=click.IntRange(2), default=30, show_default=True, help="Of Lanczos.")
@click.option(
    "--tolerance",
    metavar="X",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.02,
    show_default=True,
    help="Of the residuals, as a share of the largest eigenvalue.",
)
@click.option(
    "--momentum",
    metavar="M",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.9,
    show_default=True,
    help="For the momentum column.",
)
@click.option(
    "--adam-reference",
    metavar="BATCH",
    type=click.IntRange(1),
    help="Measure Adam's largest stable rate at this batch size by trial runs, and carry it to the others.",
)
@click.option(
    "--trial-steps", metavar="N", type=click.IntRange(1), default=100, show_default=True, help="Of those runs."
)
@click.option("-q", "--quiet", is_flag=True, help="No progress and no table.")
@config_option
def command(**values: Any) -> None:
    """Find the learning rate that each batch size bears.

    The largest eigenvalue of real batches is measured for a ladder of batch sizes; the largest stable rates of SGD and
    of SGD with momentum follow, and a law over the batch size that travels in a bundle. With momentum the noise of
    small batches is the limit long before that eigenvalue is, and the table has the smaller of the two. A rate to
    train with is a fraction of these, such as a half.

    MODEL is a built-in network (resnet20, wrn40_2, ...), timm:NAME, torchvision:NAME, path/file.py:function (this
    runs the file: only name files that you trust), a program path/model.pt2; with --parameters adapted also a
    folder that `edgetta prepare` wrote, or a bundle.

    DATA is a folder with one sub-folder per class, an .npz with images and labels, or a built-in name: digits,
    cifar10-jpeg. DIR then holds learning_rate.json (table, laws, fits, every measured eigenvalue), eigenvalues.svg and
    rates.svg. Under `torchrun` the processes share the batches.

    \b
    Examples:
      edgetta learning-rate resnet20 --weights r20.npz --data cifar10-jpeg -o rates/
      edgetta learning-rate bundle/ --parameters adapted --objective entropy --data photos/ -o rates/
      edgetta learning-rate resnet20 --data cifar10-jpeg --batch-sizes 16,64,256 --adam-reference 64 -o rates/
    """
    from edgetta.cli.progress import progress_bar
    from edgetta.offline.curvature import Progress, launched_processes
    from edgetta.offline.learning_rate import analyse_learning_rate

    out: Path = values["out"]
    sizes = _sizes(values["batch_sizes"])
    curvature = values["curvature"]
    if curvature == "auto":
        curvature = "magnitude" if values["objective"] == "entropy" else "largest"
    with launched_processes() as processes:
        first = processes.rank == 0
        show = first and not values["quiet"]
        operator = measured_operator(values, max(sizes), show=show)
        if first:
            make_folder(out)
        with progress_bar("measuring", unit="batches", show=show) as update:

            def tell(event: Progress) -> None:
                update(event.step, event.total, event.message)

            adam = _adam(operator, values, tell)
            analysis = analyse_learning_rate(
                operator,
                sizes,
                curvature=curvature,
                momentum=values["momentum"],
                adam=adam,
                batches=values["batches"],
                iterations=values["iterations"],
                tolerance=values["tolerance"],
                sharpness=curvature == "largest",
                seed=values["seed"],
                progress=tell,
            )
        if first:
            analysis.description.update({name: values[name] for name in ("model", "data", "objective")})
            analysis.save(out)
            drawn = _draw(analysis, out)
            if show:
                _show(analysis, out, drawn)


def _sizes(text: str) -> list[int]:
    try:
        sizes = sorted({int(size) for size in text.split(",") if size.strip()})
    except ValueError as error:
        raise UsageError(f"--batch-sizes {text}: write whole numbers separated by commas") from error
    if len(sizes) < 2 or sizes[0] < 1:
        raise UsageError(f"--batch-sizes {text}: a law over the batch size needs two positive sizes at least")
    return sizes


def _adam(operator: DataOperator, values: dict[str, Any], tell: ProgressCallback) -> AdamReference | None:
    if values["adam_reference"] is None:
        return None
    import torch

    from edgetta.offline.curvature import Progress
    from edgetta.offline.learning_rate import AdamReference, Trial, stable_rate

    tell(Progress("trial runs of Adam", 0, 1))
    found = stable_rate(
        operator,
        values["adam_reference"],
        lambda parameters, rate: torch.optim.Adam(parameters, lr=rate),
        start=1e-2,
        trial=Trial(values["trial_steps"], warm_batches=30, seed=values["seed"]),
    )
    return AdamReference(values["adam_reference"], found)


def _draw(analysis: LearningRateAnalysis, out: Path) -> bool:
    from edgetta.errors import MissingDependencyError
    from edgetta.offline.learning_rate import plot_eigenvalues, plot_rates

    names = ("sgd", "momentum", *(("adam",) if analysis.adam else ()))
    try:
        plot_eigenvalues(analysis, out / "eigenvalues.svg")
        plot_rates({name: analysis.law(name) for name in names}, out / "rates.svg")
    except MissingDependencyError:
        return False
    return True


def _show(analysis: LearningRateAnalysis, out: Path, drawn: bool) -> None:
    from edgetta.cli.tables import print_facts, print_table, seconds_text

    columns = ("batch", "lambda_max", "low", "high", "lr sgd", "lr momentum", "lr adam", "damping", "regime")
    print_table(
        columns,
        [
            (
                row.batch_size,
                *(f"{x:.4g}" for x in (row.lambda_max, row.lambda_max_low, row.lambda_max_high)),
                *(f"{x:.3g}" for x in (row.lr_sgd, row.lr_momentum)),
                "not measured" if row.lr_adam is None else f"{row.lr_adam:.3g}",
                f"{row.damping:.3g}",
                row.regime,
            )
            for row in analysis.rows()
        ],
        left=("regime",),
    )
    unconverged = sum(rung.unconverged for rung in analysis.ladder.rungs)
    facts = [
        ("law", analysis.support.reason),
        ("time", seconds_text(analysis.seconds)),
        ("results", f"{out}" + ("" if drawn else " (no pictures: pip install 'edgetta[offline]')")),
    ]
    along = [(each.batch_size, each.value.value) for each in analysis.sharpness if each.value.value > 0]
    if along:
        text = ", ".join(f"{2 / value:.3g} at {size}" for size, value in along)
        facts.insert(1, ("sharpness", f"SGD's rate from the curvature along each batch's own gradient: {text}"))
    if unconverged:
        facts.insert(1, ("caution", f"{unconverged} batches above the tolerance: give more --iterations"))
    print_facts(facts)
