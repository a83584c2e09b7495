"""A stand-in for onnxruntime-gpu on a machine without a GPU: sessions run on the processor, on memory called "cuda".

The providers asked for are written down with their options, and every bound tensor is checked to be where it is said
to be. What ONNX Runtime does there is real, so that wrong bindings show in the numbers.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import onnxruntime
import pytest
import torch

from edgetta.engines import onnxruntime_gpu
from edgetta.engines.tensorrt import library

STREAM = 77
AVAILABLE = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]


class Double(ModuleType):
    """The module. `sessions` holds what was asked for; `started` names the providers that start."""

    def __init__(self) -> None:
        super().__init__("onnxruntime")
        self.__spec__ = onnxruntime.__spec__
        self.__version__ = "1.20.1"
        self.available = list(AVAILABLE)
        self.started = list(AVAILABLE)
        self.sessions: list[list[Any]] = []
        self.runs: list[str] = []
        self.on_stream = False

    def __getattr__(self, name: str) -> Any:
        return getattr(onnxruntime, name)

    def get_available_providers(self) -> list[str]:
        return self.available

    def InferenceSession(self, model: bytes, options: Any, providers: list[Any], **settings: Any) -> Session:
        if providers == ["CPUExecutionProvider"]:
            session = onnxruntime.InferenceSession(model, options, providers=providers, **settings)
            return session  # type: ignore[no-any-return]
        return Session(self, model, options, providers)


class Session:
    def __init__(self, double: Double, model: bytes, options: Any, providers: list[Any]) -> None:
        assert double.on_stream, "a session is bound to the stream on which it is made"
        double.sessions.append(providers)
        self._double = double
        self._providers = [p if isinstance(p, str) else p[0] for p in providers]
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def get_providers(self) -> list[str]:
        return [name for name in self._providers if name in self._double.started]

    def get_inputs(self) -> Any:
        return self._session.get_inputs()

    def get_outputs(self) -> Any:
        return self._session.get_outputs()

    def io_binding(self) -> Binding:
        return Binding(self._session.io_binding())

    def run_with_iobinding(self, binding: Binding, options: Any) -> None:
        assert self._double.on_stream
        assert set(binding.bound) == {entry.name for entry in (*self.get_inputs(), *self.get_outputs())}
        self._double.runs.append(options.get_run_config_entry("disable_synchronize_execution_providers"))
        self._session.run_with_iobinding(binding.real)


class Binding:
    def __init__(self, real: Any) -> None:
        self.real = real
        self.bound: list[str] = []

    def bind_input(self, name: str, device: str, number: int, kind: Any, shape: Any, pointer: int) -> None:
        assert (device, number) == ("cuda", 0)
        self.bound.append(name)
        self.real.bind_input(name, "cpu", 0, kind, shape, pointer)

    def bind_output(self, name: str, device: str, number: int, kind: Any, shape: Any, pointer: int) -> None:
        assert (device, number) == ("cuda", 0)
        self.bound.append(name)
        self.real.bind_output(name, "cpu", 0, kind, shape, pointer)


def install(monkeypatch: pytest.MonkeyPatch) -> Double:
    """Make `import onnxruntime` give the double, on a GPU that is the processor."""
    double = Double()

    @contextlib.contextmanager
    def stream(device: torch.device) -> Iterator[int]:
        double.on_stream = True
        yield STREAM
        double.on_stream = False

    monkeypatch.setitem(sys.modules, "onnxruntime", double)
    monkeypatch.setattr(onnxruntime_gpu, "engine_stream", stream)
    for module in (onnxruntime_gpu, library):
        monkeypatch.setattr(module, "gpu_trouble", lambda: "")
    monkeypatch.setattr(library, "find_gpu", lambda: ("NVIDIA Orin", (8, 7), "cpu"))
    return double
