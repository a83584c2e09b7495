"""From a torch model to an `AdaptableModel`: trace, cut, settle BatchNorm, size the meta-networks, differentiate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import nn

from edgetta.adaptation.meta_network import Initialisation, MetaSpec
from edgetta.errors import UsageError
from edgetta.export.adaptable import AdaptableModel
from edgetta.export.batch_norm import Adapt, fold, settle
from edgetta.export.cut import CutModel, cut, stride_of
from edgetta.export.programs import derive_programs
from edgetta.export.quantise import Ranges, quantise
from edgetta.export.trace import trace
from edgetta.segments.graph import Graph

_WIDE_KERNEL_SHARE = 0.1  # 3x3 meta-networks may have this share of the backbone's weights, else 1x1


def derive(
    model: nn.Module | torch.export.ExportedProgram,
    input_shape: tuple[int, int, int],
    cuts: Sequence[str] | None = None,
    parts: int = 4,
    batch_norm: Literal["adaptive", "source"] = "adaptive",
    adapt: Adapt = "affine",
    initialisation: Initialisation = "identity",
    kernel: int | None = None,
    ranges: Ranges | None = None,
    seed: int = 0,
) -> AdaptableModel:
    """An adaptable model for images of `input_shape` (C, H, W) and any batch.

    cuts       module names: the stem's end, then the end of each part; chosen automatically when None
    parts      how many parts when cuts are chosen automatically
    adapt      what adapts beside the meta-networks: nothing (`meta`), per-channel biases (`bias`), or BatchNorm's
               weights, too (`affine`), with the gradient through the statistics from one bit per element
    kernel     of the meta-networks' convolutions, 3 or 1; None chooses 3 where that stays small beside the backbone
    ranges     makes the backbone int8 (`quantise.measure_ranges` of the float model measures them)
    seed       of the meta-networks' convolutions
    Raises `TraceError`, `UsageError`, `DifferentiationError` naming what stands in the way.
    """
    if kernel not in (None, 1, 3):
        raise UsageError(f"the kernel of the meta-networks must be 1 or 3, not {kernel}")
    if initialisation not in get_args(Initialisation):
        raise UsageError(f"unknown initialisation {initialisation!r}; choose {' or '.join(get_args(Initialisation))}")
    if batch_norm not in ("adaptive", "source"):
        raise UsageError(f"BatchNorms are derived as adaptive or source, not {batch_norm!r}")
    traced = trace(model, input_shape)
    pieces = cut(traced, cuts, parts)
    policy: Literal["ema", "source"] = "ema" if batch_norm == "adaptive" else "source"
    _check_classes(pieces)
    settled = {"stem": settle(pieces.stem, policy)}
    settled |= {f"part{k}": settle(part, policy, adapt) for k, part in enumerate(pieces.parts, 1)}
    settled["classifier"] = settle(pieces.classifier, policy)
    source = fold(traced.graph)
    if ranges is not None:
        settled = {n: replace(piece, graph=quantise(piece.graph, ranges.get(n, {}))) for n, piece in settled.items()}
        source = quantise(source, ranges.get("source", {}))
    weights = sum(tensor.numel() for tensor in traced.graph.constants.values())
    normalised = any(node.op == "BatchNormalization" for node in traced.graph.nodes)
    metas = _meta_specs(pieces.parts, kernel, weights, normalised, initialisation)
    programs = derive_programs(settled, metas, seed)
    return AdaptableModel(programs, settled, source, pieces.names, batch_norm, tuple(metas))


def _meta_specs(
    parts: Sequence[Graph], kernel: int | None, weights: int, normalised: bool, initialisation: Initialisation
) -> list[MetaSpec]:
    shapes = [(part.values["x"].shape, part.values[part.outputs[0]].shape) for part in parts]
    if kernel is None:
        wide = sum(9 * source[1] * target[1] for source, target in shapes if len(source) == 4)
        kernel = 3 if wide <= _WIDE_KERNEL_SHARE * weights else 1
    specs = []
    for k, (source, target) in enumerate(shapes, 1):
        stride = stride_of(source, target)
        if stride is None:
            raise UsageError(
                f"part {k} turns {source[1:]} into {target[1:]}, which no meta-network can stand beside; "
                "cut between feature maps (C, H, W) or token sequences (T, C) of the same length"
            )
        if len(source) == 3:
            specs.append(MetaSpec(source[2], target[2], 1, 1, True, initialisation, normalised))
            continue
        specs.append(MetaSpec(source[1], target[1], kernel, stride, False, initialisation, normalised))
    return specs


def _check_classes(pieces: CutModel) -> None:
    shape = pieces.classifier.values[pieces.classifier.outputs[0]].shape
    if len(shape) != 2:
        raise UsageError(f"the model returns shape {shape}; a classifier returns (batch, classes)")
    if shape[1] < 2:
        raise UsageError("the model returns one number per image; a classifier has at least 2 classes")
