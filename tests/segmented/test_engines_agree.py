"""The same stream on the torch and the ONNX Runtime engine ends at the same weights."""

from __future__ import annotations

import pytest
import torch

from edgetta.adaptation.model import build
from edgetta.adaptation.network import AdaptiveNetwork
from edgetta.export.onnx_writer import to_onnx
from edgetta.segmented.adapter import AdaptConfig, Adapter
from edgetta.segments.contract import GradientMode, Segment, SegmentGraphs
from edgetta.segments.onnxruntime_engine import OnnxRuntimeSegment
from edgetta.segments.torch_engine import TorchSegment
from tests.adaptation.backbones import small_model


def on_torch(name: str, graphs: SegmentGraphs, mode: GradientMode) -> Segment:
    return TorchSegment(graphs, mode)


def on_onnxruntime(name: str, graphs: SegmentGraphs, mode: GradientMode) -> Segment:
    directions = {"forward": graphs.forward, "backward": graphs.backward, "recompute": graphs.recompute}
    models = {key: to_onnx(graph, key).SerializeToString() for key, graph in directions.items() if graph is not None}
    return OnnxRuntimeSegment(graphs, models, mode)


def weights(network: AdaptiveNetwork) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


@pytest.mark.parametrize(
    ("mode", "policy", "adapt"),
    [
        ("exact", "batch", "meta"),
        ("exact", "ema", "bias"),
        ("exact", "batch", "affine"),
        ("recompute", "batch", "affine"),
        ("local", "batch", "meta"),
    ],
)
def test_same_weights_after_100_steps(mode: str, policy: str, adapt: str) -> None:
    model = small_model(adapt=adapt)
    ends, start = [], None
    for engine in (on_torch, on_onnxruntime):
        network = build(model, engine, mode, policy)  # type: ignore[arg-type]
        start = weights(network).clone()
        adapter = Adapter(network, AdaptConfig(learning_rate=5e-3, entropy_margin=0.99))
        generator = torch.Generator().manual_seed(11)
        for _ in range(100):
            adapter.step(torch.rand(16, 3, 16, 16, generator=generator))
        assert adapter.updates == 100
        ends.append(weights(network))
    moved = (ends[0] - start).norm()
    assert moved > 0.1, "the stream must move the weights for the comparison to mean anything"
    assert (ends[0] - ends[1]).norm() / moved < 1e-2
