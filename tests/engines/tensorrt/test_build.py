"""One engine built: with TensorRT-RTX in earnest, without a GPU, and with the interface of every other version."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from edgetta.bundle.program_jobs import PROGRAMS, job_of
from edgetta.engines.tensorrt import build
from edgetta.engines.tensorrt.build import BuildOptions, EngineBuildError, build_engine, free_workspace
from edgetta.engines.tensorrt.cache import TimingFile
from edgetta.engines.tensorrt.half import single_nodes, to_half
from edgetta.errors import MissingDependencyError, UsageError
from edgetta.export.onnx_writer import to_onnx
from edgetta.segments.graph import BATCH, Graph, GraphBuilder
from edgetta.segments.onnx_model import OnnxModel, parse_onnx
from tests.adaptation.backbones import small_programs
from tests.engines.tensorrt.double import VERSIONS, Double, install
from tests.engines.tensorrt.test_engine import part

OPTIONS = BuildOptions("fp32", (1, 4, 8))
NETWORKS = [("wide_resnet", "ema"), ("vgg", "source"), ("mobile", "batch"), ("gates", "source")]
NETWORKS += [("transformer", "source"), ("convnext", "source"), ("odds", "source")]


def model_of(graph: Graph, opset: int = 17) -> OnnxModel:
    outputs = [name for name in graph.outputs if name not in graph.inputs]
    return parse_onnx(to_onnx(graph, "graph", opset=opset).SerializeToString()).only(outputs)


def forward() -> OnnxModel:
    return model_of(part("vgg", "source", "meta").forward)


@pytest.fixture
def rtx() -> Any:
    return pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx: it builds without a GPU")


@pytest.fixture(params=VERSIONS)
def trt(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Double:
    return install(monkeypatch, request.param)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(("name", "policy"), NETWORKS)
def test_tensorrt_builds_every_direction(rtx: Any, name: str, policy: str, precision: Any) -> None:
    graphs = part(name, policy)
    opset = 17 if precision == "fp32" else 23
    for graph in (graphs.forward, graphs.backward, graphs.recompute):
        assert graph is not None
        built = build_engine(model_of(graph, opset), name, BuildOptions(precision, (1, 4, 8)))
        assert len(built.data) > 1000 and built.seconds > 0


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_tensorrt_builds_every_program(rtx: Any, name: str, precision: Any) -> None:
    """Meta-networks adapt: the weights of their convolutions are inputs."""
    job = job_of(small_programs(), name)
    built = build_engine(job.model(), name, BuildOptions(precision, (1, 4, 8), level=1))
    assert len(built.data) > 1000 and built.seconds > 0


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(("name", "policy"), [("wide_resnet", "ema"), ("mobile", "source"), ("transformer", "source")])
def test_tensorrt_builds_int8(rtx: Any, name: str, policy: str, precision: Any) -> None:
    graphs = part(name, policy, int8=True)
    for graph in (graphs.forward, graphs.backward, graphs.recompute):
        assert graph is not None
        assert len(build_engine(model_of(graph), name, BuildOptions(precision, (1, 4, 8))).data) > 1000


def test_float16_halves_the_weights(rtx: Any) -> None:
    builder = GraphBuilder()
    x = builder.input("x", (BATCH, 512, 4, 4))
    weight = builder.constant("w", torch.ones(512, 512, 3, 3))
    y = builder.emit("Conv", x, weight, strides=[1, 1], pads=[1, 1, 1, 1], dilations=[1, 1], group=1)
    model = model_of(builder.graph([y]))
    full, half = (len(build_engine(model, "wide", BuildOptions(p, (1, 4, 8))).data) for p in ("fp32", "fp16"))
    assert full > 4 * weight_count(model) > half > 2 * weight_count(model)


def weight_count(model: OnnxModel) -> int:
    return sum(array.size for array in model.weights.values())


def test_a_build_can_be_watched_and_ended(rtx: Any) -> None:
    seen: list[float] = []
    build_engine(forward(), "vgg", OPTIONS, watch=seen.append)
    assert seen == sorted(seen) and len(seen) > 10 and 0 < seen[0] < 0.5 < seen[-1] <= 1

    def end(share: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engine(forward(), "vgg", OPTIONS, watch=end)


def test_what_the_parser_refuses_is_told_in_one_line(rtx: Any) -> None:
    model = forward()
    node = model.nodes[0]
    strange = OnnxModel(
        (type(node)("Strange", "s", node.inputs, node.outputs), *model.nodes[1:]),
        model.weights,
        model.inputs,
        model.outputs,
        17,
        8,
    )
    with pytest.raises(
        EngineBuildError, match=r"TensorRT .* cannot read part1.forward: .*use --engine onnxruntime"
    ) as error:
        build_engine(strange, "part1.forward", OPTIONS)
    assert "\n" not in str(error.value)


def test_flags_of_each_version(trt: Double) -> None:
    """Types are in the graph from 10 on; before, float16 is a wish that some layers are spared."""
    model = model_of(part("wide_resnet", "ema").forward)
    build_engine(model, "part1.forward", BuildOptions("fp16", (1, 4, 8), level=1, aux_streams=2, tf32=True))
    flags = [(call[1], call[2][0].name) for call in trt.calls if call[1] in ("set_flag", "clear_flag")]
    precisions = [call for call in trt.calls if call[:2] == ("ILayer", "precision")]
    if trt.major < 10:
        assert flags == [("set_flag", "TF32"), ("set_flag", "FP16"), ("set_flag", "PREFER_PRECISION_CONSTRAINTS")]
        spared = {node.name for node in model.nodes if node.name in single_nodes(model) and node.op != "Greater"}
        assert len(precisions) == len(spared) > 0
        assert {call[2][0].name for call in precisions} == {"FLOAT"}
    else:
        assert flags == [("set_flag", "TF32")] and not precisions
    settings = {call[1]: call[2][0] for call in trt.calls if call[0] == "IBuilderConfig"}
    if trt.api["IBuilderConfig"].count("max_aux_streams"):
        assert (settings["builder_optimization_level"], settings["max_aux_streams"]) == (1, 2)
    shapes = next(call[2] for call in trt.calls if call[1] == "set_shape")
    assert [shape[0] for shape in shapes[1:]] == [1, 4, 8]


def test_int8_is_allowed_where_a_graph_is_quantised(trt: Double) -> None:
    """Before 10 it must be; later it stands in the graph. Its convolutions stay out of float16."""
    graphs = part("wide_resnet", "source", int8=True)
    for graph in (graphs.forward, graphs.backward):
        assert graph is not None
        trt.calls.clear()
        build_engine(model_of(graph), "part1", BuildOptions("fp16", (1, 4, 8)))
        flags = [call[2][0].name for call in trt.calls if call[1] == "set_flag"]
        assert ("INT8" in flags) == (trt.major < 10 and graph.quantised)
    half = to_half(model_of(graphs.forward))
    wide = {name for node in half.nodes if node.op == "DequantizeLinear" for name in node.outputs}
    convolutions = [node for node in half.nodes if node.op == "Conv"]
    assert convolutions and all(wide.issuperset(node.inputs[:2]) for node in convolutions)


def test_tf32_is_off_unless_wanted(trt: Double) -> None:
    build_engine(forward(), "vgg", OPTIONS)
    assert ("clear_flag", "TF32") in [(call[1], call[2][0].name) for call in trt.calls if call[1] == "clear_flag"]


def test_the_workspace_is_always_limited(trt: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "free_workspace", lambda: 123 << 20)
    assert build_engine(forward(), "vgg", OPTIONS).workspace == 123 << 20
    assert build_engine(forward(), "vgg", BuildOptions("fp32", (1, 4, 8), workspace=64 << 20)).workspace == 64 << 20
    assert [call[2][1] for call in trt.calls if call[1] == "set_memory_pool_limit"] == [123 << 20, 64 << 20]


def test_a_quarter_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    for available, expected in ((10, 16 << 20), (400 << 20, 100 << 20), (64 << 30, 1 << 30)):
        memory = type("Memory", (), {"available": available})
        monkeypatch.setattr(build, "parse_meminfo", lambda text, m=memory: m)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert free_workspace() == expected
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (200 << 20, 8 << 30))
    assert free_workspace() == 50 << 20


def test_kernel_times_are_kept_and_merged(trt: Double, tmp_path: Path) -> None:
    times = TimingFile(tmp_path / "times")
    build_engine(forward(), "vgg", OPTIONS, times)
    assert times.read() == b"time 1"
    original = trt.builds

    class Meanwhile(TimingFile):
        """Another process writes while this one builds."""

        def merge(self, combine: Any) -> None:
            self.path.write_bytes(b"time 1|time of another")
            super().merge(combine)

    build_engine(forward(), "vgg", OPTIONS, Meanwhile(tmp_path / "times"))
    assert trt.builds == original + 1
    assert times.read().split(b"|") == [b"time 1", b"time 2", b"time of another"]
    (tmp_path / "times").write_bytes(b"damaged")
    build_engine(forward(), "vgg", OPTIONS, times)
    assert times.read() == b"time 3"


def test_merging_waits_for_the_other(tmp_path: Path) -> None:
    """Two that merge at once: neither loses what the other wrote."""
    times = TimingFile(tmp_path / "times")
    inside, finish = threading.Event(), threading.Event()

    def slow(earlier: bytes) -> bytes:
        inside.set()
        assert finish.wait(30)
        return earlier + b"slow|"

    def quick(earlier: bytes) -> bytes:
        return earlier + b"quick|"

    first = threading.Thread(target=times.merge, args=(slow,))
    first.start()
    assert inside.wait(30)
    second = threading.Thread(target=times.merge, args=(quick,))
    second.start()
    finish.set()
    first.join(30)
    second.join(30)
    assert times.read() == b"slow|quick|"


@pytest.mark.parametrize(
    "said",
    [
        "Error Code 10: Internal Error (Could not find any implementation for node Conv_1 + Relu_2.)",
        "[defaultAllocator.cpp::allocate::31] Error Code 1: Cuda Runtime (out of memory)",
        "Requested amount of GPU memory (1073741824 bytes) could not be allocated: OutOfMemory",
    ],
)
def test_memory_that_ran_out_is_named(trt: Double, said: str) -> None:
    trt.build_errors = [said]
    with pytest.raises(
        EngineBuildError, match="mostly means that memory ran out: close other programs, lower the"
    ) as error:
        build_engine(forward(), "part2.backward", BuildOptions("fp32", (1, 4, 8), workspace=64 << 20))
    for words in ("part2.backward", "workspace of 64 MiB", "--batch", "--level 1", "--workspace", said[-20:]):
        assert words in str(error.value)


def test_a_workspace_that_is_too_small_grows_where_there_is_room(trt: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "Error Code 2: OutOfMemory (Requested size was 1077326848 bytes.)"
    monkeypatch.setattr(build, "free_memory", lambda: 4 << 30)
    trt.build_errors = [said]
    assert build_engine(forward(), "vgg", OPTIONS).workspace == 1077326848 * 5 // 4
    monkeypatch.setattr(build, "free_memory", lambda: 2 << 30)
    trt.build_errors = [said]
    with pytest.raises(EngineBuildError, match="within a workspace of 512 MiB, and 1027 MiB were asked for"):
        build_engine(forward(), "vgg", OPTIONS)
    monkeypatch.setattr(build, "free_memory", lambda: 8 << 30)
    trt.build_errors = [said]
    with pytest.raises(EngineBuildError, match="within a workspace of 64 MiB"):  # as asked for, and no more
        build_engine(forward(), "vgg", BuildOptions("fp32", (1, 4, 8), workspace=64 << 20))


def test_other_failures_say_what_tensorrt_said(trt: Double) -> None:
    trt.build_errors = ["Error Code 2: Internal Error (Assertion failed)"]
    with pytest.raises(EngineBuildError, match=r"made no engine for vgg: Error Code 2: .*use --engine onnxruntime"):
        build_engine(forward(), "vgg", OPTIONS)


def test_a_profile_that_is_refused(trt: Double) -> None:
    trt.fail.add("profile")
    with pytest.raises(EngineBuildError, match=r"refuses batches 1,4,8 for vgg; choose other numbers with --batch"):
        build_engine(forward(), "vgg", OPTIONS)


def test_a_driver_that_is_too_old(trt: Double) -> None:
    trt.fail.add("Builder")
    with pytest.raises(MissingDependencyError, match=r"cannot start \(CUDA initialization failure with error: 35\)"):
        build_engine(forward(), "vgg", OPTIONS)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"precision": "int8"}, "precision is one of fp32, fp16, not 'int8'"),
        ({"batch": (0, 1, 2)}, "not 0,1,2"),
        ({"batch": (1, 8, 4)}, "not 1,8,4"),
        ({"workspace": 1000}, "a workspace of 1000 bytes is too small"),
        ({"level": 6}, "level is 0 to 5"),
        ({"aux_streams": -1}, "auxiliary streams are 0 or more"),
    ],
)
def test_options_that_cannot_be(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        BuildOptions(**wrong)
