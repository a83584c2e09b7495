"""What `edgetta export` says of the bundle that it wrote."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgetta.cli.input_told import input_facts, preprocessing_of

if TYPE_CHECKING:
    from edgetta.bundle import SelfTest
    from edgetta.export.recipe import Derived

ORIGINS = {
    "given": "as given",
    "published": "as published",
    "inferred": "inferred from the published memory figures",
    "by stages": "by stages, shallow ones finer, as published networks are cut",
    "automatic": "automatic, shallow layers finer",
}


def show_export(
    output: Path, derived: Derived, more: Sequence[tuple[str, str]], tested: Mapping[str, SelfTest]
) -> None:
    """Print what was written.

    Args:
        output: the bundle.
        derived: what is in it.
        more: facts, of the data.
        tested: what the self-test found, by engine.
    """
    from edgetta.cli.tables import bytes_text, print_facts, print_line, print_table

    model, adaptable = derived.model, derived.adaptable
    size = " x ".join(map(str, adaptable.input_shape))
    print_facts(
        [
            ("model", f"{derived.recipe.model}: images {size}, {adaptable.classes} classes"),
            *input_facts(preprocessing_of(model), adaptable.input_shape, model.size_origin),
            ("precision", f"{adaptable.precision} backbone, fp32 meta-networks"),
            ("weights", "random" if derived.recipe.random_weights else str(model.origin)),
            ("cuts", f"{', '.join(adaptable.cuts)} ({ORIGINS[derived.origin]})"),
            *more,
        ]
    )
    columns = ("part", "input", "output", "meta-network", "adapts inside")
    print_table(columns, _rows(derived), left=("part", "meta-network"))
    files = [output] if output.is_file() else [path for path in output.rglob("*") if path.is_file()]
    count = "" if output.is_file() else f" in {len(files)} files"
    residuals = adaptable.programs.residuals
    kept = sum(residual.kept_bytes(16) - residual.kept_bytes(8) for residual in residuals) // 8
    facts = [
        ("adapts", f"{adaptable.programs.parameters.size:,} numbers"),
        ("kept for a backward", f"{bytes_text(kept)} per image, {len(residuals)} tensors"),
        ("bundle", f"{output}, {bytes_text(sum(path.stat().st_size for path in files))}{count}"),
    ]
    for engine, found in tested.items():
        errors = f"logits within {found.logits_error:.1e}, gradients within {found.gradient_error:.1e}"
        facts.append((f"self-test on {engine}", errors))
    print_facts(facts)
    place = shlex.quote(str(output))
    print_line(f"next: edgetta inspect {place}, or edgetta run {place} SOURCE", style="green")


def _rows(derived: Derived) -> Iterator[tuple[str, ...]]:
    """One row per part: shapes, its meta-network, and how many numbers adapt inside the part."""
    adaptable = derived.adaptable
    shapes = adaptable.programs.parameters.shapes
    parts = [(name, piece.graph) for name, piece in adaptable.pieces.items() if name.startswith("part")]
    for k, (name, graph) in enumerate(parts):
        source, target = graph.values["x"].shape[1:], graph.values[graph.outputs[0]].shape[1:]
        outputs, inputs, kernel, _ = shapes[f"metas.{k}.conv"]
        what = "per token" if len(source) == 2 else f"{kernel}x{kernel}, stride {-(-source[1] // target[1])}"
        inside = sum(math.prod(shape) for own, shape in shapes.items() if own.startswith(f"{name}."))
        sizes = (" x ".join(map(str, shape)) for shape in (source, target))
        yield name, *sizes, f"{inputs} -> {outputs}, {what}", f"{inside:,}"
