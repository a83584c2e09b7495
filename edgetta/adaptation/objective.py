"""Objectives and their gradients with respect to the logits, written out. Arrays are numpy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Objective:
    """An objective's value and its gradient with respect to the logits (N, C), zero when no sample counts."""

    value: float  # nan when no sample counts
    gradient: Array
    kept: int  # samples that count


def log_softmax(logits: Array) -> Array:
    """(N, C) in the logits' own precision."""
    centred = logits - logits.max(1, keepdims=True)
    found: Array = centred - np.log(np.exp(centred).sum(1, keepdims=True))
    return found


def entropy(logits: Array) -> Array:
    """H(y) of the softmax of (N, C) logits, in nats: (N,)"""
    log_probabilities = log_softmax(logits)
    found: Array = -(np.exp(log_probabilities) * log_probabilities).sum(1)
    return found


def filtered_entropy(logits: Array, margin: float = 0.4, weights: Array | None = None) -> Objective:
    """Mean entropy of the samples whose entropy lies below `margin * ln C` (EcoTTA, equation 2; the filter is EATA's).

    dH/dz_j = -p_j (log p_j + H).

    weights   (N,) of at least 0: how much each sample counts beside the others; all the same when None
    """
    log_probabilities = log_softmax(logits)
    probabilities = np.exp(log_probabilities)
    entropies = -(probabilities * log_probabilities).sum(1)
    counts = entropies < margin * math.log(logits.shape[1])
    if weights is not None:
        counts &= weights > 0
    kept = int(counts.sum())
    if kept == 0:
        return Objective(math.nan, np.zeros_like(logits), 0)
    share = np.where(counts, 1.0 if weights is None else weights, 0.0)
    share /= share.sum()
    gradient = -probabilities * (log_probabilities + entropies[:, None]) * share[:, None]
    return Objective(float((entropies * share).sum()), gradient.astype(logits.dtype), kept)


def mirrored(logits: Array, other: Array) -> Array:
    """The logarithm of the mean probabilities of images' and of their mirror images' logits (N, C)."""
    found: Array = np.logaddexp(log_softmax(logits), log_softmax(other)) - math.log(2)
    return found


def divergence(before: Array, after: Array) -> float:
    """Mean Kullback-Leibler divergence, in nats per image, of the predictions `after` from those `before` (N, C)."""
    old, new = log_softmax(before.astype(np.float64)), log_softmax(after.astype(np.float64))
    return float((np.exp(old) * (old - new)).sum(1).mean())
