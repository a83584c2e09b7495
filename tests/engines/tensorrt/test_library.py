"""Finding TensorRT: what is missing is named, with what to do about it."""

from __future__ import annotations

import logging
import sys
from types import ModuleType
from typing import Any

import pytest
import torch

from edgetta.engines.tensorrt import library
from edgetta.engines.tensorrt.library import (
    Target,
    find_target,
    gpu_trouble,
    import_tensorrt,
    messages,
    tensorrt_trouble,
    version_of,
)
from edgetta.errors import MissingDependencyError
from tests.engines.tensorrt.double import VERSIONS, Double, Severity, install


def module(name: str, version: str) -> ModuleType:
    made = ModuleType(name)
    made.__version__ = version  # type: ignore[attr-defined]
    return made


def only(monkeypatch: pytest.MonkeyPatch, **modules: ModuleType | None) -> None:
    for name in library.PACKAGES:
        monkeypatch.setitem(sys.modules, name, modules.get(name))


def test_tensorrt_comes_before_its_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    real, rtx = module("tensorrt", "10.3.0"), module("tensorrt_rtx", "1.7.1.116")
    only(monkeypatch, tensorrt=real, tensorrt_rtx=rtx)
    assert import_tensorrt() is real
    only(monkeypatch, tensorrt_rtx=rtx)
    assert import_tensorrt() is rtx
    old = module("tensorrt", "8.2.1.8")
    only(monkeypatch, tensorrt=old, tensorrt_rtx=rtx)
    assert import_tensorrt() is rtx


@pytest.mark.parametrize(
    ("version", "words"),
    [(None, "not installed; on a Jetson: sudo apt install nvidia-jetpack"), ("8.2.1.8", "8.2.1.8 is too old")],
)
def test_none_that_can_be_used(monkeypatch: pytest.MonkeyPatch, version: str | None, words: str) -> None:
    only(monkeypatch, tensorrt=None if version is None else module("tensorrt", version))
    with pytest.raises(MissingDependencyError, match=words):
        import_tensorrt()
    assert "use --engine onnxruntime" in tensorrt_trouble()


def test_a_binary_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
            if name == "tensorrt":
                raise OSError("libnvinfer.so.10: cannot open shared object file")

    only(monkeypatch)
    monkeypatch.delitem(sys.modules, "tensorrt")
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(MissingDependencyError, match=r"cannot be imported \(libnvinfer.so.10.*reinstall it"):
        import_tensorrt()


@pytest.mark.parametrize(
    ("text", "numbers"), [("10.3.0", (10, 3, 0)), ("8.5.2.2", (8, 5, 2, 2)), ("11.4.0.106+cu13", (11, 4, 0, 106))]
)
def test_versions(text: str, numbers: tuple[int, ...]) -> None:
    assert version_of(module("tensorrt", text)) == numbers


def test_the_target_names_what_engines_are_bound_to(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "10.3.0")
    assert find_target() == Target("tensorrt", "10.3.0", "NVIDIA Orin", (8, 7), "cpu")
    assert find_target().slug == "trt10.3.0.orin-sm87"
    assert Target("tensorrt_rtx", "1.7.1", "", (12, 0)).slug == "rtx1.7.1.gpu-sm120"
    assert tensorrt_trouble() == ""


@pytest.mark.parametrize(
    ("built", "said", "words"),
    [
        (None, "", "is built without CUDA; install a build for this machine's CUDA"),
        (
            "12.6",
            "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver",
            "the NVIDIA driver is too old for this torch, which is built for CUDA 12.6; update the driver",
        ),
        ("12.6", "Found no NVIDIA driver on your system. Please check", "there is no NVIDIA driver; install one"),
        ("12.6", "CUDA unknown error.", "CUDA unknown error; check the driver with nvidia-smi"),
        ("12.6", None, "torch finds none; check the driver with nvidia-smi, and CUDA_VISIBLE_DEVICES"),
    ],
)
def test_why_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch, built: str | None, said: str | None, words: str) -> None:
    def start() -> None:
        if said is not None:
            raise RuntimeError(said)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.setattr(torch.cuda, "init", start)
    assert words in gpu_trouble()
    only(monkeypatch, tensorrt=Double("10.3.0"))
    with pytest.raises(MissingDependencyError, match="TensorRT needs an NVIDIA GPU: "):
        find_target()


@pytest.mark.parametrize("version", VERSIONS)
def test_errors_are_remembered_and_passed_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, version: str
) -> None:
    trt = install(monkeypatch, version)
    logger = messages(trt)
    assert messages(trt) is logger, "what TensorRT makes needs its logger for as long as it lives"
    with caplog.at_level(logging.DEBUG, "edgetta.tensorrt"):
        logger.log(Severity.INFO, "hello")
        logger.log(Severity.ERROR, "one\n thing")
        logger.log(Severity.ERROR, "one\n thing")
        logger.log(Severity.ERROR, "another")
    assert logger.last() == "one thing; another"
    assert "hello" in caplog.text
    logger.clear()
    assert logger.last() == "no reason given"
