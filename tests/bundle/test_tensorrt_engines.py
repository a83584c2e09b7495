"""The TensorRT engines of a bundle: built once, found again, tested, replaced with a reason, and run as any engine."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import edgetta
from edgetta.adaptation.config import AdaptConfig
from edgetta.bundle import build_network, read_bundle, self_test
from edgetta.bundle.engines import engine_name, engine_of, open_engine
from edgetta.bundle.tensorrt_engines import BundleEngines, TensorRTConfig, was_built
from edgetta.errors import MissingDependencyError, UsageError
from edgetta.export.bundle_writer import write_bundle
from edgetta.export.recipe import Recipe, derive_recipe
from edgetta.offline.source_statistics import set_source_statistics
from edgetta.segments.tensorrt.build import EngineBuildError
from tests.adaptation.backbones import small_model
from tests.segments.tensorrt.double import Double, install
from tests.small_bundle import whole_bundle, write_small

CONFIG = TensorRTConfig(batch=(1, 16, 32))
IMAGES = torch.rand(16, 3, 16, 16, generator=torch.Generator().manual_seed(0))


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


def prepare_all(lines: list[str], segment: str = "") -> list[bool]:
    """Prepare the engines of the small bundle, or of one segment; returns which came from the cache."""
    engines = BundleEngines(read_bundle(whole_bundle()), CONFIG, tell=lines.append)
    return [engines.prepare(job).cached for job in engines.jobs() if job.segment.startswith(segment)]


def edit_records(cache: Path, **changes: object) -> None:
    for path in cache.rglob("*.engine.json"):
        record = json.loads(path.read_text())
        record["key"].update(changes)
        path.write_text(json.dumps(record))


def test_jobs_are_what_a_network_needs(trt: Double, cache: Path) -> None:
    engines = BundleEngines(read_bundle(whole_bundle()), CONFIG)
    exact = ["stem.predict", "part1.predict", "part2.forward", "part2.backward", "part3.forward", "part3.backward"]
    ends = ["classifier.forward", "classifier.backward", "source.predict"]
    assert [job.title for job in engines.jobs("auto")] == exact + ends
    local = ["stem.predict", "part1.predict", "part2.predict", "part3.predict"]
    assert [job.title for job in engines.jobs("local")] == local + ends
    again = [job.title for job in engines.jobs("recompute")]
    assert again[2:4] == ["part2.predict", "part2.recompute"]


def test_built_once_and_found_again(trt: Double, cache: Path, lines: list[str]) -> None:
    assert prepare_all(lines) == [False] * 9
    assert trt.builds == 9
    assert prepare_all(lines) == [True] * 9
    assert (trt.builds, lines) == (9, [])
    folder = cache / f"small-{read_bundle(whole_bundle()).identity[:8]}"
    assert (folder / "part2.backward.fp32.b1-16-32.trt10.3.0.orin-sm87.engine").is_file()
    assert not list(cache.rglob("*.tmp"))


def test_kernel_times_of_all_engines_lie_in_one_file(trt: Double, cache: Path, lines: list[str]) -> None:
    prepare_all(lines)
    stored = (cache / "timing.trt10.3.0.orin-sm87.cache").read_bytes()
    assert stored.split(b"|") == [f"time {i}".encode() for i in range(1, 10)]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tensorrt": "10.2.0"}, "TensorRT was 10.2.0 and is 10.3.0"),
        ({"gpu": "NVIDIA Thor"}, "the GPU was NVIDIA Thor and is NVIDIA Orin"),
        ({"capability": [11, 0]}, "the GPU's compute capability was 11.0 and is 8.7"),
        ({"onnx_sha256": "0"}, "it was built from another export of the segment"),
        ({"level": 5}, "the optimisation level was 5 and is 3"),
        ({"workspace": 1 << 28}, "the workspace was 268435456 and is automatic"),
        ({"format": 0}, "the form of engine files was 0 and is 1"),
        ({"segment": "part9"}, "the file that describes the engine is damaged"),
    ],
)
def test_a_mismatch_is_told_and_built_again(
    trt: Double, cache: Path, lines: list[str], change: dict[str, object], reason: str
) -> None:
    prepare_all(lines, "part2")
    edit_records(cache, **change)
    opened = len([call for call in trt.calls if call[1] == "deserialize_cuda_engine"])
    assert prepare_all(lines, "part2") == [False, False]
    assert len(lines) == 2
    assert all(reason in line and line.endswith("building it again") for line in lines)
    # What does not fit is never shown to TensorRT: only what was just built is opened.
    assert len([call for call in trt.calls if call[1] == "deserialize_cuda_engine"]) == opened + 2
    assert prepare_all(lines, "part2") == [True, True]


@pytest.mark.parametrize("damage", ["cut", "removed", "description", "not JSON"])
def test_a_damaged_engine_is_built_again(trt: Double, cache: Path, lines: list[str], damage: str) -> None:
    prepare_all(lines, "part2")
    (engine,) = cache.rglob("part2.backward*.engine")
    record = engine.with_name(f"{engine.name}.json")
    if damage == "cut":
        engine.write_bytes(engine.read_bytes()[:100])
    elif damage == "removed":
        engine.unlink()
    elif damage == "description":
        record.unlink()
    else:
        record.write_text("{")
    assert prepare_all(lines, "part2") == [True, False]
    assert len(lines) == 1 and lines[0].startswith("part2.backward: the ") and lines[0].endswith("building it again")


def test_an_engine_that_tensorrt_rejects_is_built_again(trt: Double, cache: Path, lines: list[str]) -> None:
    """Its description fits, and still: another build of the same version, say."""
    prepare_all(lines, "part2")
    for path in cache.rglob("*.engine"):
        data = path.read_bytes().replace(b"10.3.0", b"10.3.9")
        path.write_bytes(data)
        record = json.loads(path.with_name(f"{path.name}.json").read_text())
        record["sha256"] = hashlib.sha256(data).hexdigest()
        path.with_name(f"{path.name}.json").write_text(json.dumps(record))
    assert prepare_all(lines, "part2") == [False, False]
    assert "part2.backward: TensorRT 10.3.0 refuses the engine: Version tag does not match; building it again" in lines


def test_another_version_beside_it_is_named(
    trt: Double, cache: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_all(lines, "part2")
    install(monkeypatch, "11.4.0.106")
    assert prepare_all(lines, "part2") == [False, False]
    assert "TensorRT was 10.3.0 and is 11.4.0.106" in lines[0]
    install(monkeypatch, "10.3.0")
    lines.clear()
    assert prepare_all(lines, "part2") == [True, True] and not lines


def test_float16_that_computes_wrongly_is_refused_and_remembered(trt: Double, cache: Path, lines: list[str]) -> None:
    half = replace(CONFIG, precision="fp16")
    bundle = read_bundle(whole_bundle())

    grad_x = bundle.model.parts[1].backward.outputs[0]  # type: ignore[union-attr]
    trt.disturb = lambda name, array: array * 1.05 if trt.running_half and name == grad_x else array
    engines = BundleEngines(bundle, half, tell=lines.append)
    prepared = {job.title: engines.prepare(job) for job in engines.jobs()}
    wrong = [title for title, p in prepared.items() if p.options.precision == "fp32"]
    assert wrong and set(wrong) <= {"part2.backward", "part3.backward", "classifier.backward"}
    assert "part2.backward" in wrong
    line = next(line for line in lines if line.startswith("part2.backward"))
    assert "is not usable in float16" in line and "is off by" in line and "float32 is used for it" in line
    builds = trt.builds
    lines.clear()
    engines = BundleEngines(bundle, half, tell=lines.append)
    assert all(engines.prepare(job).cached for job in engines.jobs())
    assert (trt.builds, lines) == (builds, [])


def test_an_engine_that_is_not_finite_is_refused(trt: Double, cache: Path, lines: list[str]) -> None:
    trt.disturb = lambda name, array: array * np.float32("nan") if array.dtype == np.float32 else array
    with pytest.raises(EngineBuildError, match=r"stem.predict computes wrongly: its '.*' is not finite"):
        prepare_all(lines)
    assert not list(cache.rglob("stem.predict*.engine"))


def test_out_of_memory_is_told_as_such_and_leaves_the_cache_as_it_was(
    trt: Double, cache: Path, lines: list[str]
) -> None:
    trt.build_errors = ["Error Code 10: Could not find any implementation for node Conv_v3 + Relu_v4."]
    with pytest.raises(EngineBuildError, match=r"mostly means that memory ran out: close other programs, lower the"):
        prepare_all(lines)
    assert not list(cache.rglob("*.engine*"))
    assert prepare_all(lines) == [False] * 9


def test_the_runtime_adapts_on_tensorrt_as_on_torch(trt: Double, cache: Path) -> None:
    config = AdaptConfig(learning_rate=1e-2, entropy_margin=1.0)
    found = []
    for engine in ("torch", "tensorrt"):
        runtime = edgetta.load(whole_bundle(), engine, config=config, tensorrt=CONFIG)
        assert engine_of(runtime.network) == runtime.engine.name == engine
        for seed in range(3):
            logits = runtime(torch.rand(16, 3, 16, 16, generator=torch.Generator().manual_seed(seed)))
        found.append((logits, runtime.source(IMAGES)))
    assert torch.allclose(found[0][0], found[1][0], rtol=1e-3, atol=1e-4)
    assert torch.allclose(found[0][1], found[1][1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("version", ["8.5", "8.6.1", "10.0.1", "11.4.0.106"])
def test_float16_adapts_on_every_version(monkeypatch: pytest.MonkeyPatch, cache: Path, version: str) -> None:
    install(monkeypatch, version)
    bundle = whole_bundle()
    config = AdaptConfig(learning_rate=1e-2, entropy_margin=1.0)
    half = edgetta.load(bundle, "tensorrt", config=config, tensorrt=replace(CONFIG, precision="fp16"))
    full = edgetta.load(bundle, "torch", config=config)
    for seed in range(3):
        images = torch.rand(16, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
        result, expected = half.step(images), full.step(images)
        assert result.adapted
        assert torch.allclose(result.logits, expected.logits, rtol=0.05, atol=0.05)


def test_state_moves_between_engines(trt: Double, cache: Path, tmp_path: Path) -> None:
    runtime = edgetta.load(whole_bundle(), "tensorrt", tensorrt=CONFIG)
    runtime(IMAGES)
    runtime.save_state(tmp_path / "state")
    other = edgetta.load(whole_bundle(), "torch")
    other.load_state(tmp_path / "state")
    for name, tensor in runtime.network.state_dict().items():
        assert torch.equal(other.network.state_dict()[name], tensor.cpu())


def test_adaptable_biases_and_recompute(trt: Double, cache: Path, tmp_path: Path) -> None:
    bundle = write_small(tmp_path / "biases", small_model(adapt="bias"))
    for gradient in ("exact", "recompute"):
        runtime = edgetta.load(bundle, "tensorrt", gradient=gradient, tensorrt=CONFIG)  # type: ignore[arg-type]
        assert runtime.step(IMAGES).adapted
    engines = BundleEngines(read_bundle(bundle), CONFIG)
    assert "part1.backward" in [job.title for job in engines.jobs("exact")]


def test_auto_takes_tensorrt_where_engines_were_built(trt: Double, cache: Path) -> None:
    bundle = read_bundle(whole_bundle())
    assert engine_name("auto", bundle) == "onnxruntime" and not was_built(bundle)
    engines = BundleEngines(bundle, replace(CONFIG, precision="fp16", level=2))
    for job in engines.jobs():
        engines.prepare(job)
    engines.remember("auto")
    assert engine_name("auto", bundle) == "tensorrt" and was_built(bundle)
    builds = trt.builds
    opened = open_engine(bundle)
    assert isinstance(opened, BundleEngines)
    assert (opened.options.precision, opened.options.level, opened.options.batch) == ("fp16", 2, (1, 16, 32))
    opened.segment("part2", bundle.model.parts[1], "exact")
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
        runtime(torch.rand(33, 3, 16, 16))
    assert runtime(IMAGES).shape == (16, 5)


def test_a_rebuild_reaches_python_users_as_a_warning(
    trt: Double, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    edgetta.load(whole_bundle(), "tensorrt", tensorrt=CONFIG, check=False)
    edit_records(cache, tensorrt="10.2.0")
    with caplog.at_level(logging.WARNING):
        edgetta.load(whole_bundle(), "tensorrt", tensorrt=CONFIG, check=False)
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
    derived = derive_recipe(Recipe("wrn40_2", batch_norm=form))  # type: ignore[arg-type]
    network = derived.network()
    set_source_statistics(network, None, derived.adaptable.input_shape)
    write_bundle(tmp_path / "b", derived.adaptable, network, name="wrn40_2", config=AdaptConfig())
    bundle = read_bundle(tmp_path / "b")
    engines = BundleEngines(bundle, replace(CONFIG, precision="fp16"))
    for job in engines.jobs():
        prepared = engines.prepare(job)
        assert prepared.options.precision == "fp16" and max(prepared.errors.values()) < 2e-3
    result = self_test(bundle, build_network(bundle, engines), engines.source())
    assert max(result.source_error, result.logits_error) < 2e-3
    assert 1e-3 < result.gradient_error < 0.2
