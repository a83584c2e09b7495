"""The entropy of predictions, in torch, for methods whose gradients autograd makes."""

from __future__ import annotations

import torch
from torch import Tensor


def entropy(logits: Tensor) -> Tensor:
    """H(y) of the softmax of (N, C) logits, in nats: (N,)"""
    log_probabilities = torch.log_softmax(logits, 1)
    return -(log_probabilities.exp() * log_probabilities).sum(1)
