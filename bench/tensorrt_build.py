"""Which engines TensorRT makes of derived graphs, in what time: `edgetta bench tensorrt-build`.

All programs of a network are parsed and built. TensorRT-RTX does that without a GPU, so that
what TensorRT refuses is noticed before a device is. It says nothing about speed on a device, nor about what an engine
computes there: engines are tested where they run, by `edgetta build`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgetta.errors import EdgettaError

if TYPE_CHECKING:
    from edgetta.export.recipe import Derived

NETWORKS = ("wrn40_2", "timm:resnet18", "timm:resnet50", "timm:mobilenetv2_100", "timm:efficientnet_b0")
"""Those of the papers, and what people run on small devices; with random weights."""

FORMS = ("source", "adaptive")
PRECISIONS = ("fp32", "fp16")
OLDEST_OPSET = 17  # of JetPack 5
BATCHES = (1, 16, 64)


@click.command(
    epilog="Example: edgetta bench tensorrt-build --model wrn40_2 --precision fp16 --json tensorrt_build.json"
)
@click.option("--model", "models", default=",".join(NETWORKS), show_default=True, help="Networks, comma-separated.")
@click.option("--bn", "forms", default=",".join(FORMS), show_default=True, help="BatchNorm folded, or following.")
@click.option("--precision", "precisions", default=",".join(PRECISIONS), show_default=True, help="Comma-separated.")
@click.option("--opset", "opsets", help="ONNX opsets, comma-separated; default 17 and the newest that onnx knows.")
@click.option(
    "--limit", metavar="N", type=click.IntRange(1), help="End after N networks in one form that were missing."
)
@click.option(
    "--json", "path", type=click.Path(path_type=Path), help="Write the result file here; rows in it are not redone."
)
def command(
    models: str, forms: str, precisions: str, opsets: str | None, limit: int | None, path: Path | None
) -> None:
    """Build the engines of all programs with the TensorRT that is here, without running them.

    Exits with 1 where TensorRT refuses one.
    """
    names = [name.strip() for name in models.split(",")]
    numbers = None if opsets is None else [int(word) for word in opsets.split(",")]
    rows = run(names, forms.split(","), precisions.split(","), numbers, path, limit)
    _print(rows)
    if path is not None:
        click.echo(f"wrote {path}")
    refused = [row for row in rows if not row["built"]]
    if refused:
        row = refused[0]
        raise EdgettaError(
            f"{len(refused)} of {len(rows)} engines were not built, first {row['model']} {row['program']} "
            f"in {row['precision']}: {row['error']}"
        )


def run(
    models: Sequence[str],
    forms: Sequence[str] = FORMS,
    precisions: Sequence[str] = PRECISIONS,
    opsets: Sequence[int] | None = None,
    path: Path | None = None,
    limit: int | None = None,
) -> list[dict[str, Any]]:
    """Rows of the networks given. With `path` they are added to that file, network by network, and what a run of the
    same versions and settings built there is not done again."""
    import onnx

    from edgetta.bench.result_file import rows_to_continue, write_results
    from edgetta.cli.progress import progress_bar
    from edgetta.engines.tensorrt.library import import_tensorrt
    from edgetta.export.recipe import Recipe, derive_recipe

    trt = import_tensorrt()
    opsets = (OLDEST_OPSET, onnx.defs.onnx_opset_version()) if opsets is None else opsets
    settings = {"tensorrt": f"{trt.__name__} {trt.__version__}", "batch": list(BATCHES), "weights": "random"}
    rows = [] if path is None else rows_to_continue(path, settings)
    failed = {_case(row) for row in rows if not row["built"]}
    rows = [row for row in rows if _case(row) not in failed]
    done = {_case(row) for row in rows}
    wanted = list(itertools.product(models, forms))
    with progress_bar("building", len(wanted), unit="networks") as update:
        for count, (name, form) in enumerate(wanted):
            cases = [c for c in itertools.product(precisions, opsets) if (name, form, *c) not in done]
            if not cases:
                continue
            update(count, note=f"{name} {form}")
            derived = derive_recipe(Recipe(name, batch_norm=form))  # type: ignore[arg-type]
            for precision, opset in cases:
                rows += measure(derived, precision, opset)
                if path is not None:
                    write_results(path, rows, settings)
            limit = None if limit is None else limit - 1
            if limit == 0:
                break
    chosen = set(itertools.product(models, forms, precisions, opsets))
    return [row for row in rows if _case(row) in chosen]


def measure(derived: Derived, precision: str, opset: int) -> Iterator[dict[str, Any]]:
    """One row per program, in one precision and opset."""
    from edgetta.bundle.program_jobs import PROGRAMS, job_of
    from edgetta.engines.tensorrt.build import BuildOptions, EngineBuildError, build_engine
    from edgetta.export.onnx_writer import to_onnx
    from edgetta.segments.onnx_model import parse_onnx

    options = BuildOptions(precision, BATCHES)  # type: ignore[arg-type]
    for program in PROGRAMS:
        job = job_of(derived.adaptable.programs, program)
        model = parse_onnx(to_onnx(job.graph, program, opset=opset).SerializeToString())
        row = {
            "model": derived.recipe.model,
            "batch_norm": derived.recipe.batch_norm,
            "program": program,
            "precision": precision,
            "opset": opset,
        }
        try:
            built = build_engine(model.only(job.outputs), program, options)
        except EngineBuildError as error:
            yield {**row, "built": False, "seconds": None, "engine_bytes": None, "error": str(error)}
            continue
        yield {**row, "built": True, "seconds": round(built.seconds, 3), "engine_bytes": len(built.data)}


def _print(rows: Sequence[dict[str, Any]]) -> None:
    from edgetta.cli.tables import print_table, seconds_text
    from edgetta.memory.sizes import size_text

    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(_case(row), []).append(row)
    print_table(
        ("model", "BatchNorm", "precision", "opset", "engines built", "in", "size"),
        [
            (
                *key,
                f"{sum(row['built'] for row in group)} of {len(group)}",
                seconds_text(sum(row["seconds"] or 0.0 for row in group)),
                size_text(sum(row["engine_bytes"] or 0 for row in group)),
            )
            for key, group in groups.items()
        ],
        left=("model", "BatchNorm", "precision"),
    )


def _case(row: dict[str, Any]) -> tuple[str, str, str, int]:
    return row["model"], row["batch_norm"], row["precision"], row["opset"]
