"""Measured in a process of its own by `test_onnxruntime_memory.py`: what ONNX Runtime takes for one segment."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgetta.bench.exactness.segments import models
from edgetta.export.batch_norm import settle
from edgetta.export.differentiate import differentiate
from edgetta.export.trace import trace
from edgetta.memory.peak import give_back, measure_peak, resident
from edgetta.segments.contract import SegmentGraphs
from edgetta.segments.onnxruntime_engine import OnnxRuntimeSegment

BATCH, CHANNELS, SIZE, BLOCKS = 64, 16, 16, 8
MAP = BATCH * CHANNELS * SIZE * SIZE * 4  # bytes of one activation


class Chain(nn.Module):
    """Convolution, BatchNorm and ReLU, `BLOCKS` times over."""

    def __init__(self) -> None:
        super().__init__()
        blocks = [(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.BatchNorm2d(CHANNELS)) for _ in range(BLOCKS)]
        self.blocks = nn.Sequential(*(module for pair in blocks for module in (*pair, nn.ReLU())))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.blocks(x)
        return y


def measure(policy: str) -> dict[str, float]:
    """Activations that the engine holds beyond its outputs, by what it does, and what is left behind it."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    graphs = differentiate(settle(trace(Chain().eval(), (CHANNELS, SIZE, SIZE)).graph, policy, True))  # type: ignore[arg-type]
    segment = OnnxRuntimeSegment(graphs, models(graphs, "exact"), "exact", threads=1)
    x = torch.rand(BATCH, CHANNELS, SIZE, SIZE)
    y, _ = segment.forward(x)
    give_back()
    before = resident()
    keeping = measure_peak(lambda: segment.forward(x)[0])
    masks = sum(r.value.elements(BATCH) for r in graphs.residuals if r.kind == "mask")
    predicting = measure_peak(lambda: segment.forward(x, keep=False)[0])
    residuals = [segment.forward(x)[1] for _ in range(4)]  # each serves once
    backward = measure_peak(lambda: segment.input_gradient(residuals.pop(), y)[0])
    unpacked = masks  # bytes of the masks as the session reads them
    del residuals
    give_back()
    return {
        "keep": (keeping.peak - MAP - masks) / MAP,
        "predict": (predicting.peak - MAP) / MAP,
        "backward": (backward.peak - MAP - unpacked) / MAP,
        "left": (resident() - before) / MAP,
        "masks": masks / MAP,
    }


def shared(copies: int) -> dict[str, int]:
    """Bytes that a session adds whose weights are in memory already, and the bytes of these weights."""
    torch.manual_seed(0)
    big = nn.Sequential(*(nn.Conv2d(1024, 1024, 1, bias=False) for _ in range(4))).eval()
    graphs: SegmentGraphs = differentiate(settle(trace(big, (1024, 2, 2)).graph, "source"))
    files = models(graphs, "exact")
    give_back()
    before = resident()
    made = [OnnxRuntimeSegment(graphs, files, "local", threads=1) for _ in range(copies)]
    weights = sum(t.nbytes for t in graphs.forward.constants.values())
    give_back()
    return {"weights": weights, "added": (resident() - before) // len(made)}
