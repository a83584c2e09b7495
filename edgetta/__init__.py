"""edgetta: continual test-time adaptation on edge devices, inside a memory budget.

    import edgetta
    runtime = edgetta.load("bundle/")      # a bundle made by `edgetta export`
    logits = runtime(images)               # predicts, then adapts

Nothing heavy is imported until it is used: names are resolved on first access.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgetta.adaptation.adapter import Adapter, StepResult
    from edgetta.adaptation.config import AdaptConfig
    from edgetta.adaptation.module import AdaptedModule, adapt
    from edgetta.adaptation.step_plan import StepPlan
    from edgetta.errors import EdgettaError
    from edgetta.models import load_model
    from edgetta.preprocessing import preprocess
    from edgetta.runtime import Runtime, load

__version__ = "0.1.0"

_HOMES = {
    "AdaptConfig": "edgetta.adaptation.config",
    "AdaptedModule": "edgetta.adaptation.module",
    "Adapter": "edgetta.adaptation.adapter",
    "EdgettaError": "edgetta.errors",
    "Runtime": "edgetta.runtime",
    "StepPlan": "edgetta.adaptation.step_plan",
    "StepResult": "edgetta.adaptation.adapter",
    "adapt": "edgetta.adaptation.module",
    "load": "edgetta.runtime",
    "load_model": "edgetta.models",
    "preprocess": "edgetta.preprocessing",
}

__all__ = [
    "AdaptConfig",
    "AdaptedModule",
    "Adapter",
    "EdgettaError",
    "Runtime",
    "StepPlan",
    "StepResult",
    "__version__",
    "adapt",
    "export",
    "load",
    "load_model",
    "preprocess",
]


def __getattr__(name: str) -> Any:
    import importlib

    if name == "export":  # a package that can be called
        return importlib.import_module("edgetta.export")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'edgetta' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
