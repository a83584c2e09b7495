"""What means that memory ran out, in the words of those who say it."""

from __future__ import annotations

import errno

import numpy as np
import pytest
import torch

from edgetta.memory.allocation_failure import is_allocation_failure


class Fail(Exception):
    """As ONNX Runtime's own kinds, which derive from nothing in particular."""

    __module__ = "onnxruntime.capi.onnxruntime_pybind11_state"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 7.44 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8388608 bytes."),
        RuntimeError("Error in execution: std::bad_alloc"),
        RuntimeError("bfc_arena.cc:360 void* Failed to allocate memory for requested buffer of size 786432"),
        Fail("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : ... Status Message: bad allocation"),
        RuntimeError("NvMapMemAllocInternalTagged: 1075072515 error 12"),
        RuntimeError("NVML_SUCCESS == r INTERNAL ASSERT FAILED at CUDACachingAllocator.cpp:838, please report a bug"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        torch.OutOfMemoryError("HIP out of memory"),
    ],
)
def test_memory_ran_out(error: BaseException) -> None:
    assert is_allocation_failure(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("shapes differ"),
        ValueError("out of memory"),
        OSError(errno.ENOENT, "Cannot allocate memory"),
        Fail("[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Got invalid dimensions"),
        KeyboardInterrupt(),
    ],
)
def test_something_else(error: BaseException) -> None:
    assert not is_allocation_failure(error)


def test_what_torch_and_numpy_really_raise() -> None:
    with pytest.raises(RuntimeError) as by_torch:
        torch.empty(1 << 60, dtype=torch.uint8)
    with pytest.raises(MemoryError) as by_numpy:
        np.empty(1 << 60, np.uint8)
    assert is_allocation_failure(by_torch.value) and is_allocation_failure(by_numpy.value)
