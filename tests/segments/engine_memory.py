"""Functions that `test_onnxruntime_memory.py` calls in other processes: what ONNX Runtime takes for a segment."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgetta.bench.exactness.segments import models
from edgetta.export.batch_norm import settle
from edgetta.export.differentiate import differentiate
from edgetta.export.trace import trace
from edgetta.memory.peak import give_back, measure_peak, resident
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


def engine_maps(policy: str) -> dict[str, float]:
    """Activations that the engine holds beyond its outputs and its inputs, by what it does; and what stays behind."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    graphs = differentiate(settle(trace(Chain().eval(), (CHANNELS, SIZE, SIZE)).graph, policy, "bias"))  # type: ignore[arg-type]
    masks = sum(
        r.value.elements(BATCH) for r in graphs.residuals if r.kind == "mask"
    )  # a byte each, as engines see them
    x = torch.rand(BATCH, CHANNELS, SIZE, SIZE)
    predicting = OnnxRuntimeSegment(graphs, models(graphs, "exact"), "exact", threads=1)
    predict = measure_peak(lambda: predicting.forward(x, keep=False)[0])
    keeping = OnnxRuntimeSegment(graphs, models(graphs, "exact"), "exact", threads=1)
    keep = measure_peak(lambda: keeping.forward(x)[0])
    kept = [keeping.forward(x)[1] for _ in range(4)]  # each serves once
    back = measure_peak(lambda: keeping.input_gradient(kept.pop(), x)[0])
    return {
        "predict": (predict.peak - MAP) / MAP,
        "keep": (keep.peak - MAP - masks) / MAP,
        "back": (back.peak - MAP - masks) / MAP,
        "held": (back.held - MAP) / MAP,
    }


def bytes_per_session() -> tuple[int, int]:
    """What one more session takes of a segment whose weights are in memory, and the bytes of the weights."""
    layers = nn.Sequential(*(nn.Conv2d(1024, 1024, 1, bias=False) for _ in range(4))).eval()
    graphs = differentiate(settle(trace(layers, (1024, 2, 2)).graph, "source"))
    files = models(graphs, "local")
    made = [OnnxRuntimeSegment(graphs, files, "local", threads=1)]
    x = torch.rand(2, 1024, 2, 2)
    made[0].forward(x)
    give_back()
    before = resident()
    for _ in range(3):
        made.append(OnnxRuntimeSegment(graphs, files, "local", threads=1))
        made[-1].forward(x)
    give_back()
    return (resident() - before) // 3, sum(t.nbytes for t in graphs.forward.constants.values())


def maps_of_large_images() -> float:
    """Activations, beyond its output, that a convolution takes whose BatchNorm follows the batch."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    size, batch = 64, 16
    layers = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.BatchNorm2d(CHANNELS), nn.ReLU())
    graphs = differentiate(settle(trace(layers.eval(), (CHANNELS, size, size)).graph, "batch"))
    segment = OnnxRuntimeSegment(graphs, models(graphs, "exact"), "exact", threads=1)
    x = torch.rand(batch, CHANNELS, size, size)
    peak = measure_peak(lambda: segment.forward(x, keep=False)[0])
    return peak.peak / (batch * CHANNELS * size * size * 4) - 1
