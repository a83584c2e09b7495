"""What a network will keep between forward and backward, counted from the contract: for the manifest and for planning.

The bytes grow linearly with the batch: `per_image` for each image and `fixed` whatever the batch.
"""

from __future__ import annotations

import math
from typing import Any, get_args

from edgetta.adaptation.meta_network import MetaSpec
from edgetta.adaptation.model import AdaptableModel, Gradient, gradient_mode
from edgetta.segments.contract import GradientMode, SegmentGraphs

_BATCH = 8  # bits of eight images fill whole bytes


def kept_bytes(model: AdaptableModel) -> dict[str, dict[str, Any]]:
    """Gradient mode -> {"per_image", "frozen_per_image", "fixed", "mode_of"}, in bytes, float32.

    `per_image` counts meta-networks and frozen segments, `frozen_per_image` the segments alone; `mode_of` says which
    mode each segment runs in, null where it has no backward. Bytes that depend on the data (a second sign mask where
    some x~_k equals x_k) count.
    """
    return {gradient: _kept(model, gradient) for gradient in get_args(Gradient)}


def _kept(model: AdaptableModel, gradient: Gradient) -> dict[str, Any]:
    modes: dict[str, GradientMode | None] = {}
    frozen = fixed = 0.0
    for k, (name, graphs) in enumerate(list(model.segments().items())[1:]):
        last = name == "classifier"
        mode = gradient_mode(graphs, "auto" if last and gradient == "local" else gradient)
        # Nothing before the first meta-network trains, unless biases do.
        modes[name] = mode if k > 0 or graphs.initial_biases else None
        if modes[name] is None:
            continue
        frozen += _per_image(graphs, mode)
        fixed += graphs.kept_bytes(0, mode)
        if last and mode == "recompute":
            frozen += 4 * graphs.input.elements(1)  # the last x~_k, which no meta-network keeps
    metas = 0.0
    for spec, part in zip(model.metas, model.parts, strict=True):
        metas += _meta_per_image(part)
        fixed += _moments(spec)
    return {
        "per_image": math.ceil(frozen + metas),
        "frozen_per_image": math.ceil(frozen),
        "fixed": math.ceil(fixed),
        "mode_of": modes,
    }


def _per_image(graphs: SegmentGraphs, mode: GradientMode) -> float:
    return (graphs.kept_bytes(_BATCH, mode) - graphs.kept_bytes(0, mode)) / _BATCH


def _meta_per_image(part: SegmentGraphs) -> float:
    """x~_{k-1}, x_k and the convolution's output as floats; the branch's ReLU and both signs as bits."""
    source, target = part.input.elements(1), part.output.elements(1)
    return 4 * source + 2 * 4 * target + 3 * target / 8


def _moments(spec: MetaSpec) -> int:
    """Mean and inverse deviation of two normalisations."""
    return 2 * 2 * 4 * spec.out_channels
