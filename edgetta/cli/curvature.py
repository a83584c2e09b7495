"""`edgetta curvature`: extreme eigenvalues, trace and spectral density of a model's loss."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgetta.cli.help_tiers import two_tiers
from edgetta.cli.settings import config_option
from edgetta.cli.surface_options import make_folder, measured_operator, surface_options

if TYPE_CHECKING:
    from edgetta.offline.curvature import Spectrum


@click.command(
    cls=two_tiers(
        *("out", "data", "samples", "parameters", "batch", "iterations", "probes", "resumable", "device"),
        *("weights", "input_size", "mean", "std", "option", "quiet"),
    )
)
@click.argument("model")
@click.option("-o", "--out", metavar="DIR", required=True, type=click.Path(path_type=Path), help="For the results.")
@surface_options
@click.option("--batch", metavar="N", type=click.IntRange(1), default=256, show_default=True, help="Images per pass.")
@click.option("--iterations", metavar="N", type=click.IntRange(1), default=50, show_default=True, help="Of Lanczos.")
@click.option(
    "--probes", metavar="N", type=click.IntRange(1), default=3, show_default=True, help="Random start vectors."
)
@click.option(
    "--storage",
    type=click.Choice(["auto", "memory", "half", "disk"]),
    default="auto",
    show_default=True,
    help="Of the Lanczos vectors; auto takes the first that half of the free memory allows.",
)
@click.option("--resumable", is_flag=True, help="Keep the vectors in DIR, so that the same command again continues.")
@click.option("-q", "--quiet", is_flag=True, help="No progress and no table.")
@config_option
def command(**values: Any) -> None:
    """Estimate the spectrum of the Hessian (or another curvature matrix) of a model's loss.

    MODEL is a built-in network (resnet20, wrn40_2, ...), timm:NAME, torchvision:NAME, path/file.py:function (this
    runs the file: only name files that you trust), a program path/model.pt2; with --parameters adapted also a
    folder that `edgetta prepare` wrote, or a bundle.

    DATA is a folder with one sub-folder per class, an .npz with images and labels, or a built-in name: digits,
    cifar10-jpeg.

    DIR then holds spectrum.json (extremes with residual bounds, trace), spectrum.safetensors (Ritz values and weights
    of every probe) and spectrum.svg. Under `torchrun` the processes share the data.

    \b
    Examples:
      edgetta curvature resnet20 --weights r20.npz --data cifar10-jpeg -o curvature/
      edgetta curvature prepared/ --parameters adapted --objective entropy --data photos/ -o curvature/
      edgetta curvature resnet20 --parameters layer3 --operator ggn --data cifar10-jpeg -o layer3/
      torchrun --nproc-per-node 4 -m edgetta curvature resnet20 --device cuda --data cifar10-jpeg -o curvature/
    """
    from edgetta.cli.progress import progress_bar
    from edgetta.cli.tables import print_line
    from edgetta.offline.curvature import Progress, describe, launched_processes, measure_spectrum, save_spectrum

    out: Path = values["out"]
    with launched_processes() as processes:
        first = processes.rank == 0
        show = first and not values["quiet"]
        operator = measured_operator(values, values["batch"], show=show)
        if first:
            make_folder(out)
        state = out / "state" if values["resumable"] or values["storage"] == "disk" else None
        total = values["iterations"] * values["probes"]
        with progress_bar("measuring", total, unit="products", show=show) as update:

            def tell(event: Progress) -> None:
                if event.step == 0 and show:
                    print_line(event.message, stderr=True)
                update(event.step, note=event.message)

            measured = measure_spectrum(
                operator,
                iterations=values["iterations"],
                probes=values["probes"],
                seed=values["seed"],
                storage=values["storage"],
                folder=state,
                progress=tell,
                description={
                    "model": values["model"],
                    "data": values["data"],
                    "objective": values["objective"],
                    **describe(operator),
                },
            )
        if first:
            save_spectrum(measured, out)
            drawn = _draw(measured, out / "spectrum.svg", values["model"])
            if show:
                _show(measured, out, drawn)


def _draw(measured: Spectrum, path: Path, title: str) -> bool:
    from edgetta.errors import MissingDependencyError
    from edgetta.offline.curvature import plot_spectrum

    try:
        plot_spectrum(measured, path, title=title)
    except MissingDependencyError:
        return False
    return True


def _show(measured: Spectrum, out: Path, drawn: bool) -> None:
    from edgetta.cli.tables import print_facts

    (largest, top), (smallest, bottom), (trace, error) = measured.largest, measured.smallest, measured.trace()
    facts = measured.description
    asymmetry = max(run.asymmetry for run in measured.runs)
    picture = "" if drawn else " (no picture: pip install 'edgetta[offline]')"
    print_facts(
        [
            ("matrix", f"{facts['operator']}, {facts['parameters']:,} parameters, {facts['samples']:,} images"),
            ("largest", f"{largest:.5g} (residual {top:.1g})"),
            ("smallest", f"{smallest:.5g} (residual {bottom:.1g})"),
            ("trace", f"{trace:.4g}" + (f" ± {error:.2g}" if len(measured.runs) > 1 else " (one probe)")),
            ("asymmetry", f"{asymmetry:.1g}"),
            ("results", f"{out}{picture}"),
        ]
    )
