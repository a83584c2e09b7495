"""`edgetta.export(model, example, path)`: from a torch model in memory to a bundle, in one call."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from torch import Tensor, nn

from edgetta.errors import UsageError

if TYPE_CHECKING:
    from edgetta.adaptation.config import AdaptConfig


def export(
    model: nn.Module,
    example: Tensor,
    path: str | os.PathLike[str],
    *,
    parts: Sequence[str] | int | None = None,
    classes: Sequence[str] | None = None,
    source_images: Tensor | Iterable[Tensor] | None = None,
    config: AdaptConfig | None = None,
    batch_norm: Literal["adaptive", "source"] = "adaptive",
    name: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write `model` as a bundle at `path` (a folder, or a zip where the name ends in `.zip`) and return where it is.

    model          a classifier in eval mode; it takes what `example` shows and returns logits (N, classes)
    example        images (N, C, H, W), or one (C, H, W), floats in [0, 1]: what the model takes, normalisation being
                   the model's own matter
    parts          module names after which it is cut (the stem's end first), or how many parts; None: as many as fit,
                   four at most
    classes        their names, in the order of the logits
    source_images  images (N, C, H, W), or batches of them, for the source statistics of the meta-networks and for what
                   content explains of the moments; synthetic ones serve for the first when there are none
    config         settings of adaptation that ship
    batch_norm     frozen BatchNorms follow the stream ("adaptive") or are folded away as trained ("source")
    overwrite      replace a bundle that is there

    What a step takes is not measured: for budgets use the command `edgetta export`.
    Raises `UsageError` for arguments that do not fit, `TraceError` or `DifferentiationError` naming what stands in
    the way, `StorageError` when the disk is full and the like.
    """
    from edgetta.adaptation.config import AdaptConfig
    from edgetta.export.bundle_writer import Shipment, write_bundle
    from edgetta.export.content import measure_content
    from edgetta.export.recipe import Recipe, derive_recipe
    from edgetta.models.model import Model
    from edgetta.models.probe import answer
    from edgetta.models.wrappers import in_float32, unwrapped
    from edgetta.offline.source_statistics import batches_of, with_source_statistics

    shape = _image_shape(example)
    network, _ = in_float32(unwrapped(model), own=False)
    called = name or type(network).__name__
    known = Model(network, called, shape, int(answer(network, called, shape).shape[1]))
    cuts, count = (None, parts) if parts is None or isinstance(parts, int) else (tuple(parts), None)
    derived = derive_recipe(Recipe(called, parts=count, cuts=cuts, batch_norm=batch_norm), known)
    batches = None
    if source_images is not None:
        batches = list(batches_of(source_images, 64) if isinstance(source_images, Tensor) else source_images)
    programs = with_source_statistics(derived.network(), batches).programs
    told = batches is not None and sum(map(len, batches)) > 1
    content = measure_content(programs, batches) if batches is not None and told else None
    settings = config or AdaptConfig()
    write_bundle(
        path,
        Shipment(programs, derived.adaptable.cuts, batch_norm, content),
        name=called,
        config=replace(settings, batch_norm="source") if batch_norm == "source" else settings,
        classes=classes,
        golden=example if example.dim() == 4 and len(example) > 1 else None,
        overwrite=overwrite,
    )
    return Path(path)


def _image_shape(example: Tensor) -> tuple[int, int, int]:
    if example.dim() not in (3, 4):
        raise UsageError(f"the example has shape {tuple(example.shape)}; give images (N, C, H, W) or one (C, H, W)")
    if not example.is_floating_point() or float(example.min()) < 0 or float(example.max()) > 1:
        raise UsageError("the example is not in [0, 1]; give floats in that range, which bytes become by / 255")
    channels, height, width = example.shape[-3:]
    return int(channels), int(height), int(width)
