"""Find TensorRT, and say in one line why it cannot be used here and what to do about it.

On a Jetson TensorRT comes with JetPack. TensorRT-RTX, its sibling for desktop GPUs, has the same Python interface
and builds engines without a GPU, so it stands in where `tensorrt` itself is absent.
"""

from __future__ import annotations

import logging
import re
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch

from edgetta.errors import MissingDependencyError, one_line

PACKAGES = ("tensorrt", "tensorrt_rtx")
OLDEST = (8, 5)
"""The first version with `execute_async_v3`; JetPack 5.1 has it."""

_INSTALL = "on a Jetson: sudo apt install nvidia-jetpack, and a virtual environment with --system-site-packages"
_OTHERWISE = "until then use --engine onnxruntime or --engine torch"
_log = logging.getLogger("edgetta.tensorrt")
_messages: dict[str, Any] = {}


@dataclass(frozen=True)
class Target:
    """What an engine is bound to: it runs with this very TensorRT, on this very kind of GPU."""

    package: str  # "tensorrt" or "tensorrt_rtx"
    version: str  # as the package gives it
    gpu: str  # its name
    capability: tuple[int, int]
    device: str = "cuda"  # as torch names it

    @property
    def slug(self) -> str:
        """For file names: `trt10.3.0.orin-sm87`."""
        name = re.sub(r"[^a-z0-9]+", "-", self.gpu.lower().replace("nvidia", "")).strip("-")
        library = "trt" if self.package == "tensorrt" else "rtx"
        return f"{library}{self.version}.{name or 'gpu'}-sm{self.capability[0]}{self.capability[1]}"


def import_tensorrt() -> Any:
    """The `tensorrt` module, else `tensorrt_rtx`. Raises `MissingDependencyError` where neither can be used."""
    trouble = ""
    for name in PACKAGES:
        try:
            module = __import__(name)
        except ModuleNotFoundError:
            continue
        except Exception as error:  # a binary that does not fit this machine fails in many ways
            trouble = trouble or f"{name} is installed but cannot be imported ({one_line(error)}); reinstall it"
            continue
        if name == "tensorrt" and version_of(module) < OLDEST:
            trouble = f"TensorRT {module.__version__} is too old; edgetta needs 8.5 (JetPack 5.1) or newer"
            continue
        return module
    raise MissingDependencyError(f"{trouble or f'TensorRT is not installed; {_INSTALL}'}; {_OTHERWISE}")


def version_of(trt: Any) -> tuple[int, ...]:
    """The version as numbers, (10, 3, 0)."""
    return tuple(int(part) for part in re.findall(r"\d+", str(trt.__version__).split("+")[0])[:4])


def is_rtx(trt: Any) -> bool:
    """Whether it is TensorRT-RTX, which numbers its versions anew."""
    return bool(trt.__name__ == "tensorrt_rtx")


def find_target() -> Target:
    """The TensorRT and the GPU that are here. Raises `MissingDependencyError` where one is missing or unusable."""
    trt = import_tensorrt()
    trouble = gpu_trouble()
    if trouble:
        raise MissingDependencyError(f"TensorRT needs an NVIDIA GPU: {trouble}; {_OTHERWISE}")
    return Target(trt.__name__, str(trt.__version__), *find_gpu())


def find_gpu() -> tuple[str, tuple[int, int], str]:
    """Name and compute capability of torch's current GPU, and what torch calls it."""
    number = torch.cuda.current_device()
    return torch.cuda.get_device_name(number), torch.cuda.get_device_capability(number), f"cuda:{number}"


def tensorrt_trouble() -> str:
    """Why TensorRT cannot be used here, with the remedy; "" where it can."""
    try:
        find_target()
    except MissingDependencyError as error:
        return str(error)
    return ""


def gpu_trouble() -> str:
    """Why torch cannot use a GPU here, with the remedy; "" where it can."""
    if torch.cuda.is_available():
        return ""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA; install a build for this machine's CUDA"
    try:
        torch.cuda.init()
    except Exception as error:
        said = one_line(error)
        if "driver" in said and "old" in said:
            return (
                f"the NVIDIA driver is too old for this torch, which is built for CUDA {torch.version.cuda}; update "
                "the driver (on a Jetson JetPack), or install a torch for an older CUDA"
            )
        if "no NVIDIA driver" in said.replace("Found ", ""):
            return "there is no NVIDIA driver; install one, or hide nothing from this container (--gpus all)"
        return f"{said.rstrip('.')}; check the driver with nvidia-smi"
    return "torch finds none; check the driver with nvidia-smi, and CUDA_VISIBLE_DEVICES"


def messages(trt: Any) -> Any:
    """The one logger of TensorRT in this process. Everything that TensorRT makes needs it for as long as it lives."""
    name = str(trt.__name__)
    if name not in _messages:
        _messages[name] = _message_class(trt)()
    return _messages[name]


def _message_class(trt: Any) -> type:
    class Messages(trt.ILogger):  # type: ignore[misc, name-defined]
        """Passes on what TensorRT says to Python's logging, and remembers errors: calls that fail return None."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: deque[str] = deque(maxlen=50)

        def log(self, severity: Any, message: str) -> None:
            level = str(severity).rsplit(".", 1)[-1]
            if level in ("INTERNAL_ERROR", "ERROR"):
                self.errors.append(message)
                _log.debug("%s", message)
            elif level in ("WARNING", "INFO"):
                _log.debug("%s", message)

        def last(self) -> str:
            """The last errors since `clear`, in one line."""
            return one_line(RuntimeError("; ".join(dict.fromkeys(self.errors)))) if self.errors else "no reason given"

        def clear(self) -> None:
            self.errors.clear()

    return Messages
