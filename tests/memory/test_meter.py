"""What is kept between forward and backward: the contract's count and what is alive agree, and stay small."""

from __future__ import annotations

import torch

from edgetta.adaptation.model import build
from edgetta.export.derive import derive
from edgetta.memory.meter import measure_kept, stock_saved_bytes
from edgetta.models import cuts, load_model
from edgetta.segments.torch_engine import TorchSegment

MB = 1e6


def test_wide_resnet_keeps_at_most_80_megabytes_and_both_counts_agree() -> None:
    """WRN-40-2, K=4, 32x32, fp32, batch policy, exact, meta-networks alone: 80 MB at batch 64, a quarter at 16."""
    model = load_model("wrn40_2")
    derived = derive(model.module, model.input_shape, cuts("wrn40_2", 4), adapt="meta", kernel=3)
    network = build(derived, lambda name, graphs, mode: TorchSegment(graphs, mode), "exact", "batch")
    kept = measure_kept(network, torch.rand(16, 3, 32, 32))
    assert abs(kept.alive - kept.contract) <= 0.1 * kept.contract, kept
    assert max(kept.alive, kept.contract) <= 80 * MB / 4, kept
    parts = [owner for owner in kept.by_owner if "residuals" in owner]
    frozen = sum(kept.by_owner[owner] for owner in parts)
    assert 0 < frozen < 0.07 * kept.contract, "of the frozen parts only bits and scales are alive"
    expected = derived.segments()["part2"].kept_bytes(16, "exact")
    assert kept.by_owner["part 2: residuals"] == expected


def test_local_keeps_no_residual_and_recompute_only_statistics() -> None:
    model = load_model("resnet20")
    derived = derive(model.module, model.input_shape, cuts("resnet20", 4), kernel=3)
    counts = {}
    for mode in ("exact", "recompute", "local"):
        network = build(derived, lambda name, graphs, m: TorchSegment(graphs, m), mode, "batch")  # type: ignore[arg-type]
        kept = measure_kept(network, torch.rand(8, 3, 32, 32))
        assert abs(kept.alive - kept.contract) <= 0.1 * kept.contract, (mode, kept)
        counts[mode] = sum(v for k, v in kept.by_owner.items() if k.startswith("part") and "residuals" in k)
    assert counts["local"] == 0 < counts["recompute"] < counts["exact"]


def test_measuring_changes_nothing() -> None:
    model = load_model("resnet20")
    derived = derive(model.module, model.input_shape, cuts("resnet20", 4), kernel=3)
    network = build(derived, lambda name, graphs, mode: TorchSegment(graphs, mode), "exact", "ema")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    measure_kept(network, torch.rand(8, 3, 32, 32))
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_stock_autograd_counts_each_storage_once() -> None:
    x = torch.rand(4, 8, requires_grad=True)
    weight = torch.rand(8, 8)
    # x @ w saves w (ignored); relu saves its result; the product of it with itself saves the same storage again
    assert stock_saved_bytes(lambda: (lambda y: (y * y).sum())((x @ weight).relu()), ignore=[x, weight]) == 4 * 8 * 4
