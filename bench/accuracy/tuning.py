"""Settings are chosen on four corruptions that are in no test stream, applied to training images.

Every method has the same number of trials. `tuning.json` holds all of them; the best of each is what is run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from edgetta.bench.accuracy.images import ImageCache
from edgetta.bench.accuracy.methods import METHODS, VARIANTS, Settings, SourceModel, make
from edgetta.bench.accuracy.score import score
from edgetta.bench.accuracy.streams import StreamSpec
from edgetta.corruption import EXTRA_CORRUPTIONS

SEED = 100
Rows = list[dict[str, Any]]


def tuning_stream(images: int, batch: int) -> StreamSpec:
    """The stream on which settings are chosen."""
    return StreamSpec("continual", images, batch, SEED, corruptions=EXTRA_CORRUPTIONS, split="train")


def trials(
    source: Callable[[], SourceModel],
    cache: ImageCache,
    rows: Rows,
    methods: Sequence[str],
    batches: Sequence[int],
    images: int,
    model: str,
) -> Iterator[tuple[int, int, str]]:
    """Run what `rows` does not hold yet and add it there; yields trials done, trials in all, and the latest."""
    planned = [
        (method, batch, dict(settings))
        for batch in batches
        for method in methods
        for settings in METHODS[method].trials
    ]
    done = [(r["method"], r["batch"], r["settings"]) for r in rows if r["model"] == model and r["images"] == images]
    for position, (method, batch, settings) in enumerate(planned):
        if len(METHODS[method].trials) > 1 and (method, batch, settings) not in done:
            found = score(make(method, source(), settings, SEED), tuning_stream(images, batch), cache, clean=0)
            row = {"method": method, "model": model, "batch": batch, "images": images, "settings": settings}
            rows.append(row | {"error": round(found.error, 3), "errors": found.row()["errors"]})
        yield position + 1, len(planned), f"{method} {settings}"


def chosen(rows: Sequence[Mapping[str, Any]], method: str, batch: int, model: str) -> Settings:
    """The settings with the lowest error at the nearest batch size that was tried; {} where there was nothing to try.

    Trials on longer streams count before those on shorter ones. `model`: its own trials where there are some, else
    those of any model. Variants have those of their method.
    """
    name = VARIANTS.get(method, method)
    tried = [row for row in rows if row["method"] == name]
    tried = [row for row in tried if row["model"] == model] or tried
    if not tried:
        return {}
    nearest = min((row["batch"] for row in tried), key=lambda size: (abs(size - batch), size))
    tried = [row for row in tried if row["batch"] == nearest]
    longest = max(row["images"] for row in tried)
    best: Settings = min((r for r in tried if r["images"] == longest), key=lambda row: row["error"])["settings"]
    return best
