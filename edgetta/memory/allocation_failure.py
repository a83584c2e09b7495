"""Which errors mean that memory ran out: Python, torch, ONNX Runtime and CUDA each have their own words."""

from __future__ import annotations

import errno

_WORDS = (
    "out of memory",  # CUDA, TensorRT, oneDNN
    "can't allocate memory",  # torch on the CPU
    "not enough memory",  # the same on other systems
    "Cannot allocate memory",  # the system's own, quoted by many
    "Failed to allocate memory",  # ONNX Runtime's arena
    "bad allocation",
    "bad_alloc",  # C++ through any of them
    "NvMapMemAlloc",  # a Jetson's driver, where other GPUs say "out of memory"
    "NVML_SUCCESS == r",  # the same in torch's allocator
)
_ANYWHERE = ("onnxruntime", "torch", "tensorrt")  # whose own kinds of exception are not RuntimeErrors


def is_allocation_failure(error: BaseException) -> bool:
    """Whether an exception of Python, torch or an engine means that memory ran out."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    foreign = type(error).__module__.startswith(_ANYWHERE)
    return (foreign or isinstance(error, RuntimeError)) and any(word in str(error) for word in _WORDS)
