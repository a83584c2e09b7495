"""What a network will keep between forward and backward, counted from the contract: for the manifest and for planning.

The bytes grow linearly with the batch: `per_image` for each image, by storage, and `fixed` whatever the batch.
"""

from __future__ import annotations

import math
from typing import Any, get_args

from edgetta.adaptation.kept_tensor import kept_bytes as tensor_bytes
from edgetta.adaptation.meta_network import MetaSpec
from edgetta.adaptation.model import AdaptableModel, Gradient, gradient_mode
from edgetta.adaptation.step_memory import STORAGES, StepMemory
from edgetta.segments.contract import GradientMode, SegmentGraphs

_BATCH = 8  # bits of eight images fill whole bytes


def kept_bytes(model: AdaptableModel) -> dict[str, dict[str, Any]]:
    """Gradient mode -> {"per_image", "frozen_per_image", "fixed", "mode_of", "by_storage"}, in bytes, float32.

    `per_image` counts everything at storage `full`, `frozen_per_image` the frozen segments alone, `by_storage`
    everything at each storage; `mode_of` says which mode each segment runs in, null where it has no backward.
    """
    return {gradient: _kept(model, gradient) for gradient in get_args(Gradient)}


def _kept(model: AdaptableModel, gradient: Gradient) -> dict[str, Any]:
    modes: dict[str, GradientMode | None] = {}
    residuals = fixed = 0.0
    needs_last = False
    for k, (name, graphs) in enumerate(list(model.segments().items())[1:]):
        last = name == "classifier"
        mode = gradient_mode(graphs, "auto" if last and gradient == "local" else gradient)
        # Nothing before the first meta-network trains, unless biases do.
        modes[name] = mode if k > 0 or graphs.initial_affine else None
        if modes[name] is None:
            continue
        residuals += _per_image(graphs, mode)
        fixed += graphs.kept_bytes(0, mode)
        # The last x~_k, which no meta-network keeps for itself.
        needs_last = last and (mode == "recompute" or any(r.value.name == "x" for r in graphs.residuals))
    fixed += sum(_moments(spec) for spec in model.metas)
    final = model.classifier.input.elements(1)
    by_storage = {storage: residuals + _metas(model, StepMemory(storage), needs_last) for storage in STORAGES}
    return {
        "per_image": math.ceil(by_storage["full"]),
        "frozen_per_image": math.ceil(residuals + 4 * final * needs_last),
        "fixed": math.ceil(fixed),
        "mode_of": modes,
        "by_storage": {storage: math.ceil(count) for storage, count in by_storage.items()},
    }


def _per_image(graphs: SegmentGraphs, mode: GradientMode) -> float:
    return (graphs.kept_bytes(_BATCH, mode) - graphs.kept_bytes(0, mode)) / _BATCH


def _metas(model: AdaptableModel, memory: StepMemory, needs_last: bool) -> int:
    """Of one image: the tensors between the parts, and what meta-networks keep beside them, as `MetaNetwork` does."""
    count = 0
    for part in model.parts:
        source, target = part.input.elements(1), part.output.elements(1)
        count += tensor_bytes(source, memory.form)
        if not memory.rebuilds:
            count += 2 * tensor_bytes(target, memory.form)  # x_k, and the convolution's output
        if memory.storage != "full":
            count += 3 * ((target + 7) // 8)  # signs: the branch's ReLU, and x~_k against x_k both ways
    if memory.rebuilds or needs_last:
        count += tensor_bytes(model.classifier.input.elements(1), memory.form)
    return count


def _moments(spec: MetaSpec) -> int:
    """Mean and inverse deviation of two normalisations."""
    return 2 * 2 * 4 * spec.out_channels
