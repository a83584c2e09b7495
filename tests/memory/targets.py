"""Functions that the tests of this folder call in other processes."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from edgetta.errors import UsageError


def add(a: int, b: int) -> dict[str, int]:
    print("noise on the standard output")
    return {"sum": a + b, "process": os.getpid()}


def kept_of_freed_blocks() -> int:
    """Bytes that stay resident of 16 blocks of 1 MiB, freed, with a small one behind them."""
    from edgetta.memory.peak import resident

    np.ones(30 << 20, np.uint8)  # by default glibc maps nothing smaller any more once this was freed
    before = resident()
    blocks = [np.ones(1 << 20, np.uint8) for _ in range(16)]
    last = np.ones(64 << 10, np.uint8)
    del blocks
    kept = resident() - before
    return kept + 0 * len(last)


def kept_of_freed_step(switch: str) -> int:
    """Bytes that stay resident of 8 blocks of 24 MiB, freed, nothing behind them, after `switch` of the allocator."""
    from edgetta.memory import allocator
    from edgetta.memory.peak import resident

    assert getattr(allocator, switch)()
    before = resident()
    blocks = [np.ones(24 << 20, np.uint8) for _ in range(8)]
    del blocks
    return resident() - before


def same_with_an_arena() -> list[bool]:
    """Before and after each switch: is freed memory kept, and does a session give what it gave?"""
    from edgetta.engines.onnxruntime import OnnxRuntimeEngine
    from edgetta.memory.allocator import keep_freed_memory, keeps_freed_memory, return_freed_memory
    from tests.memory import small_engine

    programs, images = small_engine.programs(), small_engine.images(4)
    expected = small_engine.engine().predict(images, programs.shipped, programs.source)
    found = []
    for switch in (lambda: True, keep_freed_memory, keep_freed_memory, return_freed_memory):
        switch()
        result = OnnxRuntimeEngine(programs, 1).predict(images, programs.shipped, programs.source)
        found += [keeps_freed_memory(), bool(np.allclose(result, expected, atol=1e-4))]
    return found


def refuse() -> None:
    raise UsageError("batch 0 is none; use 1 or more")


def fail() -> None:
    raise ZeroDivisionError("nothing to divide by")


def exhaust() -> None:
    raise MemoryError


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def crashed() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def wait() -> None:
    signal.pause()


def kept_of_a_forward(images: int) -> dict[str, int]:
    """Bytes kept of a forward of the small network: as it says, as the process grows, as counted from residuals."""
    from edgetta.memory.kept_bytes import KeptBytes
    from edgetta.memory.meter import alive_bytes
    from tests.memory import small_engine

    engine, programs, shown = small_engine.engine(), small_engine.programs(), small_engine.images(images)

    def forward() -> object:
        return engine.forward(shown, programs.shipped, programs.source).residuals

    kept = engine.forward(shown, programs.shipped, programs.source).residuals.nbytes
    return {"alive": alive_bytes(forward), "kept": kept, "counted": KeptBytes.of(programs.residuals).at(images)}


def modules_of_a_planned_step(bundle: str) -> dict[str, Any]:
    """What a runtime with a budget imports, from its plan to its first steps."""
    from dataclasses import replace

    from edgetta.adaptation.config import AdaptConfig
    from edgetta.bundle import open_engine, read_bundle
    from edgetta.memory.calibration import measured_engine
    from edgetta.memory.keep import new_images
    from edgetta.runtime import Runtime

    opened = read_bundle(bundle)
    costs = measured_engine(open_engine(opened, "onnxruntime", 1), 1)
    runtime = Runtime(replace(opened, cost_model=costs), config=AdaptConfig(), budget="100MB", batch=16)
    result = runtime.step(new_images(16, opened.input_shape))
    heavy = [name for name in ("torch", "onnx", "click", "PIL") if name in sys.modules]
    return {"adapted": result.adapted, "planned": runtime.plan is not None, "heavy": heavy}


def touch(megabytes: int) -> np.ndarray:
    return np.ones(megabytes << 20, np.uint8)


def peak_of_two_arrays(sampled: bool = False) -> dict[str, int | str]:
    """48 MiB that are freed at once, then 16 that are returned; 200 earlier."""
    from edgetta.memory import peak

    def run() -> np.ndarray:
        touch(48)
        return touch(16)

    if sampled:
        peak._CLEAR_REFS = Path("/nowhere/clear_refs")
    touch(200)
    return asdict(peak.measure_peak(run))


def peaks_of_sizes(sizes: list[int], warm_up: int, repetitions: int) -> tuple[int, int]:
    """The peak of arrays of so many MiB, one in each call, and how often memory was released."""
    from edgetta.memory.peak import measure_peak

    left, released = iter(sizes), []
    found = measure_peak(
        lambda: touch(next(left)), warm_up=warm_up, repetitions=repetitions, release=lambda: released.append(1)
    )
    return found.peak, len(released)


def kept_of_convolutions(few: bool) -> int:
    """Bytes that stay resident of convolutions of sixty batch sizes, after one that does not count."""
    import torch
    import torch.nn.functional as F

    from edgetta.memory.kernel_cache import limit_kernel_cache
    from edgetta.memory.peak import give_back, resident

    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.pop(name, None)
    torch.set_num_threads(1)
    if few:
        limit_kernel_cache(64)
    weights = [torch.rand(channels, 16, 3, 3) for channels in (16, 24, 32, 40)]

    def run(count: int) -> None:
        for weight in weights:
            F.conv2d(torch.rand(count, 16, 8, 8), weight, padding=1)

    run(1)
    give_back()
    before = resident()
    for count in range(2, 62):
        run(count)
    give_back()
    return max(0, resident() - before)
