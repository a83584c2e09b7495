"""The pages that show figures, and how they are written anew.

A page holds blocks between `<!-- figures: NAME -->` and `<!-- figures: end -->`; what stands between is made here, and
a test compares it with what is there. A column whose result file is missing is left out.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from edgetta.bench.figures import benches, headline
from edgetta.bench.figures.knobs import knobs
from edgetta.bench.figures.results import HERE, Results
from edgetta.storage import atomic_write_text

PAGES = ("README.md", "bench/README.md", "docs/robust-networks.md", "docs/knobs.md")

_BLOCK = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- figures: end -->)", re.DOTALL)

BLOCKS: Mapping[str, Callable[[Results], str]] = {
    "headline": headline.headline,
    "costs": headline.costs,
    "accuracy": benches.accuracy,
    "streams": benches.streams,
    "camera": benches.camera,
    "exports": benches.exports,
    "latency": benches.latency,
    "memory": benches.memory,
    "int8": benches.int8,
    "criticality": benches.criticality,
    "rift": benches.rift,
    "rift_tta": benches.rift_tta,
    "plans": benches.plans,
    "versions": benches.versions,
    "knobs": knobs,
}


def with_figures(page: str, results: Results, folder: str = "") -> str:
    """The page with every block made anew, its links from `folder`. Raises KeyError for a block that is unknown."""

    def made(found: re.Match[str]) -> str:
        block = BLOCKS[found[2]](results)
        links = block.replace(f"]({HERE}/", f"]({Path(os.path.relpath(HERE, folder or '.')).as_posix()}/")
        return f"{found[1]}{links}\n{found[3]}"

    return _BLOCK.sub(made, page)


def write_figures(root: Path) -> list[Path]:
    """Write the blocks of all pages, and the picture; the files that changed."""
    results = Results(root / "bench" / "results")
    made = {root / name: with_figures((root / name).read_text(), results, str(Path(name).parent)) for name in PAGES}
    made[results.folder / headline.PICTURE] = headline.headline_picture(results)
    changed = [path for path, text in made.items() if not path.is_file() or path.read_text() != text]
    for path in changed:
        atomic_write_text(path, made[path])
    return changed
