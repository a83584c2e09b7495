"""A stand-in for `tensorrt` that has, version by version, the names that were recorded from the real bindings.

`recorded_api.json` lists the members of the classes in use, read from the Python bindings of TensorRT 8.6.1 to 11.4.0
(and, for 8.5, from their public source). What a version does not have raises AttributeError here as it does there.

Engines hold their ONNX model and run it in ONNX Runtime, on the memory whose addresses were set: wrong addresses,
shapes and types, and scratch memory that overlaps something, show in the numbers.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import functools
import gc
import importlib.machinery
import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from edgetta.engines.tensorrt import library, program

RECORDED: dict[str, Any] = json.loads((Path(__file__).parent / "recorded_api.json").read_text())
VERSIONS = tuple(RECORDED)
STREAM = 7
"""The handle of the stream on which engines must run."""


class Double(ModuleType):
    """The module. `calls` lists (class, member, arguments) of what was called, `fail` the members that shall fail."""

    def __init__(self, version: str) -> None:
        super().__init__("tensorrt")
        self.__spec__ = importlib.machinery.ModuleSpec("tensorrt", None)  # torch looks for it
        self.__version__ = version if version != "8.5" else "8.5.3.1"
        self.calls: list[tuple[str, str, tuple[Any, ...]]] = []
        self.fail: set[str] = set()
        self.build_errors: list[str] = []
        self.builds = 0
        self.disturb: Callable[[str, np.ndarray[Any, Any]], np.ndarray[Any, Any]] = lambda name, array: array
        self.capture: Callable[[Callable[[], None]], None] | None = None  # while a CUDA graph is recorded
        self.watch_lifetimes = False  # look for every tensor that an engine works on, which takes its time
        self.running_half = False  # whether the engine that runs computes in float16
        api = RECORDED[version]
        for name, members in api["enums"].items():
            setattr(self, name, enum.IntEnum(name, {member: i for i, member in enumerate(members)}))
        for base in (ILogger, IProgressMonitor, Builder, OnnxParser, Runtime):
            if base.__name__ in api["classes"]:
                setattr(self, base.__name__, limited(base, self, api["classes"][base.__name__]))
        self.api = api["classes"]

    @property
    def major(self) -> int:
        return int(self.__version__.split(".")[0])

    def make(self, base: type, *arguments: Any) -> Any:
        return limited(base, self, self.api[base.__name__])(*arguments)


def limited(base: type, double: Double, members: list[str]) -> type:
    """`base` with the members that the version has, and no other."""
    allowed = frozenset(members)

    class Limited(base):  # type: ignore[misc, valid-type]
        trt = double

        def __getattribute__(self, name: str) -> Any:
            if not name.startswith("_") and name != "trt" and name not in allowed and hasattr(base, name):
                raise AttributeError(f"TensorRT {double.__version__}: {base.__name__} has no {name!r}")
            found = super().__getattribute__(name)
            if callable(found) and name in allowed and base not in (ILogger, IProgressMonitor):
                return functools.partial(_called, double, base.__name__, name, found)
            return found

        def __setattr__(self, name: str, value: Any) -> None:
            if not name.startswith("_") and name not in allowed and base not in (ILogger, IProgressMonitor):
                raise AttributeError(f"TensorRT {double.__version__}: {base.__name__} has no {name!r}")
            if name in allowed:
                double.calls.append((base.__name__, name, (value,)))
            super().__setattr__(name, value)

    Limited.__name__ = base.__name__
    return Limited


def _called(double: Double, owner: str, name: str, call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    double.calls.append((owner, name, (*arguments, *named.values())))
    result = call(*arguments, **named)
    return False if name in double.fail and isinstance(result, bool) else None if name in double.fail else result


class ILogger:
    def __init__(self) -> None:
        pass


class IProgressMonitor:
    def __init__(self) -> None:
        pass


class Severity(enum.Enum):
    ERROR = 1
    INFO = 2


class Value:
    def __init__(self, info: onnx.ValueInfoProto, trt: Double) -> None:
        kind = info.type.tensor_type
        self.name = info.name
        self.shape = tuple(-1 if d.dim_param else d.dim_value for d in kind.shape.dim)
        names = {1: "FLOAT", 9: "BOOL", 10: "HALF"}
        self.dtype = trt.DataType[names[kind.elem_type]]


class ILayer:
    trt: Double

    def __init__(self, node: onnx.NodeProto) -> None:
        self._node = node
        self.name = f"{node.name} [made by the parser]"
        self.num_outputs = 1
        self.type = self.trt.LayerType.ELEMENTWISE

    def get_output(self, index: int) -> Any:
        kinds = self.trt.DataType
        return type("ITensor", (), {"dtype": kinds.BOOL if self._node.op_type == "Greater" else kinds.FLOAT})


class INetworkDefinition:
    trt: Double

    def __init__(self) -> None:
        self._model: Any = None
        self._layers: list[Any] = []

    @property
    def num_inputs(self) -> int:
        return len(self._model.graph.input)

    def get_input(self, index: int) -> Value:
        return Value(self._model.graph.input[index], self.trt)

    @property
    def num_layers(self) -> int:
        return len(self._layers)

    def get_layer(self, index: int) -> Any:
        return self._layers[index]


class ParserError:
    def __init__(self, text: str) -> None:
        self._text = text

    def desc(self) -> str:
        return self._text


class OnnxParser:
    trt: Double

    def __init__(self, network: Any, logger: Any) -> None:
        self._network = network
        self._errors: list[str] = []

    def parse(self, model: bytes, path: str | None = None) -> bool:
        parsed = onnx.load_from_string(model)
        assert not any(t.external_data for t in parsed.graph.initializer)
        if "parse" in self.trt.fail:
            self._errors.append("No importer registered for op: Strange")
            return True  # the caller makes False of it
        self._network._model = parsed
        self._network._layers = [self.trt.make(ILayer, node) for node in parsed.graph.node]
        return True

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        return ParserError(self._errors[index])


class IOptimizationProfile:
    def __init__(self) -> None:
        self._shapes: dict[str, list[tuple[int, ...]]] = {}

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        self._shapes[input] = [tuple(min), tuple(opt), tuple(max)]


class ITimingCache:
    def __init__(self, data: bytes) -> None:
        self._times = set(filter(None, data.split(b"|")))

    def combine(self, input_cache: Any, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self._times |= input_cache._times
        return True

    def serialize(self) -> bytes:
        return b"|".join(sorted(self._times))


class IBuilderConfig:
    trt: Double

    def __init__(self) -> None:
        self._profiles: list[Any] = []
        self._flags = {"TF32"}
        self._cache: Any = None

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        assert pool == self.trt.MemoryPoolType.WORKSPACE and isinstance(pool_size, int)

    def set_flag(self, flag: Any) -> None:
        self._flags.add(flag.name)

    def clear_flag(self, flag: Any) -> None:
        self._flags.discard(flag.name)

    def add_optimization_profile(self, profile: Any) -> int:
        self._profiles.append(profile)
        return -1 if "profile" in self.trt.fail else 0

    def create_timing_cache(self, serialized_timing_cache: bytes) -> Any:
        damaged = serialized_timing_cache.startswith(b"damaged")
        return None if damaged else self.trt.make(ITimingCache, serialized_timing_cache)

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        self._cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return self._cache

    # Settable where the version has them.
    builder_optimization_level = 3
    max_aux_streams = -1
    progress_monitor: Any = None


class Builder:
    trt: Double

    def __init__(self, logger: Any) -> None:
        if "Builder" in self.trt.fail:
            logger.log(Severity.ERROR, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self._logger = logger

    def create_network(self, flags: int = 0) -> Any:
        names = [flag.name for flag in self.trt.NetworkDefinitionCreationFlag if flags >> int(flag) & 1]
        wanted = "EXPLICIT_BATCH" if self.trt.major < 10 else "STRONGLY_TYPED"
        assert names == [wanted], names
        return self.trt.make(INetworkDefinition)

    def create_builder_config(self) -> Any:
        return self.trt.make(IBuilderConfig)

    def create_optimization_profile(self) -> Any:
        return self.trt.make(IOptimizationProfile)

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        trt = self.trt
        trt.builds += 1
        monitor = vars(config).get("progress_monitor")
        if monitor is not None:
            monitor.phase_start("Building", None, 2)
            for step in range(2):
                if not monitor.step_complete("Building", step):
                    return None
            monitor.phase_finish("Building")
        if trt.build_errors:
            self._logger.log(Severity.ERROR, trt.build_errors.pop(0))
            return None
        if config._cache is not None:
            config._cache._times.add(f"time {trt.builds}".encode())
        singles = [layer.name for layer in network._layers if "precision" in vars(layer)]
        return pickle.dumps(
            {
                "version": trt.__version__,
                "onnx": network._model.SerializeToString(),
                "profile": config._profiles[0]._shapes,
                "flags": sorted(config._flags),
                "single": singles,
            }
        )


class Runtime:
    trt: Double

    def __init__(self, logger: Any) -> None:
        if "Runtime" in self.trt.fail:
            logger.log(Severity.ERROR, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self._logger = logger

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Any:
        try:
            content = pickle.loads(serialized_engine)
        except Exception:
            self._logger.log(Severity.ERROR, "Serialization assertion magicTagRead == kMAGIC_TAG failed")
            return None
        if content["version"] != self.trt.__version__:
            self._logger.log(Severity.ERROR, "Version tag does not match")
            return None
        return self.trt.make(ICudaEngine, content)


class ICudaEngine:
    trt: Double

    def __init__(self, content: dict[str, Any]) -> None:
        self._content = content
        model = onnx.load_from_string(content["onnx"])
        self._values = {v.name: Value(v, self.trt) for v in (*model.graph.input, *model.graph.output)}
        self._inputs = [v.name for v in model.graph.input]
        types = {tensor.data_type for tensor in model.graph.initializer}
        self._half = onnx.TensorProto.FLOAT16 in types or "FP16" in content["flags"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        self._session = onnxruntime.InferenceSession(content["onnx"], options, providers=["CPUExecutionProvider"])

    @property
    def num_io_tensors(self) -> int:
        return len(self._values)

    def get_tensor_name(self, index: int) -> str:
        return list(self._values)[index]

    def get_tensor_mode(self, name: str) -> Any:
        return self.trt.TensorIOMode.INPUT if name in self._inputs else self.trt.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return self._values[name].dtype

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        fixed = [self._values[name].shape] * 3
        return self._content["profile"].get(name, fixed)

    @property
    def device_memory_size(self) -> int:
        return 5000

    @property
    def device_memory_size_v2(self) -> int:
        return 5000

    def create_execution_context(self, strategy: Any = None) -> Any:
        assert strategy == self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        return self.trt.make(IExecutionContext, self)

    def create_execution_context_without_device_memory(self) -> Any:
        return self.trt.make(IExecutionContext, self)


class IExecutionContext:
    trt: Double

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._needs: int | None = None
        self._memory = (0, 0)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self._engine.get_tensor_profile_shape(name, 0)
        assert all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True)), (name, shape)
        self._shapes[name] = tuple(shape)
        self._needs = None
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return True

    def update_device_memory_size_for_shapes(self) -> int:
        assert set(self._shapes) == set(self._engine._inputs)
        self._needs = 3000
        return self._needs

    def set_device_memory(self, memory: int, size: int) -> None:
        self._memory = (memory, size)

    def _set_memory(self, memory: int) -> None:
        self._memory = (memory, 5000 if self._needs is None else self._needs)

    device_memory = property(None, _set_memory)

    def execute_async_v3(self, stream_handle: int) -> bool:
        engine = self._engine
        assert stream_handle == STREAM, "an engine must not run on the default stream"
        assert set(self._addresses) == set(engine._values), "an address is missing"
        memory, size = self._memory
        assert memory % 256 == 0
        assert memory > 0
        assert size >= (self._needs if self._needs is not None else 5000)
        if self.trt.watch_lifetimes:
            alive = {t.data_ptr() for t in gc.get_objects() if type(t) is torch.Tensor}
            assert set(self._addresses.values()) <= alive, "a tensor was freed before its engine was enqueued"
        addresses, shapes = dict(self._addresses), dict(self._shapes)

        def run() -> None:
            feeds = {}
            self.trt.running_half = engine._half
            for entry in engine._session.get_inputs():
                feeds[entry.name] = self._array(addresses, entry.name, shapes[entry.name]).copy()
            for entry, array in zip(engine._session.get_outputs(), engine._session.run(None, feeds), strict=True):
                self._array(addresses, entry.name, array.shape)[...] = self.trt.disturb(entry.name, array)

        if self.trt.capture is not None:
            self.trt.capture(run)  # the scratch memory is then the recording's own, which is not played here
        else:
            ctypes.memset(memory, 0xA5, size)  # nothing else may lie there
            run()
        return True

    def _array(self, addresses: dict[str, int], name: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        kind = self._engine._values[name].dtype.name
        dtype = np.dtype({"FLOAT": np.float32, "BOOL": np.bool_, "HALF": np.float16}[kind])
        count = int(np.prod(shape))
        buffer = (ctypes.c_char * (count * dtype.itemsize)).from_address(addresses[name])
        return np.frombuffer(buffer, dtype, count).reshape(shape)


def install(monkeypatch: pytest.MonkeyPatch, version: str) -> Double:
    """Make `import tensorrt` give the double, on a GPU that is the processor."""
    double = Double(version)
    monkeypatch.setitem(sys.modules, "tensorrt", double)
    monkeypatch.setattr(library, "_messages", {})
    monkeypatch.setattr(program, "_runtimes", {})

    @contextlib.contextmanager
    def stream(device: torch.device) -> Any:
        yield STREAM

    monkeypatch.setattr(program, "engine_stream", stream)
    monkeypatch.setattr(library, "gpu_trouble", lambda: "")
    monkeypatch.setattr(library, "find_gpu", lambda: ("NVIDIA Orin", (8, 7), "cpu"))
    return double
