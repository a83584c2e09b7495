"""The same ONNX model, written so that ONNX Runtime keeps a residual stream in the layout of its convolutions.

On x86 its convolutions work on channels in blocks, and it keeps a value in blocks from one to the next, through the
constant BatchNorms, the additions and the ReLUs between them. But no addition is done in blocks where one side is an
input of the graph, in plain order: a segment that begins with a block's shortcut then leaves the blocks at every
addition that follows.
"""

from __future__ import annotations

import platform
from collections.abc import Collection
from dataclasses import replace

import numpy as np

from edgetta.segments.onnx_model import OnnxModel, OnnxNode, integer

CHANNELS = 16
"""Blocks are of 8 or 16 channels: inputs whose channels do not fill them are left as they are."""


def in_blocks(model: OnnxModel, machine: str = "") -> OnnxModel:
    """The same model, in which inputs enter the blocks by a convolution that changes nothing, where that pays.

    It is a depthwise one of size 1 with weight 1, exact, for those who read the input as a constant BatchNorm or
    add a convolution's output to it.

    machine  as `platform.machine()` names it, the default; other than x86 ones have no blocks
    """
    if (machine or platform.machine()).lower() not in ("x86_64", "amd64"):
        return model
    made = {name: node.op for node in model.nodes for name in node.outputs}
    for value in model.inputs:
        if len(value.shape) != 4 or not value.shape[1] or value.shape[1] % CHANNELS:
            continue
        readers = [node for node in model.nodes if _gains(node, value.name, made, model.weights)]
        if readers:
            model = _entering(model, value.name, value.shape[1], readers)
    return model


def _gains(node: OnnxNode, name: str, made: dict[str, str], weights: Collection[str]) -> bool:
    if node.op == "BatchNormalization":
        return node.inputs[0] == name and all(other in weights for other in node.inputs[1:])
    return node.op == "Add" and name in node.inputs and any(made.get(other) == "Conv" for other in node.inputs)


def _entering(model: OnnxModel, name: str, channels: int, readers: Collection[OnnxNode]) -> OnnxModel:
    entered, ones = f"{name}.blocks", f"{name}.ones"
    attributes = {"group": integer("group", channels)}
    first = OnnxNode("Conv", f"Conv_{entered}", (name, ones), (entered,), attributes)
    renamed = {
        node.name: replace(node, inputs=tuple(entered if n == name else n for n in node.inputs)) for node in readers
    }
    return replace(
        model,
        nodes=(first, *(renamed.get(node.name, node) for node in model.nodes)),
        weights={**model.weights, ones: np.ones((channels, 1, 1, 1), np.float32)},
    )
