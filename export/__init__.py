"""From a torch model to a bundle: trace, cut, derive the input gradient, write ONNX. Runs on the workstation.

The package can be called, too: `edgetta.export(model, example, path)` is `edgetta.export.to_bundle.export`.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    """A package that is also its main function."""

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        from edgetta.export.to_bundle import export

        return export(*arguments, **keywords)


sys.modules[__name__].__class__ = _Callable
