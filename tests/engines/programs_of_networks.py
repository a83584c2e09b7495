"""Programs of small networks, with inputs at no special point, for the tests of engines."""

from __future__ import annotations

import functools

import numpy as np
import torch

from edgetta.engines.contract import Array, Engine, Mixing, Moments, ProgramSet, Statistics
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


def assert_agree(one: Engine, other: Engine, count: int, limit: float = 1e-4) -> None:
    """All five programs of two engines, on so many images; what they keep has the same names and bytes."""
    programs = one.programs
    (parameters, statistics), batch, change = generic(programs), images(programs, count), mixing(programs)
    given = batch.copy()
    assert relative(other.predict(batch, parameters, statistics), one.predict(batch, parameters, statistics)) < limit
    (wanted, moments), (found, found_moments) = (e.measure(batch, parameters, change) for e in (one, other))
    assert relative(found, wanted) < limit
    assert relative(found_moments.mean, moments.mean) < limit
    assert relative(found_moments.variance, moments.variance) < limit
    passed, other_passed = (e.forward(batch, parameters, statistics) for e in (one, other))
    assert relative(other_passed.logits, passed.logits) < limit
    assert abs(other_passed.distance - passed.distance) < limit * passed.distance
    assert passed.moments is not None and other_passed.moments is not None
    assert relative(other_passed.moments.mean, passed.moments.mean) < limit
    assert relative(other_passed.moments.variance, passed.moments.variance) < limit
    assert other_passed.residuals.kept.keys() == passed.residuals.kept.keys()
    assert other_passed.residuals.nbytes == passed.residuals.nbytes
    incoming = gradient(programs, count)
    gradients, other_gradients = (
        e.backward(p.residuals, incoming, 0.3, parameters) for e, p in ((one, passed), (other, other_passed))
    )
    assert relative(other_gradients, gradients) < 10 * limit
    again = other.recompute(batch, incoming, 0.3, parameters, statistics)
    assert relative(again, gradients) < 10 * limit
    assert other.forward(batch, parameters, statistics, moments=False).moments is None
    np.testing.assert_array_equal(batch, given)
