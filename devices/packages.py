"""Examine the software that edgetta stands on: does it import, is it new enough, does one small operation work."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
from pathlib import Path
from types import ModuleType
from typing import Any

from edgetta.devices.machine import covers, version_pair
from edgetta.devices.report import Check, Status

OLDEST_TORCH = (2, 3)
OLDEST_ONNXRUNTIME = (1, 18)
OLDEST_TENSORRT = (8, 5)

_ABSENT = "not installed"


def check_torch() -> Check:
    torch, trouble = _import("torch")
    if torch is None:
        remedy = "install torch: pip install torch; on a Jetson NVIDIA's wheel for its JetPack"
        return Check("torch", "problem", trouble, remedy)
    version = str(torch.__version__)
    threads = int(torch.get_num_threads())
    facts = {"version": version, "cuda": torch.version.cuda, "threads": threads}
    value = f"{version}, {threads} thread{'s' if threads != 1 else ''}"
    if version_pair(version) < OLDEST_TORCH:
        remedy = f"install torch {'.'.join(map(str, OLDEST_TORCH))} or newer"
        return Check("torch", "problem", value, remedy, facts)
    try:
        torch.zeros(1).numpy()
    except RuntimeError as error:
        # Wheels that were built against numpy 1, as the Jetson's are, import beside numpy 2 but cannot use it.
        return Check(
            "torch", "problem", f"{value}; {error}", "this torch needs an older numpy: pip install 'numpy<2'", facts
        )
    usable = usable_cores()
    if threads > usable:
        remedy = f"more threads than the {usable} usable cores slow everything down: set OMP_NUM_THREADS={usable}"
        return Check("torch", "warning", value, remedy, facts)
    return Check("torch", "ok", value, facts=facts)


def check_cuda(jetson: str | None) -> Check:
    torch, _ = _import("torch")
    if torch is None:
        return Check("cuda", "warning", "not tried: torch is not there")
    if not torch.cuda.is_available():
        gpu = jetson is not None or any(
            Path(path).exists() for path in ("/dev/nvidia0", "/proc/driver/nvidia/version")
        )
        if not gpu:
            return Check("cuda", "absent", "no GPU", facts={"available": False})
        built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is a build without CUDA"
        remedy = f"this torch {built}; install one that fits the GPU's driver (on a Jetson NVIDIA's wheel)"
        return Check("cuda", "warning", "there is a GPU that torch cannot use", remedy, {"available": False})
    capability = tuple(torch.cuda.get_device_capability(0))
    architectures = list(torch.cuda.get_arch_list())
    name = torch.cuda.get_device_name(0)
    facts = {
        "available": True,
        "device": name,
        "capability": list(capability),
        "architectures": architectures,
        "runtime": torch.version.cuda,
    }
    value = f"{name}, capability {capability[0]}.{capability[1]}, CUDA {torch.version.cuda}"
    try:
        right = float((torch.ones(4, device="cuda") * 2).sum().item()) == 8.0
        trouble = "" if right else "an addition on it gave a wrong result"
    except Exception as error:
        trouble = str(error).splitlines()[0] if str(error) else type(error).__name__
    if not trouble:
        return Check("cuda", "ok", value, facts=facts)
    if architectures and not covers(architectures, (capability[0], capability[1])):
        remedy = f"this torch is built for {' '.join(architectures)}; install one that is built for this GPU"
    else:
        remedy = "check the driver with nvidia-smi and restart; until then hide the GPU with CUDA_VISIBLE_DEVICES="
    return Check("cuda", "problem", f"{value}; {trouble}", remedy, facts)


def check_onnxruntime() -> Check:
    module, trouble = _import("onnxruntime")
    if module is None:
        remedy = "pip install 'edgetta[onnxruntime]'; until then the torch engine is used"
        return Check("onnxruntime", "warning", trouble, remedy)
    version = str(module.__version__)
    providers = list(module.get_available_providers())
    facts = {"version": version, "providers": providers}
    value = f"{version}, {' '.join(provider.removesuffix('ExecutionProvider') for provider in providers)}"
    if version_pair(version) < OLDEST_ONNXRUNTIME:
        remedy = f"install onnxruntime {'.'.join(map(str, OLDEST_ONNXRUNTIME))} or newer"
        return Check("onnxruntime", "warning", value, remedy, facts)
    if _distribution("onnxruntime") and _distribution("onnxruntime-gpu"):
        remedy = "onnxruntime and onnxruntime-gpu overwrite each other's files: uninstall both, then install one"
        return Check("onnxruntime", "warning", value, remedy, facts)
    return Check("onnxruntime", "ok", value, facts=facts)


def check_tensorrt(jetson: str | None) -> Check:
    for name in ("tensorrt", "tensorrt_rtx"):
        module, trouble = _import(name)
        if module is not None:
            version = str(module.__version__)
            facts = {"package": name, "version": version}
            label = version if name == "tensorrt" else f"{version} (TensorRT-RTX)"
            if name == "tensorrt" and version_pair(version) < OLDEST_TENSORRT:
                remedy = f"engines need {'.'.join(map(str, OLDEST_TENSORRT))} or newer: take a newer JetPack"
                return Check("tensorrt", "warning", label, remedy, facts)
            return Check("tensorrt", "ok", label, facts=facts)
        if trouble != _ABSENT:
            return Check(
                "tensorrt", "warning", f"{name}: {trouble}", "reinstall it, or uninstall it if it is not needed"
            )
    if jetson is None:
        return Check("tensorrt", "absent", _ABSENT)
    remedy = "sudo apt install nvidia-jetpack; a virtual environment sees it with --system-site-packages"
    return Check("tensorrt", "warning", _ABSENT, remedy)


def check_engines() -> Check:
    """Which engines can run here, and which one `--engine auto` takes before any `edgetta build`."""
    from edgetta.bundle.engines import engine_name, engine_troubles

    troubles = engine_troubles()
    usable = [name for name, trouble in troubles.items() if not trouble]
    facts = {"auto": engine_name("auto"), "usable": usable, "troubles": {n: t for n, t in troubles.items() if t}}
    return Check("engines", "ok", f"{', '.join(usable)}; auto takes {facts['auto']}", facts=facts)


def check_needed(module_name: str, package: str) -> Check:
    """A package without which edgetta does not run."""
    module, trouble = _import(module_name)
    if module is None:
        return Check(package, "problem", trouble, f"pip install {package}")
    version = _version(module, package)
    return Check(package, "ok", version, facts={"version": version})


def check_optional(package: str, remedy: str) -> Check:
    """A package that only one part of edgetta needs."""
    module, trouble = _import(package)
    if module is None:
        status: Status = "absent" if trouble == _ABSENT else "warning"
        return Check(package, status, trouble, remedy)
    version = _version(module, package)
    return Check(package, "ok", version, facts={"version": version})


def check_opencv() -> Check:
    module, trouble = _import("cv2")
    if module is None:
        status: Status = "absent" if trouble == _ABSENT else "warning"
        return Check("opencv", status, trouble, "only for video, cameras and streams: pip install 'edgetta[serve]'")
    information = module.getBuildInformation()
    lines = [line.split(":", 1) for line in information.splitlines() if ":" in line]
    backends = {key.strip(): value.strip().startswith("YES") for key, value in lines}
    found = {name: backends.get(name, False) for name in ("FFMPEG", "GStreamer", "v4l/v4l2")}
    value = f"{module.__version__}, {' '.join(name for name, there in found.items() if there) or 'no video back end'}"
    return Check("opencv", "ok", value, facts={"version": str(module.__version__), "backends": found})


def usable_cores() -> int:
    """Processor cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _import(name: str) -> tuple[Any, str]:
    """The module and "", or None and the reason."""
    try:
        return importlib.import_module(name), ""
    except ModuleNotFoundError as error:
        missing = error.name or name
        return None, _ABSENT if missing.split(".")[0] == name else f"cannot be imported: {missing} is not installed"
    except Exception as error:
        # A binary that does not fit raises OSError, ImportError, RuntimeError, AttributeError...
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return None, f"installed, but cannot be imported: {reason}"


def _version(module: ModuleType, package: str) -> str:
    return str(getattr(module, "__version__", None) or _distribution(package) or "unknown version")


def _distribution(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
