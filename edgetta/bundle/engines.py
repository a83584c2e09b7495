"""Put a bundle's graphs on an engine: torch, which is always there, or ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Literal, get_args

import torch
from torch import Tensor

from edgetta.adaptation.model import Gradient, build
from edgetta.adaptation.network import AdaptiveNetwork, BatchNorm
from edgetta.adaptation.step_memory import FULL, StepMemory
from edgetta.bundle.reading import Bundle
from edgetta.errors import BundleError, EdgettaError, MissingDependencyError, UsageError, one_line
from edgetta.segments.contract import GradientMode, Segment, SegmentGraphs
from edgetta.segments.onnxruntime_engine import OnnxProgram, OnnxRuntimeSegment, import_onnxruntime
from edgetta.segments.torch_engine import Program, TorchSegment

EngineName = Literal["torch", "onnxruntime"]
ENGINES = ("auto", *get_args(EngineName))


def build_network(
    bundle: Bundle,
    engine: str = "auto",
    gradient: Gradient = "auto",
    batch_norm: BatchNorm | None = None,
    threads: int = 0,
    memory: StepMemory = FULL,
) -> AdaptiveNetwork:
    """The bundle's network on an engine, in the state in which it was shipped.

    engine      "torch", "onnxruntime", or "auto": ONNX Runtime where it is installed. Both run on the CPU
    gradient    "auto", "exact", "recompute" or "local"
    batch_norm  "auto", "batch", "ema" or "source"; the bundle's own when None
    threads     of ONNX Runtime, 0 for as many as torch has; torch's own are set with `torch.set_num_threads`
    memory      what a step keeps between forward and backward
    Raises `UsageError` for options that cannot be, `MissingDependencyError` where the engine is not installed,
    `BundleError` where the engine refuses the bundle's files.
    """
    name = engine_name(engine)
    if gradient not in get_args(Gradient):
        raise UsageError(f"unknown gradient mode {gradient!r}; choose one of {', '.join(get_args(Gradient))}")
    if threads < 0:
        raise UsageError(f"{threads} threads are none; use 1 or more, or 0 for as many as torch has")
    policy = bundle.batch_norm if batch_norm is None else batch_norm
    if policy not in get_args(BatchNorm):
        raise UsageError(f"unknown BatchNorm policy {policy!r}; choose one of {', '.join(get_args(BatchNorm))}")

    def make(segment: str, graphs: SegmentGraphs, mode: GradientMode) -> Segment:
        if name == "torch":
            return TorchSegment(graphs, mode)
        directions = bundle.entry(segment).onnx
        paths = {direction: str(bundle.onnx_path(segment, direction)) for direction in directions}
        with _engine_errors(bundle, segment):
            return OnnxRuntimeSegment(graphs, paths, mode, threads)

    network = build(bundle.model, make, gradient, policy, memory=memory)
    network.ema_images = bundle.ema_images
    try:
        network.load_state_dict(bundle.meta_tensors())
    except ValueError as error:
        raise BundleError(
            f"{bundle.files.manifest.meta_tensors} in bundle {bundle.path}: {error}; export the bundle again"
        ) from error
    return network


def source_program(bundle: Bundle, engine: str = "auto", threads: int = 0) -> Callable[[Tensor], Tensor]:
    """The unadapted backbone on an engine: images (N, C, H, W) in [0, 1] -> logits (N, classes)."""
    graph = bundle.model.source
    if engine_name(engine) == "torch":
        program = Program(graph)

        def run_torch(images: Tensor) -> Tensor:
            with torch.no_grad():
                return program.run({"x": images})[0]

        return run_torch
    with _engine_errors(bundle, "source"):
        session = OnnxProgram(str(bundle.onnx_path("source")), graph, threads)
    return lambda images: session.run({"x": images}, graph.outputs)[0]


def engine_name(engine: str) -> EngineName:
    """Resolve "auto". Raises `UsageError` for an engine that edgetta does not have."""
    if engine == "auto":
        with suppress(MissingDependencyError):
            import_onnxruntime()
            return "onnxruntime"
        return "torch"
    if engine == "torch" or engine == "onnxruntime":
        return engine  # type: ignore[return-value]
    raise UsageError(f"unknown engine {engine!r}; choose one of {', '.join(ENGINES)}")


def engine_of(network: AdaptiveNetwork) -> EngineName:
    """The engine that a network of `build_network` runs on."""
    return "onnxruntime" if isinstance(network.classifier, OnnxRuntimeSegment) else "torch"


@contextmanager
def _engine_errors(bundle: Bundle, segment: str) -> Iterator[None]:
    """What ONNX Runtime raises while it loads a file has no common kind; here it becomes a `BundleError`."""
    try:
        yield
    except EdgettaError:
        raise
    except Exception as error:
        raise BundleError(
            f"ONNX Runtime refuses segment {segment!r} of bundle {bundle.path}: {one_line(error)}; "
            "try --engine torch, or export the bundle again"
        ) from error
