"""`edgetta inspect`: what is in a bundle, after all of it was checked."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgetta.cli.input_told import input_facts

if TYPE_CHECKING:
    from edgetta.bundle import Bundle, SelfTest
    from edgetta.segments.graph import Graph


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--test", is_flag=True, help="Also run the bundle's self-test on every engine that is here.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON, for programs.")
def command(bundle: Path, test: bool, as_json: bool) -> None:
    """Show what BUNDLE, a folder or a zip, consists of: model, parts, what is kept per image, settings, files.

    Every file is checked first, against its size and SHA-256; the exit code is 4 where something is wrong.
    """
    from edgetta.bundle import read_bundle

    opened = read_bundle(bundle)
    results = _self_tests(opened) if test else {}
    if as_json:
        click.echo(json.dumps(as_data(opened, results), indent=2))
    else:
        _show(opened, results)


def as_data(bundle: Bundle, results: dict[str, SelfTest]) -> dict[str, Any]:
    """All of the manifest, and what only the look at the files gives."""
    return {
        "path": str(bundle.path),
        "identity": bundle.identity,
        "bytes": sum(entry.size for entry in bundle.files.manifest.files.values()),
        "unlisted": list(bundle.unlisted),
        "self_test": {
            engine: {
                "logits_error": result.logits_error,
                "mixed_error": result.mixed_error,
                "gradient_error": result.gradient_error,
            }
            for engine, result in results.items()
        },
        "peak_resident_bytes": _peak_resident_bytes() if results else None,
        "manifest": bundle.manifest,
    }


def _peak_resident_bytes() -> int | None:
    """The most that this process had in memory, which has loaded the bundle and tested it; None where nobody tells."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _self_tests(bundle: Bundle) -> dict[str, SelfTest]:
    from edgetta.bundle import open_engine, processor_engines, self_test

    return {name: self_test(bundle, open_engine(bundle, name)) for name in processor_engines()}


def _show(bundle: Bundle, results: dict[str, SelfTest]) -> None:
    from edgetta.bundle.manifest import PROGRAMS
    from edgetta.cli.tables import bytes_text, print_facts, print_line, print_table

    print_facts(_facts(bundle))
    print_table(
        ("program", "nodes", "inputs", "outputs"),
        [_row(name, getattr(bundle.programs, name)) for name in PROGRAMS],
        left=("program",),
    )
    files = bundle.files.manifest.files
    print_table(("file", "size"), [(name, bytes_text(entry.size)) for name, entry in files.items()], left=("file",))
    if bundle.unlisted:
        print_line(f"not part of the bundle, and not read: {', '.join(bundle.unlisted)}", style="yellow")
    total = bytes_text(sum(entry.size for entry in files.values()))
    print_line(f"{len(files)} files, {total}: size and SHA-256 of each are those of the manifest.", style="green")
    for engine, result in results.items():
        print_line(
            f"self-test on {engine}: passed (errors: logits {result.logits_error:.1e}, with mixed statistics "
            f"{result.mixed_error:.1e}, gradients {result.gradient_error:.1e}).",
            style="green",
        )


def _facts(bundle: Bundle) -> Iterator[tuple[str, str]]:
    from edgetta.cli.tables import bytes_text

    manifest = bundle.files.manifest
    yield "bundle", str(bundle.path)
    yield "model", bundle.name
    yield from input_facts(bundle.preprocessing, bundle.input_shape)
    yield "classes", _classes(bundle.class_count, bundle.classes)
    yield "precision", f"{bundle.precision} backbone, fp32 meta-networks"
    yield "cuts", ", ".join(bundle.cuts)
    yield "adapting", f"{bundle.programs.parameters.size:,} numbers: {_adapting(bundle)}"
    if bundle.has_batch_norm:
        form = "follow the stream" if bundle.batch_norm == "adaptive" else "are folded into the convolutions"
        yield "BatchNorm", f"{len(bundle.programs.statistics.shapes)} layers; those of the backbone {form}"
        yield "content", _content(bundle)
    yield "kept", f"{bytes_text(bundle.kept_bytes(64) // 64)} per image between forward and backward"
    yield "adaptation", _pairs(manifest.data["adaptation"])
    yield "learning rate", _learning_rate(bundle)
    yield "rate law", _rate_law(bundle)
    yield "provenance", "\n".join(f"{key}: {_plain(value)}" for key, value in bundle.provenance.items()) or "not given"
    yield "written by", f"edgetta {manifest.edgetta}, torch {manifest.torch}"
    yield "identity", bundle.identity


def _adapting(bundle: Bundle) -> str:
    names = bundle.programs.parameters.shapes
    metas = len({name.split(".")[1] for name in names if name.startswith("metas.")})
    inside = sum(not name.startswith("metas.") for name in names)
    return f"{metas} meta-networks, and {inside} weights and biases inside the backbone"


def _content(bundle: Bundle) -> str:
    if bundle.content is None:
        return "not measured: statistics stay near the source; give source images at export (--calibration)"
    return f"what it explains was measured on {bundle.content.images:,} source images"


def _row(name: str, graph: Graph) -> Sequence[str]:
    return name, str(len(graph.nodes)), str(len(graph.inputs)), str(len(graph.outputs))


def _classes(count: int, names: Sequence[str] | None) -> str:
    if names is None:
        return f"{count}, without names"
    shown = ", ".join(names[:10])
    return f"{count}: {shown}{', ...' if count > 10 else ''}"


def _learning_rate(bundle: Bundle) -> str:
    """What `edgetta run` will take where it is told nothing, for whole batches and for windows of small ones."""
    from edgetta.adaptation.step_rate import choose_rate

    config = bundle.config
    chosen = choose_rate(config.learning_rate, bundle.rate_law, config.momentum, config.window)
    unused = "; its rate law is not used" if bundle.rate_law and config.learning_rate is not None else ""
    return f"{chosen.rate:.3g} at {config.window} images ({chosen.reason}{unused})"


def _rate_law(bundle: Bundle) -> str:
    law = bundle.rate_law
    if law is None:
        return "not measured; `edgetta prepare --curvature` does"
    lines = [f"{law.optimizer}, {law.form}{_of(law.source)}"]
    for batch in law.batch_sizes:
        low, high = law.interval(batch)
        lines.append(f"{law.rate(batch):.2g} ({low:.2g} to {high:.2g}) at batch {batch}, {law.regime(batch)}")
    return "\n".join(lines)


def _of(source: Mapping[str, str]) -> str:
    return "; " + ", ".join(f"{key} {value}" for key, value in source.items() if value) if source else ""


def _pairs(data: Any) -> str:
    return ", ".join(f"{key} {_plain(value)}" for key, value in data.items())


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
