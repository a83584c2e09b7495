"""Programs of small networks, with inputs at no special point, for the tests of engines."""

from __future__ import annotations

import functools

import numpy as np
import torch

from edgetta.engines.contract import Array, Mixing, Moments, ProgramSet, Statistics
from edgetta.engines.onnxruntime import OnnxRuntimeEngine
from edgetta.export.derive import derive
from tests.export.small_networks import SMALL

NETWORKS = ("resnet20", "wide_resnet", "mobile", "transformer")


@functools.cache
def programs_of(name: str, form: str = "adaptive", adapt: str = "affine") -> ProgramSet:
    small = SMALL[name]
    torch.manual_seed(0)
    programs = derive(
        small.build().eval(),
        small.input_shape,
        small.cuts,
        batch_norm=form,  # type: ignore[arg-type]
        adapt=adapt,  # type: ignore[arg-type]
        kernel=None,
    ).programs
    assert programs is not None
    return programs


@functools.cache
def onnx_engine(name: str, form: str = "adaptive") -> OnnxRuntimeEngine:
    return OnnxRuntimeEngine(programs_of(name, form))


def generic(programs: ProgramSet, seed: int = 5) -> tuple[Array, Statistics]:
    """Parameters and statistics at no special point: every branch of a meta-network is alive."""
    rng = np.random.default_rng(seed)
    parameters = programs.shipped + 0.1 * rng.standard_normal(programs.parameters.size).astype(np.float32)
    size = programs.statistics.size
    mean, variance = 0.2 * rng.standard_normal(size), 0.5 + rng.random(size)
    return parameters, Statistics(mean.astype(np.float32), variance.astype(np.float32))


def images(programs: ProgramSet, count: int = 6) -> Array:
    return np.random.default_rng(1).random((count, *programs.input_shape), np.float32)


def gradient(programs: ProgramSet, count: int = 6) -> Array:
    found = np.random.default_rng(2).standard_normal((count, programs.classes)) / count
    return found.astype(np.float32)


def mixing(programs: ProgramSet, share: float = 0.3) -> Mixing:
    """A map of mixed moments to statistics that changes both."""
    rng, size = np.random.default_rng(4), programs.statistics.size
    before = generic(programs, 6)[1]
    gain, offset, factor, power = (
        low + spread * rng.random(size).astype(np.float32)
        for low, spread in ((0.7, 0.3), (-0.1, 0.2), (0.6, 0.5), (0.5, 0.5))
    )
    return Mixing(Moments(before.mean, before.variance), share, gain, offset, factor, power, 0.01 * power)


def relative(found: Array, wanted: Array) -> float:
    return float(np.linalg.norm(found - wanted) / max(np.linalg.norm(wanted), 1e-12))
