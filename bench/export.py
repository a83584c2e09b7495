"""`edgetta bench export`: networks that people have, from their name to a bundle, with what stands in the way."""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from edgetta.errors import EdgettaError, one_line

BATCH = 2
EXACT = 1e-7
"""Relative L2 errors in float64 that count as exact: BatchNorms are folded, and some constants are float32's."""


@click.command(
    epilog="Example: edgetta bench export --json export.json\n\n"
    "Example: edgetta bench export --model timm:resnet18,torchvision:swin_t"
)
@click.option("--model", "models", metavar="A,B", help="Networks; default every family's smallest member.")
@click.option(
    "--minutes", metavar="N", type=click.FloatRange(0, min_open=True), help="Stop after the first past this."
)
@click.option(
    "--json",
    "path",
    type=click.Path(path_type=Path),
    help="Write the result file here; networks in it are not redone.",
)
def command(models: str | None, minutes: float | None, path: Path | None) -> None:
    """Every model family of timm and torchvision: does it become a bundle, and is that exact?

    Weights are random, images of the size that each network is published for. Errors are relative L2 errors in float64
    of the traced graph (logits) and of its derivative (the gradient of the images) against torch. Bytes are the
    bundle's, seconds those from the network's name to the tested bundle, without measuring its memory.
    """
    from edgetta.bench.export_networks import NETWORKS

    names = NETWORKS if models is None else tuple(name.strip() for name in models.split(","))
    rows = run(names, path, minutes)
    for row in rows:
        click.echo(told(row))
    done = [row for row in rows if row["exported"]]
    click.echo(
        f"{len(done)} of {len(rows)} exported" + (f"; {len(names) - len(rows)} to go" if models is None else "")
    )
    if path is not None:
        click.echo(f"wrote {path}")
    wrong = [row["model"] for row in done if max(row["forward_error"], row["gradient_error"]) > EXACT]
    if wrong:
        raise EdgettaError(f"not exact: {', '.join(wrong)}")


def run(
    names: Sequence[str],
    path: Path | None,
    minutes: float | None = None,
    row: Callable[[str], dict[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """The rows of the networks given, and those that the file at `path` had; each is written as soon as it is there.

    Raises:
        UsageError: a file of other settings or versions.
    """
    from edgetta.bench.export_networks import LEFT_OUT
    from edgetta.bench.result_file import rows_to_continue, write_results
    from edgetta.cli.progress import progress_bar

    settings = {"batch": BATCH, "weights": "random", "exact": EXACT, "left_out": list(LEFT_OUT)}
    rows = [] if path is None else rows_to_continue(path, settings)
    begun = time.monotonic()
    missing = [name for name in names if name not in {known["model"] for known in rows}]
    with progress_bar("export", len(missing), unit="networks") as update:
        for count, name in enumerate(missing):
            update(count, note=name)
            rows.append((row or measured)(name))
            if path is not None:
                write_results(path, rows, settings)
            gc.collect()
            if minutes is not None and time.monotonic() - begun > 60 * minutes:
                break
    return rows


def told(row: dict[str, Any]) -> str:
    """One row as a line."""
    if not row["exported"]:
        return f"{row['model']}: not exported: {row['reason']}"
    errors = f"forward {row['forward_error']:.0e}, gradient {row['gradient_error']:.0e}"
    return f"{row['model']}: {errors}, {row['bytes'] / 1e6:.0f} MB, {row['seconds']:.0f} s, cut after {row['cuts']}"


def measured(name: str) -> dict[str, Any]:
    """What becomes of one network."""
    row: dict[str, Any] = {"model": name, "exported": False, "reason": ""}
    row |= {"forward_error": None, "gradient_error": None, "bytes": None, "seconds": None}
    try:
        return row | _exported(name)
    except EdgettaError as error:
        return row | {"reason": str(error)}
    except Exception as error:  # a network that fails otherwise is a finding of its own
        return row | {"reason": f"{type(error).__name__}: {one_line(error)}"}


def _exported(name: str) -> dict[str, Any]:
    import torch

    from edgetta.adaptation.config import AdaptConfig
    from edgetta.bench.exactness.reference import randomise
    from edgetta.export.bundle_writer import Shipment, write_bundle
    from edgetta.export.recipe import Recipe, derive_recipe, load
    from edgetta.offline.source_statistics import with_source_statistics

    begun = time.perf_counter()
    recipe = Recipe(name)
    model = load(recipe)
    torch.manual_seed(0)
    randomise(model.module)
    derived = derive_recipe(recipe, model)
    network = with_source_statistics(derived.network(), None)
    shipment = Shipment(network.programs, derived.adaptable.cuts, derived.adaptable.batch_norm)
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        write_bundle(bundle, shipment, name=name, config=AdaptConfig())
        size = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
    seconds = time.perf_counter() - begun
    del network, shipment
    weights = sum(tensor.numel() * 4 for tensor in model.module.parameters())
    forward, gradient = _errors(model.module, derived.adaptable.source, model.input_shape)
    return {
        "exported": True,
        "forward_error": forward,
        "gradient_error": gradient,
        "bytes": size,
        "seconds": round(seconds, 1),
        "weight_bytes": weights,
        "input": list(model.input_shape),
        "cuts": ", ".join(derived.adaptable.cuts),
    }


def _errors(module: Any, graph: Any, shape: tuple[int, int, int]) -> tuple[float, float]:
    """Relative errors of logits and of the gradient of the images, in float64."""
    import torch

    from edgetta.bench.exactness.reference import relative_error
    from edgetta.export.batch_norm import Frozen
    from edgetta.export.differentiate import differentiate
    from edgetta.segments.torch_engine import Program

    x = torch.rand(BATCH, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    graphs = differentiate(Frozen(graph, {}, {}, {}))
    assert graphs.backward is not None
    outputs = dict(
        zip(graphs.forward.outputs, Program(graphs.forward, dtype=torch.float64).run({"x": x}), strict=True)
    )
    found = outputs[graph.outputs[0]]
    residuals = {r.value.name: outputs.get(r.value.name, x) for r in graphs.residuals}
    cotangent = torch.randn(found.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    (found_gradient,) = Program(graphs.backward, dtype=torch.float64).run({**residuals, "grad_y": cotangent})
    del outputs, residuals
    images = x.clone().requires_grad_()
    logits = module.double()(images)
    (gradient,) = torch.autograd.grad(logits, images, cotangent)
    return relative_error(found, logits.detach()), relative_error(found_gradient, gradient)
