"""edgetta with one thing changed at a time, on the tuning stream: what each choice is worth."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from edgetta.adaptation.adapter import AdaptConfig
from edgetta.bench.accuracy.edgetta_method import Edgetta
from edgetta.bench.accuracy.images import ImageCache
from edgetta.bench.accuracy.methods import SourceModel
from edgetta.bench.accuracy.score import score
from edgetta.bench.accuracy.tuning import SEED, tuning_stream

Rows = list[dict[str, Any]]

CHANGES: dict[str, dict[str, Any]] = {
    "as shipped": {},
    "not adapted": {"when": "off"},
    "statistics of each batch": {"statistics": "batch"},
    "not adapted, statistics of each batch": {"when": "off", "statistics": "batch"},
    "no change is noticed": {"change": float("inf")},
    "statistics of 128 images": {"statistics_images": 128},
    "no regulariser": {"regulariser": 0.0},
    "regulariser 2": {"regulariser": 2.0},
    "no entropy filter": {"entropy_margin": 1.0},
    "two passes": {"passes": 2},
    "anchor 0.01": {"anchor": 0.01},
    "no filter, no regulariser, anchor 0.01": {"entropy_margin": 1.0, "regulariser": 0.0, "anchor": 0.01},
    "five times the rate": {"learning_rate": 5e-3},
    "mirrored": {"mirrored": True},
}
PARTS = {"three parts": 3, "five parts": 5}


def ablate(
    source: Callable[[str, int], SourceModel],
    cache: ImageCache,
    rows: Rows,
    images: int,
    batch: int,
    model: str,
) -> Iterator[tuple[int, int, str]]:
    """Run what `rows` does not hold yet and add it there; yields runs done, runs in all, and the latest.

    source   makes the source model of some weights in so many parts
    """
    plans: list[tuple[str, dict[str, Any], int]] = [(name, change, 4) for name, change in CHANGES.items()]
    plans += [(name, {}, parts) for name, parts in PARTS.items()]
    keys = ("variant", "model", "batch", "images")
    done = {tuple(row[key] for key in keys) for row in rows}
    for position, (name, change, parts) in enumerate(plans):
        if (name, model, batch, images) not in done:
            made = source(model, parts)
            method = Edgetta(made.adaptable, made.state, AdaptConfig.from_json(change))
            found = score(method, tuning_stream(images, batch), cache, clean=0).row()
            row = {"variant": name, "model": model, "batch": batch, "images": images, "seed": SEED, "parts": parts}
            fields = ("error", "errors", "kept_bytes", "adapted_share", "seconds")
            shown = {key: str(value) if value == float("inf") else value for key, value in change.items()}
            rows.append(row | {"changed": shown} | {key: found[key] for key in fields})
        yield position + 1, len(plans), name
