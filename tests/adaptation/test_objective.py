"""Objectives against autograd in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from edgetta.adaptation.objective import divergence, entropy, filtered_entropy, mirrored


def logits(count: int = 12, classes: int = 5, scale: float = 3.0) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, classes)) * scale


@pytest.mark.parametrize("weights", [None, np.linspace(0.0, 1.0, 12)])
def test_the_gradient_is_autograds(weights: np.ndarray | None) -> None:
    given = logits()
    found = filtered_entropy(given, 0.4, weights)
    z = torch.tensor(given, requires_grad=True)
    p = z.softmax(1)
    h = -(p * p.log()).sum(1)
    counts = h.detach() < 0.4 * math.log(5)
    share = counts.double() if weights is None else torch.tensor(weights) * counts
    value = (h * share).sum() / share.sum()
    value.backward()
    assert found.kept == int((share > 0).sum()) and 0 < found.kept < 12
    assert found.value == pytest.approx(float(value.detach()), rel=1e-12)
    np.testing.assert_allclose(found.gradient, z.grad.numpy(), rtol=0, atol=1e-14)


def test_where_no_image_is_sure_there_is_nothing_to_learn() -> None:
    found = filtered_entropy(np.zeros((3, 4), np.float32), 0.4)
    assert found.kept == 0 and math.isnan(found.value) and not found.gradient.any()


def test_an_image_without_weight_does_not_count() -> None:
    sure = np.array([[9.0, 0, 0], [0, 9.0, 0]])
    weighed = filtered_entropy(sure, 0.4, np.array([1.0, 0.0]))
    alone = filtered_entropy(sure[:1], 0.4)
    assert weighed.kept == 1 and weighed.value == pytest.approx(alone.value)
    assert not weighed.gradient[1].any()


def test_entropy_of_even_logits_is_that_of_all_classes() -> None:
    np.testing.assert_allclose(entropy(np.zeros((2, 7))), math.log(7))


def test_large_logits_overflow_nothing() -> None:
    huge = np.array([[1e4, -1e4, 0.0]], np.float32)
    assert np.isfinite(filtered_entropy(huge).gradient).all() and entropy(huge)[0] == 0


def test_mirrored_is_the_mean_of_probabilities() -> None:
    a, b = logits(4), logits(4) * 0.5
    mean = (torch.tensor(a).softmax(1) + torch.tensor(b).softmax(1)) / 2
    np.testing.assert_allclose(np.exp(mirrored(a, b)), mean.numpy(), rtol=1e-12)


def test_divergence_is_that_of_torch() -> None:
    a, b = logits(6), logits(6) + 0.1 * np.random.default_rng(1).standard_normal((6, 5))
    expected = torch.nn.functional.kl_div(
        torch.tensor(b).log_softmax(1), torch.tensor(a).log_softmax(1), log_target=True, reduction="batchmean"
    )
    assert divergence(a, b) == pytest.approx(float(expected), rel=1e-9)
