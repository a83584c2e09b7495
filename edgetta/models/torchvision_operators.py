"""Let torchvision, and timm with it, be imported where torchvision's compiled operators do not load.

torchvision's wheel from the common index is compiled for CUDA. Beside a CPU-only torch its library does not load, the
operators it would have registered are absent, and `import torchvision` dies with "operator torchvision::nms does not
exist". Classifiers need none of them: with the operators' schemas defined, everything but detection imports, runs and
exports. The pair must still be released together (`torchvision==0.28.*` for `torch==2.13.*`).
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import torch

from edgetta.errors import MissingDependencyError

_Result = TypeVar("_Result")
_POOL = "float spatial_scale, SymInt pooled_height, SymInt pooled_width"
_SIZE = "SymInt batch_size, SymInt channels, SymInt height, SymInt width"
_DEFORM = (
    "Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, SymInt stride_h, SymInt stride_w, "
    "SymInt pad_h, SymInt pad_w, SymInt dilation_h, SymInt dilation_w, SymInt groups, SymInt offset_groups, "
    "bool use_mask"
)
SCHEMAS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "box_iou_rotated": "(Tensor boxes1, Tensor boxes2) -> Tensor",
    "roi_align": f"(Tensor input, Tensor rois, {_POOL}, int sampling_ratio, bool aligned) -> Tensor",
    "_roi_align_backward": f"(Tensor grad, Tensor rois, {_POOL}, {_SIZE}, int sampling_ratio, bool aligned) -> Tensor",
    "qroi_align": (
        "(Tensor input, Tensor rois, float input_scale, int input_zero_point, float rois_scale, int rois_zero_point, "
        f"{_POOL}, int sampling_ratio, bool aligned) -> Tensor"
    ),
    "roi_pool": f"(Tensor input, Tensor rois, {_POOL}) -> (Tensor, Tensor)",
    "_roi_pool_backward": f"(Tensor grad, Tensor rois, Tensor argmax, {_POOL}, {_SIZE}) -> Tensor",
    "ps_roi_align": f"(Tensor input, Tensor rois, {_POOL}, int sampling_ratio) -> (Tensor, Tensor)",
    "_ps_roi_align_backward": (
        f"(Tensor grad, Tensor rois, Tensor channel_mapping, {_POOL}, int sampling_ratio, {_SIZE}) -> Tensor"
    ),
    "ps_roi_pool": f"(Tensor input, Tensor rois, {_POOL}) -> (Tensor, Tensor)",
    "_ps_roi_pool_backward": f"(Tensor grad, Tensor rois, Tensor channel_mapping, {_POOL}, {_SIZE}) -> Tensor",
    "deform_conv2d": f"({_DEFORM}) -> Tensor",
    "_deform_conv2d_backward": f"(Tensor grad, {_DEFORM}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
}

_definitions: list[torch.library.Library] = []  # a Library undoes its definitions when it is collected


def define_missing_operators() -> tuple[str, ...]:
    """Define the schemas that torchvision's compiled library would have registered, and return their names.

    Does nothing where torchvision is absent or its library loads. The operators have no kernels: calling one fails.
    """
    location = _location("torchvision")
    if location is None:
        return ()
    for library in sorted(path for path in location.glob("_C*") if path.suffix in (".so", ".pyd", ".dylib")):
        with contextlib.suppress(OSError, RuntimeError):
            torch.ops.load_library(str(library))
    missing = tuple(name for name in SCHEMAS if not hasattr(torch.ops.torchvision, name))
    if missing:
        definitions = torch.library.Library("torchvision", "FRAGMENT")
        for name in missing:
            definitions.define(name + SCHEMAS[name])
        _definitions.append(definitions)
    return missing


def import_with_operators(name: str) -> ModuleType:
    """Import timm or torchvision, defining the missing operators where the import fails for want of them.

    Raises MissingDependencyError where the package is absent, or does not fit this torch for another reason.
    """
    try:
        return with_operators(lambda: importlib.import_module(name), name)
    except (ImportError, RuntimeError) as error:
        if _location(name) is None:
            raise MissingDependencyError(f"{name} is not installed: pip install 'edgetta[models]'") from error
        raise MissingDependencyError(
            f"{name} does not import beside torch {torch.__version__} ({error}): "
            "install the torchvision that was released with this torch"
        ) from error


def with_operators(importing: Callable[[], _Result], name: str = "torchvision") -> _Result:
    """What `importing` returns; where torchvision's operators are missing, they are defined and it runs again.

    `name` is the package whose half-imported modules are then forgotten, beside torchvision's.
    """
    try:
        return importing()
    except RuntimeError as error:
        if "operator torchvision::" not in str(error) or not define_missing_operators():
            raise
    for half in [m for m in sys.modules if m.partition(".")[0] in {"torchvision", name}]:
        del sys.modules[half]
    return importing()


def _location(package: str) -> Path | None:
    """The folder of an installed package, without importing it."""
    found = importlib.util.find_spec(package)
    return None if found is None or found.origin is None else Path(found.origin).parent
