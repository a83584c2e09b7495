"""`edgetta build`: engines made, tested and told; what stands in the way in one line."""

from __future__ import annotations

import json
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from edgetta.bundle import engines as bundle_engines
from edgetta.bundle import tensorrt_engines
from edgetta.bundle.tensorrt_engines import TensorRTConfig
from edgetta.cli import main
from edgetta.cli.build import command, config_from
from edgetta.errors import UsageError
from tests.engines.tensorrt.double import Double, install
from tests.small_bundle import whole_bundle

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("EDGETTA_DEBUG", raising=False)


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> Double:
    return install(monkeypatch, "10.3.0")


def build(*options: object) -> int:
    return main(["build", str(whole_bundle()), *map(str, options)])


def error_of(capsys: Captured) -> str:
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("edgetta: error: ")
    return line


def test_engines_are_made_told_and_then_used(
    trt: Double, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(bundle_engines, "GPU_DEVICES", (str(tmp_path / "nvidia0"),))
    assert build("--precision", "fp16", "--batch", "1,16,32", "--json", tmp_path / "table.json") == 0
    printed = capsys.readouterr().out
    for words in (
        "TensorRT 10.3.0 on NVIDIA Orin (compute capability 8.7)",
        "1 to 32 images, fastest at 16",
        "backward",
        "4 engines",
        "0 from the cache, 4 built in",
        "self-test of the whole network: passed",
        "--engine tensorrt",
    ):
        assert words in printed
    rows = json.loads((tmp_path / "table.json").read_text())["engines"]
    assert len(rows) == 4 and {row["precision"] for row in rows} == {"fp16"}
    assert all(row["engine_bytes"] > 0 and row["seconds"] > 0 and not row["cached"] for row in rows)
    assert build("--precision", "fp16", "--batch", "1,16,32") == 0
    assert "4 from the cache, 0 built" in capsys.readouterr().out
    frames = tmp_path / "frames.npy"
    np.save(frames, np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8))
    builds = trt.builds
    assert main(["run", str(whole_bundle()), str(frames), "--batch", "10", "--json", str(tmp_path / "run.json")]) == 0
    assert json.loads((tmp_path / "run.json").read_text())["engine"] == "tensorrt"  # auto
    assert trt.builds == builds


def test_the_cache_can_lie_elsewhere(trt: Double, tmp_path: Path, capsys: Captured) -> None:
    assert build("--cache", tmp_path / "here", "-q", "--level", 1) == 0
    assert capsys.readouterr().out == ""
    assert len(list((tmp_path / "here").rglob("*.engine"))) == 4
    assert not (tmp_path / "xdg").exists()
    frames = tmp_path / "frames.npy"
    np.save(frames, np.zeros((4, 16, 16, 3), np.uint8))
    builds = trt.builds
    options = ["--engine", "tensorrt", "--cache", str(tmp_path / "here"), "--batch", "4"]
    assert main(["run", str(whole_bundle()), str(frames), *options]) == 0
    assert trt.builds == builds


def test_what_runs_in_float32_instead_is_named(trt: Double, capsys: Captured) -> None:
    trt.disturb = lambda name, array: array * 1.05 if trt.running_half and array.shape == (8, 5) else array
    assert build("--precision", "fp16") == 0
    said = capsys.readouterr()
    assert "predict is not usable in float16" in said.err
    assert "predict runs in fp32: predict computes wrongly" in said.out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--batch", "1,2"), "--batch takes three numbers MIN,OPT,MAX, such as 1,32,64, not '1,2'"),
        (("--batch", "4,2,8"), "batch is MIN,OPT,MAX with 1 <= MIN <= OPT <= MAX, not 4,2,8"),
        (("--batch", "a,b,c"), "--batch takes three numbers"),
        (("--workspace", "much"), "'much' is no size"),
        (("--workspace", "1MiB"), "a workspace of 1048576 bytes is too small"),
        (("--precision", "int4"), "'int4' is not one of 'fp32', 'fp16'"),
    ],
)
def test_options_that_cannot_be(trt: Double, capsys: Captured, options: tuple[str, ...], words: str) -> None:
    assert build(*options) == 2
    assert words in error_of(capsys)


def test_without_tensorrt(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    assert build() == 3
    assert "TensorRT is not installed; on a Jetson: sudo apt install nvidia-jetpack" in error_of(capsys)


def test_a_driver_that_is_too_old(trt: Double, capsys: Captured) -> None:
    trt.fail.add("Builder")
    assert build() == 3
    assert "TensorRT 10.3.0 cannot start (CUDA initialization failure with error: 35)" in error_of(capsys)


def test_a_parser_that_refuses(trt: Double, capsys: Captured) -> None:
    trt.fail.add("parse")
    assert build() == 1
    line = error_of(capsys)
    assert "TensorRT 10.3.0 cannot read predict: No importer registered for op: Strange" in line
    assert "use --engine onnxruntime" in line


def test_an_interrupted_build_leaves_no_half_engine(
    trt: Double, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    count = 0

    def interrupted(*arguments: object) -> object:
        nonlocal count
        count += 1
        if count == 4:
            raise KeyboardInterrupt
        return original(*arguments)  # type: ignore[arg-type]

    original = tensorrt_engines.build_engine
    monkeypatch.setattr(tensorrt_engines, "build_engine", interrupted)
    assert build() == 130
    engines = list((tmp_path / "xdg").rglob("*.engine"))
    assert len(engines) == 3 and len(list((tmp_path / "xdg").rglob("*.json"))) == 3
    monkeypatch.setattr(tensorrt_engines, "build_engine", original)
    capsys.readouterr()
    assert build() == 0
    assert "3 from the cache, 1 built" in capsys.readouterr().out


def test_every_setting_is_an_option() -> None:
    given = command.make_context("build", ["bundle"]).params
    assert {field.name for field in fields(TensorRTConfig)} <= set(given)
    assert config_from(given) == TensorRTConfig()
    with pytest.raises(UsageError):
        config_from({**given, "batch": "0,1,2"})
