"""The table of settings, from where they are defined."""

from __future__ import annotations

from dataclasses import fields

from edgetta.adaptation.config import AdaptConfig
from edgetta.bench.figures.results import Results


def knobs(results: Results) -> str:
    """Every setting of the adaptation: its option, default, range and meaning; no result file has a say in it."""
    lines = ["| option | default | range | what it does |", "|---|---|---|---|"]
    for setting in fields(AdaptConfig):
        option = "--" + ("bn" if setting.name == "batch_norm" else setting.name.replace("_", "-"))
        default = "from the bundle's rate law" if setting.default is None else str(setting.default).lower()
        lines.append(f"| `{option}` | {default} | {setting.metadata['range']} | {setting.metadata['help']} |")
    return "\n".join(lines)
