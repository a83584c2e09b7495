"""ONNX Runtime against torch, program by program, with imposed masks; what slices add up to; what mixing means."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgetta.engines.blocked import block_size, to_blocks
from edgetta.engines.contract import Array, Mixing, Moments, Residuals, Statistics
from edgetta.engines.onnxruntime import OnnxRuntimeEngine
from edgetta.engines.packing import pack, unpack
from edgetta.engines.torch import TorchEngine
from tests.engines.programs_of_networks import (
    NETWORKS,
    generic,
    gradient,
    images,
    mixing,
    onnx_engine,
    programs_of,
    relative,
)
from tests.export.test_quantise import models

LIMIT = 1e-5
CASES = [(name, form) for name in NETWORKS for form in ("adaptive", "source")]


@pytest.mark.parametrize(("name", "form"), CASES)
def test_engines_agree(name: str, form: str) -> None:
    programs = programs_of(name, form)
    parameters, statistics = generic(programs)
    one, other = onnx_engine(name, form), TorchEngine(programs)
    batch, grad_logits = images(programs), gradient(programs)
    wanted = other.forward(batch, parameters, statistics)
    assert relative(one.predict(batch, parameters, statistics), wanted.logits) < LIMIT
    assert relative(other.predict(batch, parameters, statistics), wanted.logits) < LIMIT
    passed = one.forward(batch, parameters, statistics)
    assert relative(passed.logits, wanted.logits) < LIMIT and abs(passed.distance - wanted.distance) < LIMIT
    assert passed.moments is not None and wanted.moments is not None
    assert relative(passed.moments.mean, wanted.moments.mean) < LIMIT
    assert relative(passed.moments.variance, wanted.moments.variance) < 5 * LIMIT  # means given are far from theirs

    imposed = as_kept(one, wanted.residuals)
    assert {n: (k.dtype, k.shape) for n, k in passed.residuals.kept.items()} == {
        n: (k.dtype, k.shape) for n, k in imposed.items()
    }
    found = one.backward(Residuals(len(batch), imposed), grad_logits, 0.7, parameters)
    assert relative(found, other.backward(wanted.residuals, grad_logits, 0.7, parameters)) < LIMIT
    assert np.linalg.norm(found) > 0


def as_kept(engine: OnnxRuntimeEngine, residuals: Residuals) -> dict[str, Array]:
    """What torch kept, in the order in which ONNX Runtime keeps it."""
    known = {residual.value.name: residual for residual in engine.programs.residuals}
    found = {}
    for name, kept in residuals.kept.items():
        array = kept.numpy()
        if name in engine.residuals_in_blocks:
            shape = known[name].value.with_batch(residuals.batch)
            array = to_blocks(unpack(known[name], array, shape), block_size())
            array = pack(known[name], array)
        found[name] = array
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_engines_mix_statistics_alike(name: str) -> None:
    programs = programs_of(name)
    parameters, _ = generic(programs)
    found = onnx_engine(name).measure(images(programs), parameters, mixing(programs))
    wanted = TorchEngine(programs).measure(images(programs), parameters, mixing(programs))
    assert relative(found[0], wanted[0]) < LIMIT
    assert relative(found[1].mean, wanted[1].mean) < LIMIT
    assert relative(found[1].variance, wanted[1].variance) < 5 * LIMIT


@pytest.mark.parametrize("name", NETWORKS)
def test_recompute_is_forward_and_backward(name: str) -> None:
    programs = programs_of(name)
    parameters, statistics = generic(programs)
    engine = TorchEngine(programs, torch.float64, pack=False)
    batch, grad_logits = images(programs), gradient(programs)
    passed = engine.forward(batch, parameters, statistics, moments=False)
    assert passed.moments is None
    wanted = engine.backward(passed.residuals, grad_logits, 0.7, parameters)
    assert relative(engine.recompute(batch, grad_logits, 0.7, parameters, statistics), wanted) < 1e-12
    found = onnx_engine(name).recompute(batch, grad_logits, 0.7, parameters, statistics)
    assert relative(found, wanted) < 1e-3  # rounding decides on which side of a mask a few elements fall


def test_mixed_statistics_are_moments_of_the_mixture() -> None:
    """Of two sets of images, one of which counts as those before: with share s, the moments of both together."""
    programs = programs_of("resnet20")
    parameters, _ = generic(programs)
    engine = TorchEngine(programs, torch.float64, pack=False)
    first, second = images(programs, 6), images(programs, 9)[6:]
    size = programs.statistics.size
    zero = Moments(np.zeros(size), np.ones(size))
    name = next(iter(programs.statistics.shapes))  # its input does not depend on statistics
    at = programs.statistics.slice(name)
    moments = [engine.measure(batch, parameters, Mixing.plain(zero, 0.0))[1] for batch in (first, second)]
    both = engine.measure(np.concatenate([first, second]), parameters, Mixing.plain(zero, 0.0))[1]
    share = len(second) / (len(first) + len(second))
    (m0, v0), (bm, bv) = ((m.mean[at], m.variance[at]) for m in moments)
    assert relative((1 - share) * m0 + share * bm, both.mean[at]) < 1e-12
    assert relative((1 - share) * v0 + share * bv + share * (1 - share) * (bm - m0) ** 2, both.variance[at]) < 1e-12


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_measure_is_predict_with_the_statistics_that_it_mixes(share: float) -> None:
    """Mixed by numpy from the moments that came out: every layer must have seen these very statistics."""
    programs = programs_of("resnet20")
    parameters, _ = generic(programs)
    engine = TorchEngine(programs, torch.float64, pack=False)
    asked = mixing(programs, share)
    logits, own = engine.measure(images(programs), parameters, asked)
    m0, v0 = (vector.astype(np.float64) for vector in (asked.before.mean, asked.before.variance))
    mean = (1 - share) * m0 + share * own.mean
    variance = (1 - share) * v0 + share * own.variance + share * (1 - share) * (own.mean - m0) ** 2
    used = Statistics(asked.gain * mean + asked.offset, asked.factor * (variance + asked.floor) ** asked.power)
    assert relative(engine.predict(images(programs), parameters, used), logits) < 1e-9


def test_gradients_of_slices_add_up_where_no_statistics_pass_them() -> None:
    programs = programs_of("transformer")  # LayerNorms, and meta-networks whose norms pass their part per slice
    parameters, statistics = generic(programs)
    engine = TorchEngine(programs, torch.float64, pack=False)
    batch, grad_logits = images(programs), gradient(programs)
    whole = engine.recompute(batch, grad_logits, 0.0, parameters, statistics)
    halves = [
        engine.recompute(batch[rows], grad_logits[rows], 0.0, parameters, statistics)
        for rows in (slice(0, 3), slice(3, 6))
    ]
    alike = [
        relative(sum(half[at] for half in halves), whole[at])
        for name, at in programs.parameters.slices.items()
        if name.startswith("part2.")  # behind every normalisation that takes statistics
    ]
    assert alike and max(alike) < 1e-9
    assert relative(sum(halves), whole) < 0.5


def test_images_of_another_shape_are_refused() -> None:
    programs = programs_of("resnet20")
    with pytest.raises(ValueError, match="images have shape"):
        onnx_engine("resnet20").predict(np.zeros((2, 3, 8, 8), np.float32), *generic(programs))


@pytest.mark.parametrize("form", ["adaptive", "source"])
def test_int8_programs_run_alike(form: str) -> None:
    programs = models("wide_resnet", form)[1].programs
    assert programs is not None and programs.predict.quantised
    one, other = OnnxRuntimeEngine(programs), TorchEngine(programs)
    batch, grad_logits = images(programs), gradient(programs)
    given = programs.shipped, programs.source
    found, wanted = one.forward(batch, *given), other.forward(batch, *given)
    assert relative(found.logits, wanted.logits) < 1e-2  # a value between two codes may be rounded either way
    imposed = as_kept(one, wanted.residuals)
    gradients = one.backward(Residuals(len(batch), imposed), grad_logits, 0.7, programs.shipped)
    assert relative(gradients, other.backward(wanted.residuals, grad_logits, 0.7, programs.shipped)) < LIMIT
