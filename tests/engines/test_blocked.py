"""Programs in blocks of channels against the same graphs in plain layout, pattern by pattern."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnxruntime
import pytest
import torch

from edgetta.engines.block_writer import DOMAIN
from edgetta.engines.blocked import Lowered, block_size, lower, to_blocks
from edgetta.segments.graph import BATCH, Graph, GraphBuilder
from edgetta.segments.torch_engine import Program

BLOCK = block_size()
needs_blocks = pytest.mark.skipif(not BLOCK, reason="ONNX Runtime's convolutions have no blocks on this machine")
C = 2 * BLOCK
CONV = {"strides": [1, 1], "pads": [1, 1, 1, 1], "dilations": [1, 1], "group": 1}
Build = Callable[[GraphBuilder, str], list[str]]


def weight(b: GraphBuilder, name: str, *shape: int) -> str:
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    return b.constant(name, torch.randn(shape, generator=generator) / max(1, np.prod(shape[1:])) ** 0.5)


def vector(b: GraphBuilder, name: str, channels: int) -> str:
    return b.input(name, (channels,))


def column(b: GraphBuilder, name: str, channels: int) -> str:
    return b.emit("Reshape", vector(b, name, channels), shape=[1, channels, 1, 1])


def conv(b: GraphBuilder, x: str, name: str = "w", outputs: int = 0, **changed: object) -> str:
    inputs = b.shape(x)[1]
    return b.emit("Conv", x, weight(b, name, outputs or inputs, inputs, 3, 3), **{**CONV, **changed})


def norm(b: GraphBuilder, x: str, name: str) -> str:
    channels = b.shape(x)[1]
    given = [vector(b, f"{name}.{kind}", channels) for kind in ("weight", "bias", "mean", "variance")]
    return b.emit("BatchNormalization", x, *given, epsilon=1e-5)


def images(b: GraphBuilder, x: str) -> list[str]:
    """Three channels: plain on one side, blocks on the other."""
    narrow = b.input("narrow", (BATCH, 3, 9, 7))
    y = b.emit("Conv", narrow, weight(b, "n", C, 3, 3, 3), weight(b, "nb", C), **{**CONV, "strides": [2, 2]})
    return [b.emit("Relu", y)]


def folded_norm(b: GraphBuilder, x: str) -> list[str]:
    y = b.emit("Conv", x, weight(b, "w", C, C, 3, 3), weight(b, "wb", C), **CONV)
    return [b.emit("Relu", norm(b, y, "n"))]


def residual_block(b: GraphBuilder, x: str) -> list[str]:
    y = b.emit("Relu", norm(b, conv(b, x, "one"), "n1"))
    y = norm(b, conv(b, y, "two"), "n2")
    z = b.emit("Relu", b.emit("Add", y, x))
    return [z, b.emit("Add", z, norm(b, z, "n3"))]


def depthwise(b: GraphBuilder, x: str) -> list[str]:
    y = b.emit("Conv", x, weight(b, "d", C, 1, 3, 3), **{**CONV, "group": C, "strides": [2, 2]})
    return [b.emit("Clip", norm(b, y, "n"), min=0.0, max=6.0)]


def statistics_and_masks(b: GraphBuilder, x: str) -> list[str]:
    """What stands at a BatchNorm whose weight adapts: a mask about its mean, its own moments."""
    made = conv(b, x)
    centred = b.emit("Sub", made, b.emit("Reshape", vector(b, "n.mean", C), shape=[1, C, 1, 1]))
    above = b.emit("Greater", made, b.emit("Reshape", "n.mean", shape=[1, C, 1, 1]))
    square = b.emit("ChannelMean", b.emit("Mul", centred, centred))
    given = [vector(b, f"n.{kind}", C) for kind in ("weight", "bias")]
    y = b.emit("Relu", b.emit("BatchNormalization", made, *given, "n.mean", vector(b, "n.variance", C), epsilon=1e-5))
    active = b.emit("Greater", y, b.scalar(0.0))
    return [conv(b, y, "w2"), b.emit("ChannelMean", centred), square, above, active]


def centred_sum(b: GraphBuilder, x: str) -> list[str]:
    """The same of a sum, which no convolution makes."""
    z = b.emit("Add", conv(b, x), x)
    mean = column(b, "m", C)
    return [b.emit("Greater", z, mean), b.emit("ChannelMean", b.emit("Sub", z, mean)), conv(b, z, "w2")]


def sums_and_columns(b: GraphBuilder, x: str) -> list[str]:
    """What the gradient through statistics is made of."""
    g, mask = conv(b, x), b.emit("Greater", conv(b, x, "m"), b.scalar(0.1))
    ones = b.emit("Masked", b.constant("one", torch.ones(1, 1, 1, 1)), mask)
    above = b.emit("Mul", b.emit("Masked", g, mask), ones)
    totals = [b.emit("ReduceSum", y, axes=axes, keepdims=0) for y in (above, g, ones) for axes in ([2, 3], [0, 2, 3])]
    below = b.emit("Sub", b.emit("Mul", g, column(b, "s", C)), column(b, "t", C))
    y = b.emit("Add", below, b.emit("Mul", ones, column(b, "u", C)))
    return [conv(b, y, "w3"), *totals, b.emit("ReduceMean", b.emit("Abs", y), axes=[1, 2, 3], keepdims=0)]


def adapting_weight(b: GraphBuilder, x: str) -> list[str]:
    w = b.input("kernel", (BLOCK, C, 3, 3))
    y = b.emit("Relu", norm(b, b.emit("Conv", x, w, **CONV), "n"))
    return [y, b.emit("ReduceMean", y, axes=[2, 3], keepdims=0)]


def pooled(b: GraphBuilder, x: str) -> list[str]:
    window = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 0}
    return [b.emit("MaxPool", b.emit("Relu", conv(b, x)), **window)]


def odd_channels(b: GraphBuilder, x: str) -> list[str]:
    """Into channels that fill no block, and back."""
    y = b.emit("Relu", norm(b, conv(b, x, "in", BLOCK + 4), "n"))
    y = b.emit("Conv", y, weight(b, "d", BLOCK + 4, 1, 3, 3), **{**CONV, "group": BLOCK + 4})
    mean = b.emit("Reshape", vector(b, "m", BLOCK + 4), shape=[1, BLOCK + 4, 1, 1])
    above = b.emit("Greater", y, mean)
    z = b.emit("Reciprocal", b.emit("Add", b.emit("Masked", b.emit("Exp", y), above), b.scalar(1.0)))
    few = conv(b, z, "few", 3)
    back = b.emit("Conv", few, weight(b, "back", BLOCK + 4, 3, 3, 3), **CONV)
    return [conv(b, b.emit("Add", back, z), "out", C), above, b.emit("ChannelMean", z), few]


def plain_between(b: GraphBuilder, x: str) -> list[str]:
    y = b.emit("Slice", conv(b, x), axes=[2, 3], starts=[0, 1], ends=[5, 6], steps=[1, 1])
    mask = b.emit("Greater", y, b.scalar(0.0))
    return [conv(b, b.emit("Masked", y, mask), "w2"), mask]


def padded_apart(b: GraphBuilder, x: str) -> list[str]:
    """What pads stands before the convolution, as networks from TensorFlow have it."""
    y = b.emit("Pad", conv(b, x), pads=[0, 0, 0, 0, 0, 0, 1, 1], value=0.0)
    return [conv(b, y, "w2", strides=[2, 2], pads=[0, 0, 0, 0])]


def constant_everywhere(b: GraphBuilder, x: str) -> list[str]:
    y = conv(b, x)
    return [b.emit("Add", b.emit("Mul", y, weight(b, "c", 1, C, 1, 1)), b.scalar(0.5)), b.emit("Neg", y)]


PATTERNS: list[Build] = [
    images,
    folded_norm,
    residual_block,
    depthwise,
    statistics_and_masks,
    centred_sum,
    sums_and_columns,
    adapting_weight,
    pooled,
    odd_channels,
    plain_between,
    padded_apart,
    constant_everywhere,
]


def graph_of(build: Build) -> Graph:
    b = GraphBuilder().sharing()
    x = b.input("x", (BATCH, C, 9, 7))
    return b.graph(build(b, x))


def inputs_of(graph: Graph, batch: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    made = {name: rng.standard_normal(graph.values[name].with_batch(batch)) for name in graph.inputs}
    return {
        name: (np.abs(array) + 0.5 if "variance" in name else array).astype(np.float32) for name, array in made.items()
    }


def run(lowered: Lowered, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    data = lowered.model.to_bytes()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    read = {entry.name for entry in session.get_inputs()}
    names = [value.name for value in lowered.model.outputs]
    return session.run(names, {name: array for name, array in inputs.items() if name in read})  # type: ignore[no-any-return]


@needs_blocks
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("build", PATTERNS, ids=lambda build: build.__name__)
def test_a_program_in_blocks_is_the_program(build: Build, batch: int) -> None:
    graph = graph_of(build)
    inputs = inputs_of(graph, batch)
    lowered = lower(graph, BLOCK)
    assert any(node.domain == DOMAIN for node in lowered.model.nodes)
    wanted = Program(graph).run({name: torch.from_numpy(array) for name, array in inputs.items()})
    for found, due in zip(run(lowered, inputs), wanted, strict=True):
        if found.dtype == np.bool_:
            assert (found != due.numpy()).mean() < 1e-3
        else:
            np.testing.assert_allclose(found, due.numpy(), rtol=1e-4, atol=1e-4)


@needs_blocks
def test_what_is_kept_may_stay_in_blocks_and_comes_back_so() -> None:
    b = GraphBuilder()
    y = b.emit("Relu", conv(b, b.input("x", (BATCH, C, 9, 7))))
    mask = b.emit("Greater", y, b.scalar(0.3))
    graph = b.graph([y, mask])
    inputs = inputs_of(graph, 2)
    plain, stays = run(lower(graph, BLOCK), inputs), lower(graph, BLOCK, (), [mask])
    assert set(stays.in_blocks) == {mask}
    found = run(stays, inputs)
    assert np.array_equal(found[0], plain[0]) and np.array_equal(found[1], to_blocks(plain[1], BLOCK))

    c = GraphBuilder()
    g, given = c.input("g", (BATCH, C, 9, 7)), c.input("given", (BATCH, C, 9, 7), "bool")
    back = c.graph([c.emit("Masked", conv(c, g), given)])
    gradient = {"g": inputs["x"]}
    (due,) = run(lower(back, BLOCK), {**gradient, "given": plain[1]})
    (got,) = run(lower(back, BLOCK, ["given"]), {**gradient, "given": found[1]})
    assert np.array_equal(got, due)


@needs_blocks
def test_a_norm_behind_a_convolution_and_what_follows_are_one_operator() -> None:
    made = [node.op for node in lower(graph_of(folded_norm), BLOCK).model.nodes if node.domain == DOMAIN]
    assert made == ["ReorderInput", "Conv", "ReorderOutput"]


@needs_blocks
def test_a_residual_block_enters_and_leaves_blocks_once() -> None:
    made = [node.op for node in lower(graph_of(residual_block), BLOCK).model.nodes]
    assert made.count("ReorderInput") == 1 and made.count("ReorderOutput") == 2  # two outputs
    assert made.count("Relu") == 0  # the convolution with the shortcut's addition has it
    assert made.count("Add") == made.count("Sqrt")  # of epsilons
