"""edgetta with one thing changed at a time, on the tuning stream: what each choice is worth."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from edgetta.adaptation.config import AdaptConfig
from edgetta.bench.accuracy.edgetta_method import Edgetta
from edgetta.bench.accuracy.images import ImageCache
from edgetta.bench.accuracy.methods import SourceModel
from edgetta.bench.accuracy.score import score
from edgetta.bench.accuracy.tuning import SEED, tuning_stream

Rows = list[dict[str, Any]]

CHANGES: dict[str, dict[str, Any]] = {
    "as shipped": {},
    "not adapted": {"when": "off"},
    "statistics of each batch": {"batch_norm": "batch"},
    "not adapted, statistics of each batch": {"when": "off", "batch_norm": "batch"},
    "all images learn": {"learn_images": 64},
    "16 images learn": {"learn_images": 16},
    "8 images learn": {"learn_images": 8},
    "never held back": {"hold_back": False},
    "no change is noticed": {"change": float("inf")},
    "statistics of 128 images": {"statistics_images": 128},
    "no regulariser": {"regulariser": 0.0},
    "regulariser 2": {"regulariser": 2.0},
    "no entropy filter": {"entropy_margin": 1.0},
    "no filter, no regulariser": {"entropy_margin": 1.0, "regulariser": 0.0},
    "no anchor": {"anchor": 0.0},
    "anchor 0.1": {"anchor": 0.1},
    "a fifth of the rate": {"learning_rate": 1e-3},
    "twice the rate": {"learning_rate": 1e-2},
    "mirrored": {"mirrored": True},
}
MODELS: dict[str, dict[str, Any]] = {
    "meta-networks and biases adapt": {"adapt": "bias"},
    "meta-networks alone adapt": {"adapt": "meta"},
    "three parts": {"parts": 3},
    "five parts": {"parts": 5},
}
"""How the network is made adaptable, as `SourceModel.load` takes it."""


def ablate(
    source: Callable[..., SourceModel],
    cache: ImageCache,
    rows: Rows,
    images: int,
    batch: int,
    model: str,
) -> Iterator[tuple[int, int, str]]:
    """Run what `rows` does not hold yet and add it there; yields runs done, runs in all, and the latest.

    source   makes the source model of some weights, adaptable in a way of `MODELS`
    """
    plans: list[tuple[str, dict[str, Any], dict[str, Any]]] = [(name, change, {}) for name, change in CHANGES.items()]
    plans += [(name, {}, how) for name, how in MODELS.items()]
    keys = ("variant", "model", "batch", "images")
    done = {tuple(row[key] for key in keys) for row in rows}
    for position, (name, change, how) in enumerate(plans):
        if (name, model, batch, images) not in done:
            made = source(model, **how)
            method = Edgetta(made.network, AdaptConfig.from_json(change))
            found = score(method, tuning_stream(images, batch), cache, clean=0).row()
            row = {
                "variant": name,
                "model": model,
                "batch": batch,
                "images": images,
                "seed": SEED,
                "parts": 4,
                "adapt": "affine",
            } | how
            fields = ("error", "errors", "kept_bytes", "adapted_share", "seconds")
            shown = {key: str(value) if value == float("inf") else value for key, value in change.items()}
            rows.append(row | {"changed": shown} | {key: found[key] for key in fields})
        yield position + 1, len(plans), name
