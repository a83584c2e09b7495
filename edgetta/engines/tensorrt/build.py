"""Build one engine: TensorRT 8.5, 8.6, 10 and 11, and TensorRT-RTX, behind one function.

What differs between them: 8 must be told that the batch is explicit and that int8 is allowed, and takes float16 as a
wish, layer by layer; from 10 on the network is strongly typed, so float16 is written into the graph
(`half.py`); 11 knows nothing else.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import torch

from edgetta.devices.machine import parse_meminfo
from edgetta.engines.tensorrt.half import single_nodes, to_half
from edgetta.engines.tensorrt.library import import_tensorrt, is_rtx, messages, version_of
from edgetta.errors import EdgettaError, MissingDependencyError, UsageError
from edgetta.segments.onnx_model import OnnxModel

Precision = Literal["fp32", "fp16"]
LARGEST_WORKSPACE = 1 << 30
SMALLEST_WORKSPACE = 16 << 20
_OUT_OF_MEMORY = ("could not find any implementation", "out of memory", "outofmemory", "cuda failure: 2", "cudamalloc")


class EngineBuildError(EdgettaError):
    """TensorRT made no engine."""


@dataclass(frozen=True)
class BuildOptions:
    """How engines are built; all of it is part of what an engine is, and is written beside it."""

    precision: Precision = "fp32"
    batch: tuple[int, int, int] = (1, 64, 64)  # smallest, the one to be fastest at, largest
    workspace: int | None = None  # bytes that TensorRT may use; None: a quarter of what is free, 1 GiB at most
    level: int = 3  # 0 to 5: how long TensorRT searches for fast kernels
    aux_streams: int = 0  # extra CUDA streams within an engine; 0 needs least memory
    tf32: bool = False  # let float32 run on tensor cores with 10 bits of mantissa (from Orin on)

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            raise UsageError(f"precision is one of {', '.join(get_args(Precision))}, not {self.precision!r}")
        smallest, best, largest = self.batch
        if not 1 <= smallest <= best <= largest:
            raise UsageError(f"batch is MIN,OPT,MAX with 1 <= MIN <= OPT <= MAX, not {','.join(map(str, self.batch))}")
        if self.workspace is not None and self.workspace < SMALLEST_WORKSPACE:
            raise UsageError(f"a workspace of {self.workspace} bytes is too small; give {SMALLEST_WORKSPACE} or more")
        if not 0 <= self.level <= 5 or self.aux_streams < 0:
            raise UsageError("level is 0 to 5, and auxiliary streams are 0 or more")


@dataclass(frozen=True)
class BuiltEngine:
    """A serialised engine, and what it took to build it."""

    data: bytes
    seconds: float
    workspace: int  # bytes that TensorRT was allowed


class TimingStore(Protocol):
    """Keeps measured kernel times, so that the next build does not measure the same kernels again."""

    def read(self) -> bytes: ...

    def merge(self, combine: Callable[[bytes], bytes]) -> None: ...


Watch = Callable[[float], None]
"""Told the share of a build that is done, in [0, 1]; what it raises ends the build."""


def build_engine(
    model: OnnxModel,
    title: str,
    options: BuildOptions,
    timing: TimingStore | None = None,
    watch: Watch | None = None,
) -> BuiltEngine:
    """Build the engine of a float32 `model`, called `title` in messages.

    Raises `EngineBuildError` where TensorRT refuses the model or finds no engine, `MissingDependencyError` where there
    is no TensorRT or, except for TensorRT-RTX, no GPU.
    """
    trt = import_tensorrt()
    logger = messages(trt)
    logger.clear()
    start = time.perf_counter()
    try:
        builder = trt.Builder(logger)
    except TypeError as error:  # what the binding raises where TensorRT returns nothing
        raise MissingDependencyError(
            f"TensorRT {trt.__version__} cannot start ({logger.last()}); it needs a GPU, and a driver that is "
            "new enough: check nvidia-smi"
        ) from error
    half, typed = options.precision == "fp16", strongly_typed(trt)
    network = _parsed(trt, builder, to_half(model) if half and typed else model, title, logger)
    single = single_nodes(model) if half and not typed else None
    workspace = options.workspace or free_workspace()
    while True:
        config = _configured(trt, builder, network, options, workspace, title)
        if single is not None:
            _prefer_half(trt, config, network, single)
        if not typed and any(node.op == "QuantizeLinear" for node in model.nodes):
            config.set_flag(trt.BuilderFlag.INT8)
        cache = _timing_cache(trt, config, timing)
        monitor = _monitor_class(trt)(watch) if watch is not None and hasattr(trt, "IProgressMonitor") else None
        if monitor is not None:
            config.progress_monitor = monitor
        plan = builder.build_serialized_network(network, config)
        if monitor is not None and monitor.ended is not None:
            raise monitor.ended
        if plan is not None:
            break
        more = _more_workspace(logger.last(), workspace) if options.workspace is None else 0
        if not more:
            raise EngineBuildError(_no_engine(trt, title, workspace, logger.last()))
        workspace = more
        logger.clear()
    if cache is not None and timing is not None:
        timing.merge(lambda earlier: _combined(config, cache, earlier))
    return BuiltEngine(bytes(memoryview(plan)), time.perf_counter() - start, workspace)


def strongly_typed(trt: Any) -> bool:
    """Whether this TensorRT takes types from the graph: from 10 on."""
    return is_rtx(trt) or version_of(trt)[0] >= 10


def free_workspace() -> int:
    """A quarter of the memory that is free, in bytes; measured anew before every build, for boards with little."""
    return max(SMALLEST_WORKSPACE, min(LARGEST_WORKSPACE, free_memory() // 4))


def free_memory() -> int:
    """Bytes that are free on the GPU and in main memory, the lesser of both: on a Jetson they are the same."""
    free = []
    meminfo = Path("/proc/meminfo")
    memory = parse_meminfo(meminfo.read_text()) if meminfo.exists() else None
    if memory is not None:
        free.append(memory.available)
    if torch.cuda.is_available():
        free.append(torch.cuda.mem_get_info()[0])
    return min(free, default=4 * LARGEST_WORKSPACE)


def _parsed(trt: Any, builder: Any, model: OnnxModel, title: str, logger: Any) -> Any:
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model.to_bytes()):
        said = "; ".join(str(parser.get_error(i).desc()) for i in range(parser.num_errors)) or logger.last()
        raise EngineBuildError(
            f"TensorRT {trt.__version__} cannot read {title}: {' '.join(said.split())[:300]}; use --engine onnxruntime"
        )
    return network


def _network_flags(trt: Any) -> int:
    flag = trt.NetworkDefinitionCreationFlag
    return 1 << int(flag.STRONGLY_TYPED if strongly_typed(trt) else flag.EXPLICIT_BATCH)


def _configured(trt: Any, builder: Any, network: Any, options: BuildOptions, workspace: int, title: str) -> Any:
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace)
    (config.set_flag if options.tf32 else config.clear_flag)(trt.BuilderFlag.TF32)  # TensorRT's own default is on
    if hasattr(config, "builder_optimization_level"):  # both since 8.6
        config.builder_optimization_level = options.level
        config.max_aux_streams = options.aux_streams
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        value = network.get_input(i)
        shape = tuple(value.shape)
        if -1 in shape:
            sizes = [tuple(batch if size == -1 else size for size in shape) for batch in options.batch]
            profile.set_shape(value.name, *sizes)
    if config.add_optimization_profile(profile) < 0:
        raise EngineBuildError(
            f"TensorRT {trt.__version__} refuses batches {','.join(map(str, options.batch))} for {title}; "
            "choose other numbers with --batch MIN,OPT,MAX"
        )
    return config


def _prefer_half(trt: Any, config: Any, network: Any, single: frozenset[str]) -> None:
    """Weak typing: float16 wherever TensorRT likes, but not in the layers made from the nodes named in `single`."""
    config.set_flag(trt.BuilderFlag.FP16)
    config.set_flag(trt.BuilderFlag.PREFER_PRECISION_CONSTRAINTS)
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        floats = layer.num_outputs and layer.get_output(0).dtype == trt.DataType.FLOAT
        # Layers that the parser adds for a node have its name and something behind it.
        if floats and layer.type != trt.LayerType.CONSTANT and layer.name.split(" ")[0] in single:
            layer.precision = trt.DataType.FLOAT


def _timing_cache(trt: Any, config: Any, timing: TimingStore | None) -> Any:
    """The timing cache in use; None where there is none: in TensorRT-RTX, which has no use for it."""
    if timing is None or is_rtx(trt):
        return None
    cache = config.create_timing_cache(timing.read()) or config.create_timing_cache(b"")  # None: it was damaged
    return cache if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False) else None


def _combined(config: Any, cache: Any, earlier: bytes) -> bytes:
    """The times of this build and what others have written since it began."""
    if earlier:
        other = config.create_timing_cache(earlier)
        if other is not None:
            cache.combine(other, ignore_mismatch=False)
    return bytes(memoryview(cache.serialize()))


def _more_workspace(said: str, workspace: int) -> int:
    """What TensorRT asked for and a quarter more, where half of the memory that is free has room for it; else 0."""
    wanted = _asked(said) * 5 // 4
    return wanted if workspace < wanted <= free_memory() // 2 else 0


def _asked(said: str) -> int:
    """Bytes that TensorRT says it lacked; 0 where it does not say."""
    return max((int(size) for size in re.findall(r"Requested size was (\d+)", said)), default=0)


def _no_engine(trt: Any, title: str, workspace: int, said: str) -> str:
    if any(word in said.lower() for word in _OUT_OF_MEMORY):
        asked = f", and {_asked(said) >> 20} MiB were asked for" if _asked(said) else ""
        return (
            f"TensorRT {trt.__version__} found no engine for {title} within a workspace of {workspace >> 20} MiB"
            f"{asked}. This mostly means that memory ran out: close other programs, lower the largest batch (--batch) "
            f"or the level (--level 1), or give another --workspace. It said: {said}"
        )
    return f"TensorRT {trt.__version__} made no engine for {title}: {said}; use --engine onnxruntime"


@dataclass
class _Phase:
    """A phase of the build: where it begins in [0, 1], its share of the whole, its steps and how many are done."""

    begin: float
    share: float
    steps: int
    done: int = 0

    @property
    def place(self) -> float:
        return self.begin + self.share * self.done / self.steps


def _monitor_class(trt: Any) -> type:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        """Says how far a build is, and ends it when its watcher raises: on Ctrl-C, for one."""

        def __init__(self, watch: Watch) -> None:
            trt.IProgressMonitor.__init__(self)
            self._watch = watch
            self._phases: dict[str, _Phase] = {}
            self._furthest = 0.0  # phases may repeat; nobody wants to see a bar go back
            self.ended: BaseException | None = None

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            parent = self._phases.get(parent_phase or "", _Phase(0.0, 1.0, 1))
            self._phases[phase_name] = _Phase(parent.place, parent.share / parent.steps, max(1, num_steps))

        def step_complete(self, phase_name: str, step: int) -> bool:
            phase = self._phases.get(phase_name)
            if phase is not None:
                phase.done = min(step + 1, phase.steps)
                self._furthest = max(self._furthest, phase.place)
            try:
                self._watch(self._furthest)
            except BaseException as error:
                self.ended = error  # an exception must not pass through TensorRT
            return self.ended is None

        def phase_finish(self, phase_name: str) -> None:
            self._phases.pop(phase_name, None)

    return Monitor
