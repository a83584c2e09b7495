"""The runtime: a bundle on an engine, adapting to a stream. What `edgetta.load` returns."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from edgetta.adaptation.adapter import AdaptConfig, Adapter, StepResult
from edgetta.adaptation.model import Gradient
from edgetta.adaptation.network import BatchNorm
from edgetta.adaptation.step_memory import FULL, StepMemory
from edgetta.bundle import (
    Bundle,
    build_network,
    engine_name,
    open_engine,
    processor_engines,
    read_bundle,
    self_test,
)
from edgetta.errors import BundleError, UsageError
from edgetta.input_range import check_range
from edgetta.memory.allocator import return_freed_memory
from edgetta.memory.choice import Choice
from edgetta.memory.keep import Keeper, ladder_without_costs
from edgetta.memory.kernel_cache import limit_kernel_cache
from edgetta.memory.plan import Plan, Wishes, plan_step
from edgetta.memory.room import RoomMeter
from edgetta.memory.sizes import parse_size
from edgetta.state_files.contents import Contents, StateError, encode, read
from edgetta.storage import atomic_write_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgetta.bundle.tensorrt_engines import TensorRTConfig

_LARGEST = 1e12
"""Of a number in a state: no network that predicts holds one that is larger."""


def load(
    bundle: str | os.PathLike[str],
    engine: str = "auto",
    *,
    config: AdaptConfig | None = None,
    gradient: Gradient = "auto",
    batch_norm: BatchNorm | None = None,
    threads: int = 0,
    check: bool = True,
    memory: StepMemory | None = None,
    tensorrt: TensorRTConfig | None = None,
    engine_cache: str | os.PathLike[str] | None = None,
    budget: int | str | None = None,
    batch: int = 64,
) -> Runtime:
    """Load a bundle (a directory or a zip) and make it run.

    engine        "torch", "torch-cuda", "onnxruntime", "tensorrt", ..., or "auto", the first that can be used here:
                  TensorRT where `edgetta build` was run for this bundle, ONNX Runtime or torch on a GPU,
                  ONNX Runtime, torch
    config        adaptation settings; the bundle's own when None
    gradient      "auto", "exact", "recompute" or "local"
    batch_norm    "auto", "batch", "ema" or "source"; the bundle's own when None
    threads       per engine; 0 takes torch's number
    check         run the bundle's self-test on this engine
    memory        what a step keeps between forward and backward; everything when None, or what a budget leaves
    tensorrt      settings of the engine "tensorrt"; those of the last `edgetta build` when None. Engines that are
                  missing are built, which takes minutes
    engine_cache  folder of TensorRT's engines; `edgetta/engines` in the user's cache folder when None
    budget        bytes, or a size such as "256MiB", that steps may take above the loaded model. They are planned for
                  it (`Runtime.plan`), measured, and kept in it (`Runtime.keeper`); None takes what it takes
    batch         with a budget: images that one call brings at most; more are split
    Raises `BundleError` when the bundle is damaged, unsafe, too new, or fails its self-test here, `BudgetError` for a
    budget that is too small.
    """
    return Runtime(
        read_bundle(Path(bundle)),
        engine,
        config,
        gradient,
        batch_norm,
        threads,
        check,
        memory,
        tensorrt,
        engine_cache,
        budget,
        batch,
    )


class Runtime:
    """Predicts and adapts. `runtime(images)` returns logits (N, classes) as predicted before the update.

    Images are uint8 (N, H, W, C), float (N, C, H, W) in [0, 1], or one such image without N. On a GPU engine the
    logits stay on the GPU. Threads may share a runtime: what one of them asks for is done before the next one's turn.
    """

    def __init__(
        self,
        bundle: Bundle,
        engine: str = "auto",
        config: AdaptConfig | None = None,
        gradient: Gradient = "auto",
        batch_norm: BatchNorm | None = None,
        threads: int = 0,
        check: bool = True,
        memory: StepMemory | None = None,
        tensorrt: TensorRTConfig | None = None,
        engine_cache: str | os.PathLike[str] | None = None,
        budget: int | str | None = None,
        batch: int = 64,
    ) -> None:
        self._turn = threading.RLock()
        self.bundle = bundle
        self.config = config or bundle.config
        self.plan: Plan | None = None
        if budget is not None:
            return_freed_memory()
            wishes = Wishes(
                batch=batch,
                engine=engine if engine != "auto" else _processor_engine(bundle, engine_cache),
                gradient=gradient,
                storage=None if memory is None else memory.storage,
                slice=None if memory is None else memory.slice,
                batch_norm=batch_norm,
                config=self.config,
            )
            self.plan = plan_step(bundle, parse_size(budget), wishes)
            engine, gradient = self.plan.choice.engine, self.plan.choice.gradient  # type: ignore[assignment]
            limit_kernel_cache(engine, len(bundle.model.metas))
            self.config = replace(self.config, window=self.plan.window or self.config.window)
        cache = Path(engine_cache) if engine_cache else None
        self.engine = open_engine(bundle, engine, threads, tensorrt, cache)
        self.network = build_network(bundle, self.engine, gradient, batch_norm, memory=memory or FULL)
        if check:
            self_test(bundle, self.network, self.engine.source(), gradients=self.config.when != "off")
        self._start = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
        parameters = list(self.network.parameters()) if self.config.anchor else []
        self._shipped = [parameter.detach().clone() for parameter in parameters] or None
        self._source: Any = None
        self._statistics = self.network.statistics_snapshot()
        self.adapter = self._adapter()
        self.keeper = self._keeper(gradient)
        if self.plan is not None:
            self._rehearse(self.plan)

    def __call__(self, images: Tensor | NDArray[Any]) -> Tensor:
        return self.step(images).logits

    def step(self, images: Tensor | NDArray[Any]) -> StepResult:
        """Predict and adapt; see `StepResult`.

        Where memory runs out, in any engine, the step is undone and the images are predicted; see `keeper.record`.
        Raises `UsageError` for images of another shape or type.
        """
        with self._turn:
            return self.keeper.step(self.as_input(images))

    def source(self, images: Tensor | NDArray[Any]) -> Tensor:
        """Logits (N, classes) of the unadapted backbone with the statistics of its training."""
        with self._turn:
            if self._source is None:
                self._source = self.engine.source()
            logits: Tensor = self._source(self.as_input(images))
            return logits

    def as_input(self, images: Tensor | NDArray[Any]) -> Tensor:
        """Images as the network takes them: float32 (N, C, H, W) in [0, 1], contiguous, on the engine's device."""
        tensor = torch.from_numpy(np.ascontiguousarray(images)) if isinstance(images, np.ndarray) else images
        shape = self.bundle.model.input_shape
        if tensor.dtype != torch.uint8 and not tensor.is_floating_point():
            raise UsageError(f"images are {images.dtype}; give uint8 in [0, 255], or floats in [0, 1]")
        if tensor.dim() == 3:
            tensor = tensor[None]
        if tensor.dtype == torch.uint8 and tensor.dim() == 4 and tensor.shape[3] == shape[0]:
            tensor = tensor.permute(0, 3, 1, 2)
        if tensor.dim() != 4 or tuple(tensor.shape[1:]) != shape or tensor.shape[0] == 0:
            raise UsageError(
                f"images have shape {tuple(images.shape)}; this bundle takes float (N, {', '.join(map(str, shape))}) "
                f"in [0, 1] or uint8 (N, {shape[1]}, {shape[2]}, {shape[0]})"
            )
        check_range(tensor)
        tensor = tensor.to(self.network.device)  # pixels as bytes, where they are bytes
        floats = tensor.to(torch.float32, memory_format=torch.contiguous_format)
        return floats.div_(255) if tensor.dtype == torch.uint8 else floats

    def reset(self) -> None:
        """Go back to the network that was shipped: weights, statistics, momentum, window and counters."""
        with self._turn:
            self.network.load_state_dict(self._start)
            self._attach(self._adapter())

    @property
    def learnt(self) -> object:
        """A value that changes when something was learnt: an update, a new average, or images of a young one."""
        adapter = self.adapter
        young = 0 if adapter.stream.settled else adapter.steps
        return adapter.updates, adapter.stream.changes, young

    def contents(self) -> Contents:
        """What was learnt, as a copy of one moment between two steps: weights, statistics and what they are averages
        of, momentum and counters; not the window of recent small batches."""
        with self._turn:
            tensors = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
            tensors |= self.adapter.optimizer_tensors()
            tensors |= {f"stream.{name}": tensor for name, tensor in self.adapter.stream.tensors().items()}
            arrays = {name: tensor.detach().cpu().numpy().copy() for name, tensor in tensors.items()}
            return Contents(arrays, {"bundle": self.bundle.identity, "counters": self.adapter.counters()})

    def restore(self, contents: Contents) -> None:
        """Go on from `contents`.

        Raises `BundleError` where they belong to another bundle, `ValueError` where they do not fit this network; the
        runtime is then as it was.
        """
        if contents.info.get("bundle") != self.bundle.identity:
            raise BundleError("the state belongs to another bundle; load it with the bundle that it was saved with")
        counters = contents.info.get("counters")
        if not isinstance(counters, dict) or not all(type(n) is int and 0 <= n < 1 << 62 for n in counters.values()):
            raise ValueError("its counters are no numbers")
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in contents.arrays.items()}
        for name, tensor in tensors.items():
            if not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"{name!r} holds values that are not finite")
            if tensor.is_floating_point() and tensor.numel() and float(tensor.abs().max()) > _LARGEST:
                raise ValueError(f"{name!r} holds numbers beyond any that a network learns")
            if name.endswith("running_var") and bool((tensor < 0).any()):
                raise ValueError(f"{name!r} holds a variance below 0")
        network = {k.removeprefix("network."): t for k, t in tensors.items() if k.startswith("network.")}
        stream = {k.removeprefix("stream."): t for k, t in tensors.items() if k.startswith("stream.")}
        optimizer = {k: t for k, t in tensors.items() if not k.startswith(("network.", "stream."))}
        with self._turn:
            adapter = self._adapter()
            adapter.stream.restore(stream)
            adapter.restore(optimizer, counters)
            self.network.load_state_dict(network)
            self._attach(adapter)

    def save_state(self, path: str | os.PathLike[str]) -> None:
        """Write `contents` to a file, atomically: a full disk or a crash leaves the file that was there.

        `edgetta.state_files.StateFile` keeps the saves before it, too. Raises `StorageError`.
        """
        atomic_write_bytes(path, encode(self.contents()))

    def load_state(self, path: str | os.PathLike[str]) -> None:
        """Restore `save_state`. Raises `BundleError` when the file is damaged, does not fit, or belongs to another
        bundle; the runtime is then as it was.
        """
        try:
            self.restore(read(Path(path)))
        except StateError as error:
            raise BundleError(f"{error}; delete it and start from the bundle") from error
        except ValueError as error:
            raise BundleError(f"{path}: {error}; delete it and start from the bundle") from error

    def _keeper(self, gradient: Gradient) -> Keeper:
        plan = self.plan
        if plan is None:
            memory = self.network.memory
            unlimited = Choice(self.engine.name, 1 << 20, "", gradient, memory.storage, memory.slice)
            return Keeper(self.adapter, ladder_without_costs(unlimited))
        return Keeper(self.adapter, plan.ladder, needs=plan.at, budget=plan.budget, room=RoomMeter().read)

    def _rehearse(self, plan: Plan) -> None:
        """Take what a first step takes once, and see on a small batch whether this machine is as the plan has it."""
        count = max(1, plan.choice.batch // 8)
        images = torch.rand(count, *self.bundle.model.input_shape, generator=torch.Generator().manual_seed(0))
        try:
            # Every image counts, so that no part of the backward is left out.
            self.keeper.attach(Adapter(self.network, replace(self.config, entropy_margin=1.0)))
            self.keeper.rehearse(images)
        finally:
            self.reset()

    def _adapter(self) -> Adapter:
        return Adapter(self.network, self.config, self.bundle.rate_law, self._shipped, self._statistics)

    def _attach(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self.keeper.attach(adapter)


def _processor_engine(bundle: Bundle, engine_cache: str | os.PathLike[str] | None) -> str:
    """What "auto" means where a budget is to be kept: any measured engine that is installed, but none of a GPU."""
    fastest = engine_name("auto", bundle, Path(engine_cache) if engine_cache else None)
    if fastest not in processor_engines():
        raise UsageError(
            f"a budget can be kept on the processor's engines alone, and the fastest here is {fastest}; "
            f"name one of {', '.join(processor_engines())}, or leave the budget out"
        )
    return "auto" if "onnxruntime" in processor_engines() else "torch"
