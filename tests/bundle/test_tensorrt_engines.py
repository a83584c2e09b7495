"""The TensorRT engines of a bundle: built once, found again, tested, replaced with a reason, and run as any engine."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import edgetta
from edgetta.adaptation.config import AdaptConfig
from edgetta.bundle import engine_name, open_engine, read_bundle, self_test
from edgetta.bundle import engines as bundle_engines
from edgetta.bundle.tensorrt_engines import BundleEngines, TensorRTConfig, was_built
from edgetta.engines.gpu import GpuEngine
from edgetta.engines.tensorrt.build import EngineBuildError
from edgetta.errors import MissingDependencyError, UsageError
from edgetta.export.recipe import Recipe, derive_recipe
from tests.adaptation.backbones import small_programs
from tests.adaptation.pictures import pictures
from tests.engines.programs_of_networks import relative
from tests.engines.tensorrt.double import Double, install
from tests.small_bundle import whole_bundle, write_small

CONFIG = TensorRTConfig(batch=(1, 16, 32))
ADAPT = AdaptConfig(learning_rate=1e-2, entropy_margin=1.0, hold_back=False)


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> Double:
    return install(monkeypatch, "10.3.0")


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "edgetta" / "engines"


def prepare_all(lines: list[str], *programs: str) -> list[bool]:
    """Prepare the engines of the small bundle, or of some of its programs; returns which came from the cache."""
    engines = BundleEngines(read_bundle(whole_bundle()), CONFIG, tell=lines.append)
    return [engines.prepare(job).cached for job in engines.jobs() if not programs or job.title in programs]


TWO = ("forward", "backward")


def edit_records(cache: Path, **changes: object) -> None:
    for path in cache.rglob("*.engine.json"):
        record = json.loads(path.read_text())
        record["key"].update(changes)
        path.write_text(json.dumps(record))


def test_jobs_are_what_a_network_needs(trt: Double, cache: Path) -> None:
    engines = BundleEngines(read_bundle(whole_bundle()), CONFIG)
    for gradient in ("auto", "exact"):
        titles = [job.title for job in engines.jobs(gradient)]  # type: ignore[arg-type]
        assert titles == ["predict", "measure", "forward", "backward"]
    assert [job.title for job in engines.jobs("recompute")] == ["predict", "measure", "recompute"]


def test_built_once_and_found_again(trt: Double, cache: Path, lines: list[str]) -> None:
    assert prepare_all(lines) == [False] * 4
    assert trt.builds == 4
    assert prepare_all(lines) == [True] * 4
    assert (trt.builds, lines) == (4, [])
    folder = cache / f"small-{read_bundle(whole_bundle()).identity[:8]}"
    assert (folder / "backward.fp32.b1-16-32.trt10.3.0.orin-sm87.engine").is_file()
    assert not list(cache.rglob("*.tmp"))


def test_kernel_times_of_all_engines_lie_in_one_file(trt: Double, cache: Path, lines: list[str]) -> None:
    prepare_all(lines)
    stored = (cache / "timing.trt10.3.0.orin-sm87.cache").read_bytes()
    assert stored.split(b"|") == [f"time {i}".encode() for i in range(1, 5)]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tensorrt": "10.2.0"}, "TensorRT was 10.2.0 and is 10.3.0"),
        ({"gpu": "NVIDIA Thor"}, "the GPU was NVIDIA Thor and is NVIDIA Orin"),
        ({"capability": [11, 0]}, "the GPU's compute capability was 11.0 and is 8.7"),
        ({"onnx_sha256": "0"}, "it was built from another export of the bundle"),
        ({"level": 5}, "the optimisation level was 5 and is 3"),
        ({"workspace": 1 << 28}, "the workspace was 268435456 and is automatic"),
        ({"format": 0}, "the form of engine files was 0 and is 2"),
        ({"program": "other"}, "the file that describes the engine is damaged"),
    ],
)
def test_a_mismatch_is_told_and_built_again(
    trt: Double, cache: Path, lines: list[str], change: dict[str, object], reason: str
) -> None:
    prepare_all(lines, *TWO)
    edit_records(cache, **change)
    opened = len([call for call in trt.calls if call[1] == "deserialize_cuda_engine"])
    assert prepare_all(lines, *TWO) == [False, False]
    assert len(lines) == 2
    assert all(reason in line and line.endswith("building it again") for line in lines)
    # What does not fit is never shown to TensorRT: only what was just built is opened.
    assert len([call for call in trt.calls if call[1] == "deserialize_cuda_engine"]) == opened + 2
    assert prepare_all(lines, *TWO) == [True, True]


@pytest.mark.parametrize("damage", ["cut", "removed", "description", "not JSON"])
def test_a_damaged_engine_is_built_again(trt: Double, cache: Path, lines: list[str], damage: str) -> None:
    prepare_all(lines, *TWO)
    (engine,) = cache.rglob("backward.*.engine")
    record = engine.with_name(f"{engine.name}.json")
    if damage == "cut":
        engine.write_bytes(engine.read_bytes()[:100])
    elif damage == "removed":
        engine.unlink()
    elif damage == "description":
        record.unlink()
    else:
        record.write_text("{")
    assert prepare_all(lines, *TWO) == [True, False]
    assert len(lines) == 1 and lines[0].startswith("backward: the ") and lines[0].endswith("building it again")


def test_an_engine_that_tensorrt_rejects_is_built_again(trt: Double, cache: Path, lines: list[str]) -> None:
    """Its description fits, and still: another build of the same version, say."""
    prepare_all(lines, *TWO)
    for path in cache.rglob("*.engine"):
        data = path.read_bytes().replace(b"10.3.0", b"10.3.9")
        path.write_bytes(data)
        record = json.loads(path.with_name(f"{path.name}.json").read_text())
        record["sha256"] = hashlib.sha256(data).hexdigest()
        path.with_name(f"{path.name}.json").write_text(json.dumps(record))
    assert prepare_all(lines, *TWO) == [False, False]
    assert "backward: TensorRT 10.3.0 refuses the engine: Version tag does not match; building it again" in lines


def test_another_version_beside_it_is_named(
    trt: Double, cache: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_all(lines, *TWO)
    install(monkeypatch, "11.4.0.106")
    assert prepare_all(lines, *TWO) == [False, False]
    assert "TensorRT was 10.3.0 and is 11.4.0.106" in lines[0]
    install(monkeypatch, "10.3.0")
    lines.clear()
    assert prepare_all(lines, *TWO) == [True, True] and not lines


def test_float16_that_computes_wrongly_is_refused_and_remembered(trt: Double, cache: Path, lines: list[str]) -> None:
    half = replace(CONFIG, precision="fp16")
    bundle = read_bundle(whole_bundle())
    wrong = bundle.programs.backward.outputs[0]
    trt.disturb = lambda name, array: array * 1.05 if trt.running_half and name == wrong else array
    engines = BundleEngines(bundle, half, tell=lines.append)
    prepared = {job.title: engines.prepare(job) for job in engines.jobs()}
    assert [title for title, p in prepared.items() if p.options.precision == "fp32"] == ["backward"]
    (line,) = lines
    assert line.startswith("backward is not usable in float16")
    assert "is off by" in line and "float32 is used for it" in line
    builds = trt.builds
    lines.clear()
    engines = BundleEngines(bundle, half, tell=lines.append)
    assert all(engines.prepare(job).cached for job in engines.jobs())
    assert (trt.builds, lines) == (builds, [])


@pytest.mark.parametrize("program", ["predict", "measure", "forward", "backward", "recompute"])
def test_every_output_of_an_engine_is_tested(trt: Double, cache: Path, program: str) -> None:
    """Values that are a tenth off, or masks that a tenth of are turned, one output at a time.

    Gradients are off by more: those that are small beside the largest may be.
    """
    engines = BundleEngines(read_bundle(whole_bundle()), CONFIG)
    (job,) = [job for job in [*engines.jobs(), *engines.jobs("recompute")[2:]] if job.title == program]
    more = np.float32(10 if program in ("backward", "recompute") else 0)
    for output in job.outputs[:: max(1, len(job.outputs) // 8)]:

        def disturb(name: str, array: np.ndarray, output: str = output) -> np.ndarray:
            if name != output:
                return array
            turned = np.random.default_rng(0).random(array.shape) < 0.1
            return array ^ turned if array.dtype == np.bool_ else array * np.float32(1.1) + more

        trt.disturb = disturb
        with pytest.raises(EngineBuildError, match=f"{program} computes wrongly: its '{re.escape(output)}' is off by"):
            engines.prepare(job)
    trt.disturb = lambda name, array: array
    assert not engines.prepare(job).cached


def test_an_engine_that_is_not_finite_is_refused(trt: Double, cache: Path, lines: list[str]) -> None:
    trt.disturb = lambda name, array: array * np.float32("nan") if array.dtype == np.float32 else array
    with pytest.raises(EngineBuildError, match=r"predict computes wrongly: its '.*' is not finite"):
        prepare_all(lines)
    assert not list(cache.rglob("predict*.engine"))


def test_out_of_memory_is_told_as_such_and_leaves_the_cache_as_it_was(
    trt: Double, cache: Path, lines: list[str]
) -> None:
    trt.build_errors = ["Error Code 10: Could not find any implementation for node Conv_v3 + Relu_v4."]
    with pytest.raises(EngineBuildError, match=r"mostly means that memory ran out: close other programs, lower the"):
        prepare_all(lines)
    assert not list(cache.rglob("*.engine*"))
    assert prepare_all(lines) == [False] * 4


@pytest.mark.parametrize("form", ["adaptive", "source"])
def test_the_runtime_adapts_on_tensorrt_as_on_torch(trt: Double, cache: Path, tmp_path: Path, form: str) -> None:
    bundle = write_small(tmp_path / "small", small_programs(form=form))
    found = []
    for engine in ("torch", "tensorrt"):
        runtime = edgetta.load(bundle, engine, config=ADAPT, tensorrt=CONFIG)
        assert runtime.engine.name == engine
        for seed in range(3):
            result = runtime.step(pictures(16, seed))
            assert result.adapted
        found.append((result.logits, runtime.source(pictures(16, 0)), runtime.adapter.state.parameters))
    for wanted, other in zip(*found, strict=True):
        np.testing.assert_allclose(other, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("version", ["8.5", "8.6.1", "10.0.1", "11.4.0.106"])
def test_float16_adapts_on_every_version(monkeypatch: pytest.MonkeyPatch, cache: Path, version: str) -> None:
    install(monkeypatch, version)
    bundle = whole_bundle()
    half = edgetta.load(bundle, "tensorrt", config=ADAPT, tensorrt=replace(CONFIG, precision="fp16"))
    assert half.engine.precision == "fp16"  # type: ignore[attr-defined]
    full = edgetta.load(bundle, "torch", config=ADAPT)
    for seed in range(3):
        result, expected = half.step(pictures(16, seed)), full.step(pictures(16, seed))
        assert result.adapted
        np.testing.assert_allclose(result.logits, expected.logits, rtol=0.05, atol=0.05)


def test_state_moves_between_engines(trt: Double, cache: Path, tmp_path: Path) -> None:
    runtime = edgetta.load(whole_bundle(), "tensorrt", config=ADAPT, tensorrt=CONFIG)
    runtime(pictures(16, 0))
    runtime.save_state(tmp_path / "state")
    other = edgetta.load(whole_bundle(), "torch", config=ADAPT)
    other.load_state(tmp_path / "state")
    np.testing.assert_array_equal(other.adapter.state.parameters, runtime.adapter.state.parameters)
    assert np.abs(other.adapter.state.parameters - other.bundle.programs.shipped).max() > 0


def test_adaptable_biases(trt: Double, cache: Path, tmp_path: Path) -> None:
    bundle = write_small(tmp_path / "biases", small_programs(adapt="bias"))
    assert edgetta.load(bundle, "tensorrt", config=ADAPT, tensorrt=CONFIG).step(pictures(16, 0)).adapted


def test_engines_that_were_not_built_are_made_when_they_are_used(trt: Double, cache: Path) -> None:
    bundle = read_bundle(whole_bundle())
    opened = BundleEngines(bundle, CONFIG).engine()
    programs, batch = bundle.programs, pictures(16, 0)
    assert trt.builds == 0
    logits = opened.predict(batch, programs.shipped, programs.source)
    assert trt.builds == 1
    incoming = np.cos(np.arange(logits.size, dtype=np.float32)).reshape(logits.shape)
    passed = opened.forward(batch, programs.shipped, programs.source)
    gradients = opened.backward(passed.residuals, incoming, 0.1, programs.shipped)
    again = opened.recompute(batch, incoming, 0.1, programs.shipped, programs.source)
    assert relative(again, gradients) < 1e-3 and trt.builds == 4


def test_auto_takes_tensorrt_where_engines_were_built(
    trt: Double, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = read_bundle(whole_bundle())
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(bundle_engines, "GPU_DEVICES", (str(tmp_path / "nvidia0"),))
    assert engine_name("auto", bundle) == "onnxruntime" and not was_built(bundle)
    engines = BundleEngines(bundle, replace(CONFIG, precision="fp16", level=2))
    for job in engines.jobs():
        engines.prepare(job)
    engines.remember("auto")
    assert engine_name("auto", bundle) == "tensorrt" and was_built(bundle)
    builds = trt.builds
    again = BundleEngines(bundle)
    assert (again.options.precision, again.options.level, again.options.batch) == ("fp16", 2, (1, 16, 32))
    opened = open_engine(bundle)
    assert isinstance(opened, GpuEngine) and (opened.name, opened.precision) == ("tensorrt", "fp16")
    self_test(bundle, opened)
    assert trt.builds == builds


@pytest.mark.parametrize("content", ["{", "[]", '{"settings": {"batch": [1, 2]}}', '{"settings": {"speed": 1}}'])
def test_settings_that_cannot_be_read_are_ignored(trt: Double, cache: Path, content: str) -> None:
    bundle = read_bundle(whole_bundle())
    folder = BundleEngines(bundle, CONFIG).cache.folder
    (folder / "build.json").write_text(content)
    assert BundleEngines(bundle).config == TensorRTConfig()


def test_by_default_batches_reach_the_window(trt: Double, cache: Path, tmp_path: Path) -> None:
    bundle = write_small(tmp_path / "b", config=AdaptConfig(window=48))
    assert BundleEngines(read_bundle(bundle)).options.batch == (1, 48, 48)


def test_a_batch_that_no_engine_covers(trt: Double, cache: Path) -> None:
    runtime = edgetta.load(whole_bundle(), "tensorrt", tensorrt=CONFIG)
    with pytest.raises(UsageError, match=r"built for batches of 1 to 32 images, and this one has 33.*--batch 1,32,33"):
        runtime(pictures(33, 0))
    assert runtime(pictures(16, 0)).shape == (16, 5)


def test_a_rebuild_reaches_python_users_as_a_warning(
    trt: Double, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    edgetta.load(whole_bundle(), "tensorrt", tensorrt=CONFIG)
    edit_records(cache, tensorrt="10.2.0")
    with caplog.at_level(logging.WARNING):
        edgetta.load(whole_bundle(), "tensorrt", tensorrt=CONFIG)
    assert "TensorRT was 10.2.0 and is 10.3.0" in caplog.text


def test_without_tensorrt_the_remedy_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(MissingDependencyError, match=r"not installed; on a Jetson: sudo apt install nvidia-jetpack"):
        edgetta.load(whole_bundle(), "tensorrt")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_the_reason_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", Double("10.3.0"))
    with pytest.raises(MissingDependencyError, match=r"TensorRT needs an NVIDIA GPU: .*use --engine onnxruntime"):
        edgetta.load(whole_bundle(), "tensorrt")
    with pytest.raises(MissingDependencyError, match="the engine torch-cuda needs an NVIDIA GPU"):
        edgetta.load(whole_bundle(), "torch-cuda")


def test_a_cache_that_cannot_be_written(trt: Double, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(edgetta.EdgettaError, match="cannot write"):
        BundleEngines(read_bundle(whole_bundle()), CONFIG, tmp_path / "file")


@pytest.mark.full
@pytest.mark.parametrize("form", ["source", "adaptive"])
def test_deep_networks_pass_their_self_test_in_float16(trt: Double, cache: Path, tmp_path: Path, form: str) -> None:
    """Forty layers, whose masks flip here and there: every engine is right, and the whole is near enough."""
    programs = derive_recipe(Recipe("wrn40_2", batch_norm=form)).adaptable.programs  # type: ignore[arg-type]
    bundle = read_bundle(write_small(tmp_path / "b", programs, classes=None, content=None, name="wrn40_2"))
    engines = BundleEngines(bundle, replace(CONFIG, precision="fp16"))
    for job in engines.jobs():
        prepared = engines.prepare(job)
        assert prepared.options.precision == "fp16", prepared.note
    result = self_test(bundle, engines.engine())
    assert max(result.logits_error, result.mixed_error) < 1e-2
    assert 1e-3 < result.gradient_error < 0.2
