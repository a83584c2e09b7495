"""Between forward and backward an engine keeps what the contract says and nothing else, on torch and ONNX Runtime."""

from __future__ import annotations

import functools
import gc

import pytest
import torch
from torch import Tensor

from edgetta.adaptation.model import AdaptableModel, build
from edgetta.adaptation.network import AdaptiveNetwork
from edgetta.bench.exactness.segments import segment
from edgetta.export.batch_norm import Adapt
from edgetta.export.derive import derive
from edgetta.memory.meter import measure_kept
from edgetta.models import load_model

ENGINES = ("torch", "onnxruntime")
MODES = ("exact", "recompute", "local")
IMAGES = (8, 3, 32, 32)


@functools.cache
def model(name: str, adapt: Adapt) -> AdaptableModel:
    loaded = load_model(name)
    assert loaded.parts is not None
    return derive(loaded.module, loaded.input_shape, loaded.parts.cuts(4), adapt=adapt, kernel=3)


def network(name: str, engine: str, mode: str, adapt: Adapt = "meta") -> AdaptiveNetwork:
    return build(model(name, adapt), lambda _, graphs, m: segment(graphs, engine, m), mode, "batch")  # type: ignore[arg-type]


@pytest.mark.parametrize("adapt", ["meta", "affine"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("engine", ENGINES)
def test_both_counts_agree_and_are_the_contracts(engine: str, mode: str, adapt: Adapt) -> None:
    made = network("resnet20", engine, mode, adapt)
    kept = measure_kept(made, torch.rand(IMAGES))
    assert kept.alive == pytest.approx(kept.contract, rel=0.1)
    for k, part in enumerate(made.parts, 1):
        expected = part.graphs.kept_bytes(IMAGES[0], part.gradient) if k > 1 or adapt == "affine" else 0
        assert kept.by_owner[f"part {k}: residuals"] == expected


def test_wide_resnet_on_onnx_runtime_keeps_what_it_keeps_on_torch() -> None:
    """WRN-40-2, K=4, batch policy, exact, meta-networks alone: at most 80 MB at batch 64, an eighth at batch 8."""
    counts = [measure_kept(network("wrn40_2", engine, "exact"), torch.rand(IMAGES)) for engine in ENGINES]
    assert counts[0].by_owner == counts[1].by_owner
    assert max(count for kept in counts for count in (kept.alive, kept.contract)) <= 80e6 / 8
    assert all(kept.alive == pytest.approx(kept.contract, rel=0.1) for kept in counts)


@pytest.mark.parametrize("engine", ENGINES)
def test_of_the_frozen_parts_only_the_inputs_of_meta_networks_are_alive_as_floats(engine: str) -> None:
    made = network("wrn40_2", engine, "exact")
    images = torch.rand(IMAGES)
    before = {tensor.untyped_storage().data_ptr() for tensor in large_floats()}
    logits, tape = made.forward(images)
    found = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in large_floats()
        if tensor.untyped_storage().data_ptr() not in before
    }
    allowed = [t for boundary in tape.boundaries for t in boundary.tensors()]
    allowed += [t for kept in tape.kept for tensors in kept.tensors().values() for t in tensors]
    known = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in allowed}
    assert found, "the forward keeps something"
    assert found.items() <= known.items()
    assert logits.shape == (IMAGES[0], 10)


def large_floats() -> list[Tensor]:
    gc.collect()
    tensors = [item for item in gc.get_objects() if type(item) is Tensor]
    return [t for t in tensors if t.is_floating_point() and t.untyped_storage().nbytes() > 50_000]
