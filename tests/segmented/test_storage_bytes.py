"""Bytes kept for one backward, by storage and engine: as the contract counts them, as they are alive, and few."""

from __future__ import annotations

import functools

import pytest
import torch
from tests.adaptation.test_engines_agree import on_onnxruntime, on_torch

from edgetta.adaptation.model import AdaptableModel, build
from edgetta.adaptation.network import AdaptiveNetwork
from edgetta.adaptation.step_memory import STORAGES, StepMemory, Storage
from edgetta.export.derive import derive
from edgetta.memory.meter import measure_kept
from edgetta.models import cuts, load_model
from tests.adaptation.backbones import small_model

MB = 1e6
ENGINES = {"torch": on_torch, "onnxruntime": on_onnxruntime}
MOST = {"full": 80, "half": 45, "int8": 27, "recompute": 40, "recompute-int8": 20}
"""Megabytes at batch 64; the goals are those of full, recompute and recompute-int8."""


@functools.cache
def wide_resnet() -> AdaptableModel:
    model = load_model("wrn40_2")
    return derive(model.module, model.input_shape, cuts("wrn40_2", 4), adapt="meta", kernel=3)


@functools.cache
def network_on(engine: str) -> AdaptiveNetwork:
    return build(wide_resnet(), ENGINES[engine], "exact", "batch")


@pytest.mark.parametrize("engine", ["torch", pytest.param("onnxruntime", marks=pytest.mark.full)])
@pytest.mark.parametrize("storage", STORAGES)
def test_wide_resnet_keeps_what_was_promised(storage: Storage, engine: str) -> None:
    """WRN-40-2, K=4, 32x32, batch policy, exact gradients, everything included: counted at a quarter of batch 64."""
    network = network_on(engine)
    network.memory = StepMemory(storage)
    kept = measure_kept(network, torch.rand(16, 3, 32, 32))
    assert abs(kept.alive - kept.contract) <= 0.1 * kept.contract, kept
    assert max(kept.alive, kept.contract) <= MOST[storage] * MB / 4, kept


@pytest.mark.parametrize(("engine", "gradient"), [("onnxruntime", "exact"), ("torch", "recompute")])
def test_both_counts_agree(engine: str, gradient: str) -> None:
    network = build(small_model(adapt="bias"), ENGINES[engine], gradient, "batch")  # type: ignore[arg-type]
    counts = {}
    for storage in STORAGES:
        network.memory = StepMemory(storage)  # type: ignore[arg-type]
        kept = measure_kept(network, torch.rand(64, 3, 16, 16))
        assert abs(kept.alive - kept.contract) <= 0.1 * kept.contract, (storage, kept)
        counts[storage] = kept.contract
    assert counts["recompute"] < 0.6 * counts["full"] and counts["recompute-int8"] < 0.3 * counts["full"]


@pytest.mark.parametrize("gradient", ["exact", "recompute", "local"])
def test_slices_on_onnxruntime_give_the_gradients_of_torch(gradient: str) -> None:
    found = []
    for engine, memory in (("torch", StepMemory()), ("onnxruntime", StepMemory("recompute", 5))):
        network = build(small_model(adapt="bias"), ENGINES[engine], gradient, "batch")  # type: ignore[arg-type]
        network.memory = memory
        logits, tape = network.forward(torch.rand(24, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
        network.backward(tape, logits.cos(), 0.5)
        found.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))
    assert (found[1] - found[0]).norm() < 1e-3 * found[0].norm(), "a flipped ReLU mask alone makes up to 1e-3"
