"""CUDA graphs, with a stand-in for them: what a recording reads and leaves.

What stands in for CUDA graphs records the engine calls made while it captures, and repeats them with the same
addresses: an input or output that moved in the meantime shows in the numbers.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from edgetta.engines.tensorrt.program import GraphedProgram
from tests.engines.tensorrt.double import VERSIONS, Double, install
from tests.engines.tensorrt.test_engine import inputs, part, program


class CudaGraph:
    """A CUDA graph whose kernels are calls of the double."""

    capturing: CudaGraph | None = None

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1
        for call in self.calls:
            call()


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> Double:
    double = install(monkeypatch, VERSIONS[-1])
    double.graphs = []  # type: ignore[attr-defined]

    def made() -> CudaGraph:
        double.graphs.append(CudaGraph())  # type: ignore[attr-defined]
        return double.graphs[-1]  # type: ignore[attr-defined]

    @contextlib.contextmanager
    def capture(graph: CudaGraph, pool: Any = None) -> Iterator[None]:
        double.capture = graph.calls.append
        yield
        double.capture = None

    monkeypatch.setattr(torch.cuda, "CUDAGraph", made)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    return double


def test_recordings_compute_as_programs_do(trt: Double) -> None:
    """One recording per batch size, made once; results of earlier replays stay what they were."""
    graphs = part("wide_resnet", "ema")
    plain, graphed = program(graphs.forward), GraphedProgram(program(graphs.forward))
    state = {**graphs.initial_state, **graphs.initial_affine, "ema_momentum": torch.full((1,), 0.2)}
    earlier: list[tuple[list[Tensor], list[Tensor]]] = []
    for seed, batch in enumerate((4, 2, 4, 2, 4)):
        x = torch.randn(batch, *inputs(graphs, batch)[0].shape[1:], generator=torch.Generator().manual_seed(seed))
        expected = plain.run({"x": x, **state}, graphs.forward.outputs)
        found = graphed.run({"x": x, **state}, graphs.forward.outputs)
        earlier.append((expected, found))
    assert [graph.replays for graph in trt.graphs] == [3, 2]  # type: ignore[attr-defined]
    for expected, found in earlier:
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_masks_are_packed_from_the_recording_without_a_copy(trt: Double) -> None:
    graphs = part("vgg", "source", "meta")
    graphed = GraphedProgram(program(graphs.forward))
    names = [residual.value.name for residual in graphs.residuals]
    seen = set()

    def keep(name: str, tensor: Tensor) -> Tensor:
        seen.add(tensor.data_ptr())
        return tensor.to(torch.uint8)

    for _ in range(3):
        kept = graphed.run({"x": inputs(graphs, 2)[0]}, names, keep)
    assert len(seen) == len(names), "what is packed lies where the recording leaves it"
    assert all(tensor.dtype == torch.uint8 for tensor in kept)


def test_a_recording_is_made_outside_first(trt: Double) -> None:
    """After a change of shapes TensorRT has work that cannot be recorded."""
    graphs = part("vgg", "source", "meta")
    GraphedProgram(program(graphs.forward)).run({"x": inputs(graphs, 2)[0]}, graphs.forward.outputs[:1])
    kinds = [call[1] for call in trt.calls if call[1] in ("set_input_shape", "execute_async_v3")]
    assert kinds[:3] == ["set_input_shape", "execute_async_v3", "execute_async_v3"]
    assert len(trt.graphs[0].calls) == 1  # type: ignore[attr-defined]


def test_scratch_memory_is_shared_and_given_back(trt: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call takes what it needs from torch's allocator and leaves nothing taken."""
    graphs = part("vgg", "source", "meta")
    taken: list[Tensor] = []
    original = torch.empty

    def empty(*size: Any, **options: Any) -> Tensor:
        tensor = original(*size, **options)
        if options.get("dtype") == torch.uint8:
            taken.append(weakref.ref(tensor))  # type: ignore[arg-type]
        return tensor

    one, other = program(graphs.forward), program(graphs.forward)
    monkeypatch.setattr(torch, "empty", empty)
    for made in (one, other, one):
        made.run({"x": inputs(graphs, 2)[0]}, graphs.forward.outputs[:1])
    assert len(taken) == 3
    assert all(reference() is None for reference in taken)  # type: ignore[operator]
