"""The ANALYTIC count that papers print as memory. Nothing here is measured, and no process needs just this much.

The rule is that of TinyTL's profiler (Cai et al., NeurIPS 2020), as EcoTTA's tables follow it: weights that train at
four bytes, frozen ones at one; of activations the input of every layer whose weight trains, at four bytes an element,
and one bit per element of every ReLU module. A frozen convolution or BatchNorm keeps nothing. Gradients, optimizer and
working memory do not count. It reproduces the published figures (`tests/memory/test_analytic.py`); stock autograd
keeps several times as much (`meter.stock_saved_bytes`), and `peak.py` measures what a process takes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgetta.adaptation.meta_network import MetaSpec
from edgetta.errors import UsageError

Method = Literal["tent", "eata", "cotta", "ecotta"]
_WEIGHTED = (nn.Conv2d, nn.Linear, _BatchNorm, nn.LayerNorm, nn.GroupNorm)
_ONE_BIT = (nn.ReLU, nn.ReLU6, nn.LeakyReLU)
_SMOOTH = (nn.SiLU, nn.GELU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid)


def analytic_bytes(
    method: Method,
    model: nn.Module,
    input_shape: tuple[int, int, int],
    batch: int,
    cuts: Sequence[str] = (),
    metas: Sequence[MetaSpec] = (),
) -> int:
    """Bytes of a step of `method` by the literature's rule: weights and saved activations of `batch` images.

    tent, eata   BatchNorm's weight and bias train
    cotta        everything trains, and two more copies of the weights (teacher and source) are held in float32
    ecotta       nothing of the model trains; `metas` beside its parts do, cut as `cuts` says (one name more)
    The ReLU of a meta-network does not count: the published code calls a function there, which the profiler does not
    see; functional ReLUs of the model are not seen either.
    Raises `UsageError` for another method, and for cuts that the model does not have or that do not fit `metas`.
    """
    if method not in get_args(Method):
        raise UsageError(f"there is no analytic count of {method!r}; choose one of {', '.join(get_args(Method))}")
    trains: tuple[type[nn.Module], ...] = {"cotta": _WEIGHTED, "ecotta": ()}.get(method, (_BatchNorm,))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(p.numel() for m in model.modules() if isinstance(m, trains) for p in m.parameters(recurse=False))
    weights = 4 * trained + (parameters - trained)
    saved, outputs = _saved_per_image(model, input_shape, trains, cuts)
    if method == "cotta":
        weights += 2 * 4 * parameters
    if method == "ecotta":
        if len(cuts) != len(metas) + 1:
            raise UsageError(f"{len(cuts)} cuts make {len(cuts) - 1} parts, but there are {len(metas)} meta-networks")
        for before, after, spec in zip(cuts, cuts[1:], metas, strict=False):
            # The convolution's input, and those of the two BatchNorms.
            saved += 4 * (math.prod(outputs[before]) + 2 * math.prod(outputs[after]))
            weights += 4 * (spec.in_channels * spec.out_channels * spec.kernel**2 + 4 * spec.out_channels)
    return math.ceil(batch * saved) + weights


def _saved_per_image(
    model: nn.Module, input_shape: tuple[int, int, int], trains: tuple[type[nn.Module], ...], cuts: Sequence[str]
) -> tuple[float, dict[str, tuple[int, ...]]]:
    """Bytes that the model's own layers keep for one image, and the shapes of the outputs of `cuts`."""
    saved = 0.0
    outputs: dict[str, tuple[int, ...]] = {}

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal saved
        if isinstance(module, _ONE_BIT):
            saved += inputs[0].numel() / 8
        elif isinstance(module, (*trains, *_SMOOTH)):
            saved += 4 * inputs[0].numel()

    modules = dict(model.named_modules())
    missing = [name for name in cuts if name not in modules]
    if missing:
        raise UsageError(f"the model has no module {missing[0]!r} to cut after")
    hooks = [
        m.register_forward_hook(count) for m in modules.values() if isinstance(m, (*_WEIGHTED, *_ONE_BIT, *_SMOOTH))
    ]
    for name in cuts:
        hooks.append(
            modules[name].register_forward_hook(
                lambda module, inputs, output, name=name: outputs.__setitem__(name, tuple(output.shape))  # type: ignore[misc]
            )
        )
    try:
        with torch.no_grad():
            model(torch.zeros(1, *input_shape))
    finally:
        for hook in hooks:
            hook.remove()
    return saved, outputs
