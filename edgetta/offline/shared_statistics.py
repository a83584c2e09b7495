"""BatchNorm over processes: each has a share of the batch, and all normalise by the statistics of the whole.

torch's SyncBatchNorm does this on GPUs only. With it many processes train what one trains, up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgetta.offline.curvature import Processes


@contextmanager
def shared_statistics(model: nn.Module, processes: Processes) -> Iterator[None]:
    """Within the block every BatchNorm in training mode uses the statistics of all processes' images together.

    Every process must run the same forward passes, each on one image at least. Alone, nothing changes.
    """
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)] if processes.together else []
    earlier = [layer.__dict__.get("forward") for layer in layers]
    try:
        for layer in layers:
            layer.forward = _shared(layer, layer.forward)  # type: ignore[method-assign]
        yield
    finally:
        for layer, own in zip(layers, earlier, strict=True):
            if own is None:
                layer.__dict__.pop("forward", None)
            else:
                layer.forward = own  # type: ignore[method-assign]


class _Sum(torch.autograd.Function):
    """The sum over processes. What one process adds is in every other's result: gradients are summed as well."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total


def _shared(layer: _BatchNorm, alone: Any) -> Any:
    def forward(x: Tensor) -> Tensor:
        if not layer.training:
            return alone(x)
        axes = [axis for axis in range(x.dim()) if axis != 1]
        shape = [1, -1, *[1] * (x.dim() - 2)]
        values = x if x.dtype == torch.float64 else x.float()
        held = values.new_tensor([values.numel() // values.shape[1]])
        sums: Tensor = _Sum.apply(torch.cat([values.sum(axes), held]))
        count, mean = sums[-1].detach(), sums[:-1] / sums[-1].detach()
        squares: Tensor = _Sum.apply((values - mean.view(shape)).square().sum(axes))
        variance = squares / count
        _remember(layer, mean.detach(), squares.detach() / (count - 1).clamp_min(1))
        out = (values - mean.view(shape)) * (variance + layer.eps).rsqrt().view(shape)
        if layer.affine:
            out = out * layer.weight.view(shape) + layer.bias.view(shape)
        return out.to(x.dtype)

    return forward


@torch.no_grad()
def _remember(layer: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """Move the running statistics, as torch does."""
    if layer.running_mean is None or layer.running_var is None or layer.num_batches_tracked is None:
        return
    layer.num_batches_tracked.add_(1)
    momentum = 1 / float(layer.num_batches_tracked) if layer.momentum is None else layer.momentum
    layer.running_mean.lerp_(mean.to(layer.running_mean), momentum)
    layer.running_var.lerp_(variance.to(layer.running_var), momentum)
