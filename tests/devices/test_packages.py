"""Checks of torch, CUDA, the engines and OpenCV, against stand-ins that behave like sound and broken ones."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import torch

from edgetta.devices import packages
from edgetta.segments.engine_names import ENGINES


def install(monkeypatch: pytest.MonkeyPatch, name: str, **content: Any) -> None:
    module = types.ModuleType(name)
    for key, value in content.items():
        setattr(module, key, value)
    monkeypatch.setitem(sys.modules, name, module)


def remove(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """As if the packages were not installed."""
    real = packages.importlib.import_module

    def import_module(name: str) -> types.ModuleType:
        if name in names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name)

    monkeypatch.setattr(packages.importlib, "import_module", import_module)


class FakeTensor:
    """A tensor of `result`; its arithmetic fails with `error`."""

    def __init__(self, result: float, error: str) -> None:
        self.result, self.error = result, error

    def __mul__(self, factor: float) -> FakeTensor:
        if self.error:
            raise RuntimeError(self.error)
        return self

    def sum(self) -> FakeTensor:
        return self

    def item(self) -> float:
        return self.result

    def numpy(self) -> None:
        if self.error:
            raise RuntimeError(self.error)


def fake_torch(
    monkeypatch: pytest.MonkeyPatch,
    *,
    version: str = "2.13.0",
    cuda: str | None = "13.0",
    available: bool = True,
    capability: tuple[int, int] = (8, 7),
    architectures: tuple[str, ...] = ("sm_80", "sm_90"),
    result: float = 8.0,
    error: str = "",
    threads: int = 1,
) -> None:
    gpu = types.SimpleNamespace(
        is_available=lambda: available,
        get_device_capability=lambda index: capability,
        get_arch_list=lambda: list(architectures),
        get_device_name=lambda index: "Orin",
    )
    install(
        monkeypatch,
        "torch",
        __version__=version,
        version=types.SimpleNamespace(cuda=cuda),
        cuda=gpu,
        get_num_threads=lambda: threads,
        zeros=lambda *shape: FakeTensor(0, error),
        ones=lambda *shape, device: FakeTensor(result, error),
    )


def test_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_torch(monkeypatch)
    check = packages.check_torch()
    assert (check.status, check.value) == ("ok", "2.13.0, 1 thread")
    assert check.facts == {"version": "2.13.0", "cuda": "13.0", "threads": 1}
    fake_torch(monkeypatch, version="2.2.1")
    check = packages.check_torch()
    assert (check.status, check.remedy) == ("problem", "install torch 2.3 or newer")
    fake_torch(monkeypatch, threads=10_000)
    check = packages.check_torch()
    assert check.status == "warning" and f"OMP_NUM_THREADS={packages.usable_cores()}" in check.remedy


def test_torch_beside_a_numpy_that_it_cannot_use(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_torch(monkeypatch, error="Numpy is not available")
    check = packages.check_torch()
    assert check.status == "problem" and "numpy<2" in check.remedy and "Numpy is not available" in check.value


def test_no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    remove(monkeypatch, "torch")
    check = packages.check_torch()
    assert (check.status, check.value) == ("problem", "not installed")
    assert packages.check_cuda(None).value == "not tried: torch is not there"


def test_torch_whose_binary_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    def import_module(name: str) -> None:
        raise OSError("libcudart.so.12: cannot open shared object file\nmore")

    monkeypatch.setattr(packages.importlib, "import_module", import_module)
    check = packages.check_torch()
    assert check.status == "problem"
    assert check.value == "installed, but cannot be imported: libcudart.so.12: cannot open shared object file"


def test_package_whose_own_needs_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def import_module(name: str) -> None:
        raise ModuleNotFoundError("No module named 'google.protobuf'", name="google.protobuf")

    monkeypatch.setattr(packages.importlib, "import_module", import_module)
    check = packages.check_optional("onnx", "pip install onnx")
    assert (check.status, check.value) == ("warning", "cannot be imported: google.protobuf is not installed")


def test_cuda_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_torch(monkeypatch)
    check = packages.check_cuda(None)
    assert (check.status, check.value) == ("ok", "Orin, capability 8.7, CUDA 13.0")
    assert check.facts["architectures"] == ["sm_80", "sm_90"] and check.facts["capability"] == [8, 7]


def test_cuda_that_was_built_for_other_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_torch(monkeypatch, capability=(7, 2), error="CUDA error: no kernel image is available\nhints")
    check = packages.check_cuda("Jetson")
    assert check.status == "problem"
    assert check.value.endswith("; CUDA error: no kernel image is available")
    assert check.remedy == "this torch is built for sm_80 sm_90; install one that is built for this GPU"


def test_cuda_that_fails_or_gives_wrong_results(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_torch(monkeypatch, error="CUDA error: unspecified launch failure")
    check = packages.check_cuda(None)
    assert check.status == "problem" and "nvidia-smi" in check.remedy
    fake_torch(monkeypatch, result=7.0)
    check = packages.check_cuda(None)
    assert check.status == "problem" and "wrong result" in check.value


def test_gpu_that_torch_cannot_use(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_torch(monkeypatch, available=False, cuda=None)
    check = packages.check_cuda("NVIDIA Jetson Orin Nano Developer Kit")
    assert check.status == "warning" and "is a build without CUDA" in check.remedy
    fake_torch(monkeypatch, available=False, cuda="13.0")
    assert "is built for CUDA 13.0" in packages.check_cuda("Jetson").remedy
    monkeypatch.setattr(packages.Path, "exists", lambda path: False)
    assert packages.check_cuda(None).value == "no GPU"
    monkeypatch.setattr(packages.Path, "exists", lambda path: str(path) == "/dev/nvidia0")
    assert packages.check_cuda(None).status == "warning"


def test_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"onnxruntime": "1.32.0"}
    monkeypatch.setattr(packages, "_distribution", installed.get)
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    install(monkeypatch, "onnxruntime", __version__="1.32.0", get_available_providers=lambda: providers)
    check = packages.check_onnxruntime()
    assert (check.status, check.value) == ("ok", "1.32.0, CUDA CPU")
    assert check.facts == {"version": "1.32.0", "providers": providers}
    installed["onnxruntime-gpu"] = "1.32.0"
    check = packages.check_onnxruntime()
    assert check.status == "warning" and "uninstall both" in check.remedy
    install(monkeypatch, "onnxruntime", __version__="1.11.0", get_available_providers=lambda: providers)
    assert packages.check_onnxruntime().remedy == "install onnxruntime 1.18 or newer"
    remove(monkeypatch, "onnxruntime")
    check = packages.check_onnxruntime()
    assert check.status == "warning" and "edgetta[onnxruntime]" in check.remedy


def test_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "tensorrt_rtx", __version__="1.7.1.116")
    install(monkeypatch, "tensorrt", __version__="10.3.0.30")
    check = packages.check_tensorrt("Jetson")
    assert (check.status, check.value) == ("ok", "10.3.0.30")
    install(monkeypatch, "tensorrt", __version__="8.2.1.8")
    check = packages.check_tensorrt("Jetson")
    assert check.status == "warning" and check.remedy == "engines need 8.5 or newer: take a newer JetPack"
    remove(monkeypatch, "tensorrt")
    assert packages.check_tensorrt(None).value == "1.7.1.116 (TensorRT-RTX)"
    remove(monkeypatch, "tensorrt", "tensorrt_rtx")
    check = packages.check_tensorrt("Jetson")
    assert check.status == "warning" and "nvidia-jetpack" in check.remedy
    assert packages.check_tensorrt(None).status == "absent"


def test_tensorrt_that_does_not_import(monkeypatch: pytest.MonkeyPatch) -> None:
    def import_module(name: str) -> None:
        raise ImportError("libnvinfer.so.10: cannot open shared object file")

    monkeypatch.setattr(packages.importlib, "import_module", import_module)
    check = packages.check_tensorrt(None)
    assert check.status == "warning" and "libnvinfer" in check.value and check.remedy


def test_needed_and_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "PIL", __version__="13.0.0")
    assert packages.check_needed("PIL", "pillow").value == "13.0.0"
    install(monkeypatch, "safetensors")
    monkeypatch.setattr(packages, "_distribution", {"safetensors": "0.8.0"}.get)
    assert packages.check_needed("safetensors", "safetensors").facts == {"version": "0.8.0"}
    remove(monkeypatch, "PIL", "onnx")
    check = packages.check_needed("PIL", "pillow")
    assert (check.status, check.remedy) == ("problem", "pip install pillow")
    check = packages.check_optional("onnx", "pip install onnx")
    assert (check.status, check.value, check.remedy) == ("absent", "not installed", "pip install onnx")


def test_opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    information = (
        "General configuration for OpenCV 4.8.0\n  Video I/O:\n    DC1394:                      NO\n"
        "    FFMPEG:                      YES\n      avcodec:                   YES (58.134.100)\n"
        "    GStreamer:                   YES (1.20.3)\n    v4l/v4l2:                    NO\n"
    )
    install(monkeypatch, "cv2", __version__="4.8.0", getBuildInformation=lambda: information)
    check = packages.check_opencv()
    assert (check.status, check.value) == ("ok", "4.8.0, FFMPEG GStreamer")
    install(monkeypatch, "cv2", __version__="4.8.0", getBuildInformation=lambda: "")
    assert packages.check_opencv().value == "4.8.0, no video back end"
    remove(monkeypatch, "cv2")
    check = packages.check_opencv()
    assert check.status == "absent" and "edgetta[serve]" in check.remedy


def test_engines_that_can_run_here() -> None:
    check = packages.check_engines()
    assert check.status == "ok" and "torch" in check.facts["usable"]
    assert f"auto takes {check.facts['auto']}" in check.value
    assert set(check.facts["usable"]) | set(check.facts["troubles"]) == set(ENGINES)
    if not torch.cuda.is_available():
        assert check.facts["auto"] == "onnxruntime"
        for name in ("torch-cuda", "onnxruntime-cuda", "tensorrt"):
            assert check.facts["troubles"][name]


def test_engines_without_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    check = packages.check_engines()
    assert "pip install 'edgetta[onnxruntime]'" in check.facts["troubles"]["onnxruntime"]
