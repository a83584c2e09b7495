"""Measure what content explains of a network's moments, on unlabelled source images."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from edgetta.adaptation.content import ContentModel, fit_content
from edgetta.adaptation.normaliser import softmax
from edgetta.adaptation.signals import image_signals
from edgetta.engines.contract import ProgramSet
from edgetta.segments.graph import Graph
from edgetta.segments.torch_engine import Program

MOST_IMAGES = 2000
"""More source images say nothing more."""


def measure_content(programs: ProgramSet, batches: Iterable[Tensor]) -> ContentModel | None:
    """The content model of a network as shipped; None where it has no BatchNorm.

    batches   source images (N, C, H, W) in [0, 1], unlabelled; `MOST_IMAGES` of them at most are looked at

    Raises `ValueError` for fewer than 2 images, or where moments are not finite.
    """
    if not programs.statistics.size:
        return None
    inputs = layer_inputs(programs.predict, list(programs.statistics.shapes))
    graph = replace(programs.predict, outputs=(programs.predict.outputs[0], *dict.fromkeys(inputs.values())))
    program = Program(graph)
    given = {name: torch.from_numpy(array) for name, array in programs.parameters.split(programs.shipped).items()}
    given |= {f"mean.{n}": torch.from_numpy(a) for n, a in programs.statistics.split(programs.source.mean).items()}
    given |= {
        f"variance.{n}": torch.from_numpy(a) for n, a in programs.statistics.split(programs.source.variance).items()
    }
    given = {name: tensor for name, tensor in given.items() if name in graph.inputs}
    logits, means, variances, signals = [], [], [], []
    seen = 0
    for images in batches:
        chosen = images[: MOST_IMAGES - seen]
        if not len(chosen):
            break
        seen += len(chosen)
        with torch.no_grad():
            answers, *moments = program.run({**given, "x": chosen}, _moments_of(graph.outputs[0]))
        by_input = dict(zip(graph.outputs[1:], moments, strict=True))
        found = torch.cat([by_input[name] for name in inputs.values()], 2).numpy()  # (2, N, T)
        logits.append(answers.numpy())
        means.append(found[0])
        variances.append(found[1])
        signals.append(image_signals(chosen.numpy()))
    if not seen:
        raise ValueError("no source images were given")
    made, mean, variance, signal = (np.concatenate(part) for part in (logits, means, variances, signals))
    return fit_content(softmax(made), mean, variance, signal)


def layer_inputs(graph: Graph, layers: list[str]) -> dict[str, str]:
    """Layer -> the value that its BatchNorm normalises."""
    found = {
        node.inputs[3].removeprefix("mean."): node.inputs[0]
        for node in graph.nodes
        if node.op == "BatchNormalization" and node.inputs[3].startswith("mean.")
    }
    return {layer: found[layer] for layer in layers}


def _moments_of(logits: str) -> Callable[[str, Tensor], Tensor]:
    """Replace every value but the logits by the mean and variance of each image and channel, (2, N, C), at once."""

    def keep(name: str, tensor: Tensor) -> Tensor:
        if name == logits:
            return tensor
        if tensor.dim() == 2:  # one number per channel: no variance within an image
            return torch.stack([tensor, torch.zeros_like(tensor)])
        variance, mean = torch.var_mean(tensor.flatten(2), 2, unbiased=False)
        return torch.stack([mean, variance])

    return keep
