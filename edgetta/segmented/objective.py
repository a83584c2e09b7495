"""Objectives and their gradients with respect to the logits, written out.

A value per objective: `value` (for the log), `gradient` (N, C) or None when there is nothing to learn from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Objective:
    """An objective's value and its gradient with respect to the logits (None when no sample counts)."""

    value: float
    gradient: Tensor | None
    kept: int  # samples that count
    entropy: Tensor  # (N,) of every sample's prediction, in nats


def entropy(logits: Tensor) -> Tensor:
    """H(y) of the softmax of (N, C) logits, in nats: (N,)"""
    log_probabilities = torch.log_softmax(logits, 1)
    return -(log_probabilities.exp() * log_probabilities).sum(1)


def filtered_entropy(logits: Tensor, margin: float = 0.4) -> Objective:
    """Mean entropy of the samples whose entropy lies below `margin * ln C` (EcoTTA, equation 2; the filter is EATA's).

    dH/dz_j = -p_j (log p_j + H).
    """
    log_probabilities = torch.log_softmax(logits, 1)
    probabilities = log_probabilities.exp()
    entropies = -(probabilities * log_probabilities).sum(1)
    confident = entropies < margin * math.log(logits.shape[1])
    kept = int(confident.sum())
    if kept == 0:
        return Objective(0.0, None, 0, entropies)
    gradient = -probabilities * (log_probabilities + entropies[:, None])
    gradient *= confident[:, None].to(gradient.dtype) / kept
    return Objective(float(entropies[confident].mean()), gradient, kept, entropies)


def cross_entropy(logits: Tensor, labels: Tensor) -> Objective:
    """Mean cross-entropy with the labels (N,), for warm-up on source data."""
    log_probabilities = torch.log_softmax(logits, 1)
    probabilities = log_probabilities.exp()
    count = logits.shape[0]
    rows = torch.arange(count, device=logits.device)
    value = -log_probabilities[rows, labels].mean()
    entropies = -(probabilities * log_probabilities).sum(1)
    probabilities[rows, labels] -= 1.0
    return Objective(float(value), probabilities.div_(count), count, entropies)
