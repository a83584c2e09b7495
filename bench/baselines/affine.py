"""What TENT and its successors have in common: BatchNorm's weight and bias adapt, on stock autograd."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from edgetta.bench.baselines.batch_norm_statistics import batch_norms, with_batch_statistics
from edgetta.bench.baselines.entropy import entropy
from edgetta.memory.meter import stock_saved_bytes


class AffineMethod:
    """A copy of the model with the batch's own statistics, whose BatchNorms alone train.

    spared  parameters of modules whose name contains this stay as they are
    Raises `UsageError` for a model without BatchNorm.
    """

    def __init__(self, model: nn.Module, spared: str | None = None) -> None:
        self.model = with_batch_statistics(model).requires_grad_(False)
        adapting = {id(norm) for norm in batch_norms(self.model)}
        for name, module in self.model.named_modules():
            if id(module) in adapting and (spared is None or spared not in name):
                module.requires_grad_(True)
        self._start = copy.deepcopy(self.model.state_dict())

    @torch.enable_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) for images (N, C, H, W), with the graph that the backward needs."""
        logits: Tensor = self.model(images)
        return logits

    def parameters(self) -> Iterator[nn.Parameter]:
        """What adapts."""
        return (parameter for parameter in self.model.parameters() if parameter.requires_grad)

    def saved_bytes(self, images: Tensor) -> int:
        """Bytes that autograd keeps between forward and backward: each storage once, weights not counted."""
        return stock_saved_bytes(lambda: entropy(self.forward(images)).mean(), self.model.parameters())
