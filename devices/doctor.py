"""Examine the machine: what a bug report needs, what is missing, and what to do about it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from edgetta.devices import packages
from edgetta.devices.machine import (
    parse_cpuinfo,
    parse_device_tree_model,
    parse_meminfo,
    parse_memory_limit,
    parse_power_mode,
    parse_tegra_release,
)
from edgetta.devices.report import Check, Report

OLDEST_PYTHON = (3, 10)

LITTLE_MEMORY = 1 * 2**30
"""A step of WRN-40-2 at batch 64 takes 0.3 GiB, torch itself about as much."""

LITTLE_DISK = 1 * 2**30


def examine(folder: Path | None = None) -> Report:
    """Look at everything. Imports torch, onnxruntime and the like where they are installed; takes a few seconds.

    Args:
        folder: the folder whose disk is examined; by default the current one.
    """
    jetson = jetson_model()
    checks: list[tuple[str, Callable[[], Check]]] = [
        ("edgetta", check_edgetta),
        ("python", check_python),
        ("system", check_system),
        ("jetson", lambda: check_jetson(jetson)),
        ("power mode", lambda: check_power_mode(jetson)),
        ("processor", check_processor),
        ("memory", check_memory),
        ("disk", lambda: check_disk(folder or Path.cwd())),
        ("torch", packages.check_torch),
        ("cuda", lambda: packages.check_cuda(jetson)),
        ("numpy", lambda: packages.check_needed("numpy", "numpy")),
        ("safetensors", lambda: packages.check_needed("safetensors", "safetensors")),
        ("pillow", lambda: packages.check_needed("PIL", "pillow")),
        ("onnxruntime", packages.check_onnxruntime),
        ("tensorrt", lambda: packages.check_tensorrt(jetson)),
        ("onnx", lambda: packages.check_optional("onnx", "only for edgetta export: pip install 'edgetta[export]'")),
        ("onnxscript", lambda: packages.check_optional("onnxscript", "only for torch.onnx: pip install onnxscript")),
        ("opencv", packages.check_opencv),
    ]
    return Report(tuple(_guarded(name, check) for name, check in checks))


def check_edgetta() -> Check:
    import edgetta

    return Check("edgetta", "ok", edgetta.__version__, facts={"version": edgetta.__version__})


def check_python() -> Check:
    version = platform.python_version()
    value = f"{platform.python_implementation()} {version}"
    facts = {"version": version, "implementation": platform.python_implementation()}
    if sys.version_info[:2] < OLDEST_PYTHON:
        remedy = f"install Python {'.'.join(map(str, OLDEST_PYTHON))} or newer"
        return Check("python", "problem", value, remedy, facts)
    return Check("python", "ok", value, facts=facts)


def check_system() -> Check:
    facts = {"system": platform.system(), "release": platform.release(), "machine": platform.machine()}
    return Check("system", "ok", platform.platform(), facts=facts)


def check_processor() -> Check:
    cpu = parse_cpuinfo(_text("/proc/cpuinfo"))
    model = cpu.model or platform.processor() or "unknown"
    usable = packages.usable_cores()
    cores = cpu.logical or os.cpu_count() or 1
    facts = {"model": model, "cores": cores, "usable_cores": usable, "extensions": list(cpu.extensions)}
    value = f"{model}, {usable} of {cores} cores, {' '.join(cpu.extensions) or 'vector extensions unknown'}"
    if cpu.flags and not {"avx2", "neon"} & set(cpu.extensions):
        return Check("processor", "warning", value, "neither AVX2 nor NEON: expect a slow device", facts)
    return Check("processor", "ok", value, facts=facts)


def check_memory() -> Check:
    memory = parse_meminfo(_text("/proc/meminfo"))
    if memory is None:
        return Check("memory", "ok", f"unknown on {platform.system()}")
    limits = (_text("/sys/fs/cgroup/memory.max"), _text("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
    limit = next((limit for limit in map(parse_memory_limit, limits) if limit is not None), None)
    facts = {"total_bytes": memory.total, "available_bytes": memory.available, "limit_bytes": limit}
    value = f"{_gib(memory.available)} available of {_gib(memory.total)}"
    available = memory.available
    if limit is not None and limit < memory.total:
        value += f", this container may use {_gib(limit)}"
        available = min(available, limit)
    if available < LITTLE_MEMORY:
        return Check(
            "memory", "warning", value, "close other programs, or use a smaller batch or `local` gradients", facts
        )
    return Check("memory", "ok", value, facts=facts)


def check_disk(folder: Path) -> Check:
    usage = shutil.disk_usage(folder)
    value = f"{_gib(usage.free)} free of {_gib(usage.total)}"
    facts = {"free_bytes": usage.free, "total_bytes": usage.total}
    if usage.free < LITTLE_DISK:
        return Check("disk", "warning", value, "free some space: state, bundles and engines are written here", facts)
    return Check("disk", "ok", value, facts=facts)


def jetson_model() -> str | None:
    """The model of a Jetson, such as "NVIDIA Jetson Orin Nano Developer Kit"; None on any other machine."""
    model = parse_device_tree_model(_bytes("/proc/device-tree/model"))
    tegra = _text("/etc/nv_tegra_release")
    if "jetson" in model.lower() or tegra:
        return model or "Jetson of an unknown model"
    return None


def check_jetson(model: str | None) -> Check:
    if model is None:
        return Check("jetson", "ok", "no", facts={"model": None})
    release = parse_tegra_release(_text("/etc/nv_tegra_release"))
    if release is None:
        remedy = "in a container, mount /etc/nv_tegra_release, so that a bug report names the release"
        return Check("jetson", "warning", f"{model}, L4T unknown", remedy, {"model": model})
    jetpack = f" (JetPack {release.jetpack})" if release.jetpack else ""
    facts = {"model": model, "l4t": release.version, "jetpack": release.jetpack}
    return Check("jetson", "ok", f"{model}, L4T {release.version}{jetpack}", facts=facts)


def check_power_mode(jetson: str | None) -> Check:
    if jetson is None:
        return Check("power mode", "ok", "none: not a Jetson")
    try:
        done = subprocess.run(
            ["nvpmodel", "-q"], capture_output=True, text=True, timeout=5, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.SubprocessError) as error:
        return Check("power mode", "warning", f"unknown ({error})", "say the power mode by hand in a bug report")
    mode = parse_power_mode(done.stdout)
    if mode is None:
        said = (done.stderr or done.stdout).strip().splitlines()
        return Check(
            "power mode", "warning", f"unknown ({said[0] if said else 'no answer'})", "try `sudo nvpmodel -q`"
        )
    facts = {"mode": mode.name, "number": mode.number}
    if mode.name.upper().startswith("MAXN"):
        return Check("power mode", "ok", mode.name, facts=facts)
    return Check("power mode", "ok", mode.name, "faster modes: `nvpmodel -p --verbose` lists them", facts)


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except Exception as error:
        # Whatever else is broken here, the rest of the report is what its reader needs.
        return Check(name, "warning", f"could not be examined: {type(error).__name__}: {error}")


def _bytes(path: str) -> bytes:
    """A small system file; empty where there is none."""
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def _text(path: str) -> str:
    return _bytes(path).decode("utf-8", "replace")


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
