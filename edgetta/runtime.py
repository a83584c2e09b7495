"""The runtime: a bundle on an engine, adapting to a stream. What `edgetta.load` returns."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgetta.adaptation.adapter import Adapter, StepResult
from edgetta.adaptation.config import AdaptConfig, BatchNorm
from edgetta.adaptation.state import restored_state
from edgetta.adaptation.step_plan import KEEP, StepPlan
from edgetta.bundle import Bundle, engine_name, open_engine, processor_engines, read_bundle, self_test
from edgetta.errors import BundleError, UsageError
from edgetta.input_range import check_range
from edgetta.memory.allocator import return_freed_memory
from edgetta.memory.keep import Keeper, ladder_without_costs, new_images, rehearsing
from edgetta.memory.kernel_cache import limit_kernel_cache
from edgetta.memory.plan import Plan, Wishes, plan_step
from edgetta.memory.room import RoomMeter
from edgetta.memory.sizes import parse_size
from edgetta.state_files.contents import Contents, StateError, encode, read
from edgetta.storage import atomic_write_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from edgetta.bundle.tensorrt_engines import TensorRTConfig

    Array = NDArray[Any]


def load(
    bundle: str | os.PathLike[str],
    engine: str = "auto",
    *,
    config: AdaptConfig | None = None,
    batch_norm: BatchNorm | None = None,
    threads: int = 0,
    check: bool = True,
    memory: StepPlan | None = None,
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
    batch_norm    "stream", "batch" or "source" (as shipped), in place of the configured one
    threads       per engine; 0: as many as there are cores to use
    check         run the bundle's self-test on this engine
    memory        what a step uses of memory; everything when None, or what a budget leaves
    tensorrt      settings of the engine "tensorrt"; those of the last `edgetta build` when None. Engines that are
                  missing are built, which takes minutes
    engine_cache  folder of TensorRT's engines; `edgetta/engines` in the user's cache folder when None
    budget        bytes, or a size such as "256MiB", that steps may take above the loaded model. They are planned for
                  it (`Runtime.plan`), measured, and kept in it (`Runtime.keeper`); None takes what it takes
    batch         with a budget: images that one call brings at most; more are split
    Raises `BundleError` when the bundle is damaged, unsafe, of another version, or fails its self-test here,
    `BudgetError` for a budget that is too small.
    """
    return Runtime(
        read_bundle(Path(bundle)),
        engine,
        config,
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

    Images are uint8 (N, H, W, C), float (N, C, H, W) in [0, 1], or one such image without N. Numpy arrays give numpy
    arrays, torch tensors give torch tensors. Threads may share a runtime: what one of them asks for is done before the
    next one's turn.
    """

    def __init__(
        self,
        bundle: Bundle,
        engine: str = "auto",
        config: AdaptConfig | None = None,
        batch_norm: BatchNorm | None = None,
        threads: int = 0,
        check: bool = True,
        memory: StepPlan | None = None,
        tensorrt: TensorRTConfig | None = None,
        engine_cache: str | os.PathLike[str] | None = None,
        budget: int | str | None = None,
        batch: int = 64,
    ) -> None:
        self._turn = threading.RLock()
        self.bundle = bundle
        self.config = config or bundle.config
        if batch_norm is not None:
            self.config = replace(self.config, batch_norm=batch_norm)
        self.plan: Plan | None = None
        if budget is not None:
            return_freed_memory()
            wishes = Wishes(
                batch=batch,
                engine=engine if engine != "auto" else _processor_engine(bundle, engine_cache),
                memory=memory,
                config=self.config,
            )
            self.plan = plan_step(bundle, parse_size(budget), wishes)
            engine = self.plan.choice.engine
            if engine == "torch":
                limit_kernel_cache()
        cache = Path(engine_cache) if engine_cache else None
        self.engine = open_engine(bundle, engine, threads, tensorrt, cache)
        if check:
            self_test(bundle, self.engine, gradients=self.config.when != "off")
        self.adapter = Adapter(self.engine, self.config, bundle.content, bundle.rate_law)
        self.keeper = self._keeper(memory)
        if self.plan is not None:
            self._rehearse(self.plan)

    def __call__(self, images: Array | Tensor) -> Any:
        return self.step(images).logits

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.bundle.input_shape))
        return (
            f"<edgetta.Runtime {self.bundle.name!r} on {self.engine.name}: images {shape}, "
            f"{self.bundle.class_count} classes, {self.config.when}, {self.adapter.state.steps:,} batches seen>"
        )

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the classes in the order of the logits; None where the bundle has none."""
        return self.bundle.classes

    def step(self, images: Array | Tensor) -> StepResult:
        """Predict and adapt; see `StepResult`.

        Where memory runs out, in any engine, the step is undone and the images are predicted; see `keeper.record`.
        Raises `UsageError` for images of another shape or type.
        """
        with self._turn:
            result = self.keeper.step(self.as_input(images))
        if isinstance(images, np.ndarray):
            return result
        return replace(result, logits=_as_torch(result.logits), entropy=_as_torch(result.entropy))

    def source(self, images: Array | Tensor) -> Any:
        """Logits (N, classes) of the network as it was shipped, with the statistics of its training."""
        programs = self.engine.programs
        with self._turn:
            logits = self.engine.predict(self.as_input(images), programs.shipped, programs.source)
        return logits if isinstance(images, np.ndarray) else _as_torch(logits)

    def as_input(self, images: Array | Tensor) -> Array:
        """Images as programs take them: float32 (N, C, H, W) in [0, 1], contiguous, the runtime's own to keep."""
        array = np.asarray(images if isinstance(images, np.ndarray) else images.detach().cpu().numpy())
        channels, height, width = shape = self.bundle.input_shape
        if array.dtype != np.uint8 and not np.issubdtype(array.dtype, np.floating):
            raise UsageError(f"images are {images.dtype}; give uint8 in [0, 255], or floats in [0, 1]")
        if array.ndim == 3:
            array = array[None]
        if array.dtype == np.uint8 and array.ndim == 4 and array.shape[3] == channels:
            array = array.transpose(0, 3, 1, 2)
        if array.ndim != 4 or tuple(array.shape[1:]) != shape or not len(array):
            raise UsageError(
                f"images have shape {tuple(images.shape)}; this bundle takes float (N, {', '.join(map(str, shape))}) "
                f"in [0, 1] or uint8 (N, {height}, {width}, {channels})"
            )
        check_range(array)
        if array.dtype == np.uint8:
            return np.ascontiguousarray(array) * np.float32(1 / 255)
        return np.ascontiguousarray(array, np.float32)

    def reset(self) -> None:
        """Go back to the network that was shipped: parameters, statistics, momentum, window and counters."""
        with self._turn:
            self.adapter.state = self.adapter.begin()

    @property
    def learnt(self) -> object:
        """A value that changes when something was learnt: an update, a new average, or images of a young one."""
        adapter = self.adapter
        young = 0 if adapter.settled else adapter.state.steps
        return adapter.state.updates, adapter.state.stream.changes, young

    def contents(self) -> Contents:
        """All that was learnt, of one moment between two steps."""
        with self._turn:
            state = self.adapter.state  # never written in place
        info = {"bundle": self.bundle.identity, "counters": state.counters()}
        return Contents({name: np.ascontiguousarray(array) for name, array in state.arrays().items()}, info)

    def restore(self, contents: Contents) -> None:
        """Go on from `contents`.

        Raises `BundleError` where they belong to another bundle, `ValueError` where they do not fit this network; the
        runtime is then as it was.
        """
        if contents.info.get("bundle") != self.bundle.identity:
            raise BundleError("the state belongs to another bundle; load it with the bundle that it was saved with")
        with self._turn:
            self.adapter.state = restored_state(contents.arrays, self.adapter.state, self.adapter.normaliser)

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

    def _keeper(self, memory: StepPlan | None) -> Keeper:
        plan = self.plan
        if plan is None:
            adapts = self.config.when != "off"
            return Keeper(self.adapter, ladder_without_costs(self.engine.name, memory or KEEP, adapts))
        return Keeper(self.adapter, plan.ladder, needs=plan.at, budget=plan.budget, room=RoomMeter().read)

    def _rehearse(self, plan: Plan) -> None:
        """Take what a first step takes once, and see on a small batch whether this machine is as the plan has it."""
        learnt = plan.load.learnt(plan.choice, plan.choice.batch)
        images = new_images(learnt if plan.window else max(2, plan.choice.batch // 8), self.bundle.input_shape)
        adapter = Adapter(self.engine, rehearsing(self.config), self.bundle.content, self.bundle.rate_law)
        self.keeper.rehearse(adapter, images)


def _as_torch(array: Array) -> Any:
    import torch

    return torch.from_numpy(array)


def _processor_engine(bundle: Bundle, engine_cache: str | os.PathLike[str] | None) -> str:
    """What "auto" means where a budget is to be kept: any measured engine that is installed, but none of a GPU."""
    fastest = engine_name("auto", bundle, Path(engine_cache) if engine_cache else None)
    if fastest not in processor_engines():
        raise UsageError(
            f"a budget can be kept on the processor's engines alone, and the fastest here is {fastest}; "
            f"name one of {', '.join(processor_engines())}, or leave the budget out"
        )
    return "auto" if "onnxruntime" in processor_engines() else "torch"
