"""What `edgetta export` says of the bundle that it wrote."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetta.cli.input_told import input_facts, preprocessing_of

if TYPE_CHECKING:
    from edgetta.adaptation.model import Gradient
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
    output: Path,
    derived: Derived,
    more: Sequence[tuple[str, str]],
    tested: Mapping[str, SelfTest],
    gradient: Gradient,
) -> None:
    """Print what was written.

    Args:
        output: the bundle.
        derived: what is in it.
        more: facts, of the data.
        tested: what the self-test found, by engine.
        gradient: mode whose bytes are shown.
    """
    from edgetta.cli.tables import bytes_text, print_facts, print_line, print_table
    from edgetta.export.kept_bytes import kept_bytes

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
    columns = ("part", "input", "output", "gradient", "kept per image", "residuals of the frozen part", "meta-network")
    print_table(columns, _rows(derived, gradient), left=("part", "gradient", *columns[-2:]))
    files = [output] if output.is_file() else [path for path in output.rglob("*") if path.is_file()]
    count = "" if output.is_file() else f" in {len(files)} files"
    kept = kept_bytes(adaptable)[gradient]
    facts = [
        (
            "kept in all",
            f"{bytes_text(kept['per_image'])} per image, {bytes_text(kept['frozen_per_image'])} frozen parts",
        ),
        ("bundle", f"{output}, {bytes_text(sum(path.stat().st_size for path in files))}{count}"),
    ]
    for engine, found in tested.items():
        errors = f"logits within {found.logits_error:.1e}, gradients within {found.gradient_error:.1e}"
        facts.append((f"self-test on {engine}", errors))
    print_facts(facts)
    place = shlex.quote(str(output))
    print_line(f"next: edgetta inspect {place}, or edgetta run {place} SOURCE", style="green")


def _rows(derived: Derived, gradient: Gradient) -> Iterator[tuple[str, ...]]:
    """One row per part and one for the classifier: shapes, gradient mode, kept bytes, residuals, meta-network."""
    from edgetta.adaptation.model import gradient_mode
    from edgetta.cli.tables import bytes_text

    adaptable = derived.adaptable
    segments = list(adaptable.segments().items())[1:]
    for number, (name, graphs) in enumerate(segments):
        last = name == "classifier"
        mode: str = gradient_mode(graphs, "auto" if last and gradient == "local" else gradient)
        kept = (graphs.kept_bytes(16, mode) - graphs.kept_bytes(8, mode)) / 8  # type: ignore[arg-type]
        kinds = Counter(residual.kind for residual in graphs.residuals) if mode == "exact" else Counter()
        if number == 0 and not graphs.initial_affine:
            mode, kept, kinds = "none needed", 0.0, Counter()
        shapes = (" x ".join(map(str, value.shape[1:])) for value in (graphs.input, graphs.output))
        meta = "" if last else _meta(adaptable.metas[number])
        residuals = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) or "-"
        yield name, *shapes, mode, bytes_text(kept), residuals, meta


def _meta(spec: Any) -> str:
    what = "per token" if spec.tokens else f"{spec.kernel}x{spec.kernel}, stride {spec.stride}"
    return f"{spec.in_channels} -> {spec.out_channels}, {what}"
