"""Largest stable rates and minimal damping that follow from an eigenvalue.

Textbook facts for gradient descent on a quadratic of largest curvature lambda. That they are read at the eigenvalue
of the batch, lambda'(b), is how the paper (Granziol, Zohren and Roberts, JMLR 23(173), 2022) derives its "maximal
learning rates as a function of batch size", as far as its abstract tells; its text could not be read here.
"""

from __future__ import annotations

import math

from torch import Tensor

from edgetta.errors import UsageError
from edgetta.offline.curvature import DataOperator
from edgetta.offline.curvature.lanczos import dot64


def gradient_descent_rate(eigenvalue: float) -> float:
    """2 / lambda."""
    return 2 / _positive(eigenvalue)


def heavy_ball_rate(eigenvalue: float, momentum: float) -> float:
    """2 (1 + beta) / lambda: torch's SGD with momentum and no dampening."""
    return 2 * (1 + _share(momentum)) / _positive(eigenvalue)


def mean_square_rate(limit: float, noise: float, batch_size: float, momentum: float = 0.0) -> float:
    """The rate above which the noise of batches feeds itself under SGD with momentum; infinite without noise (ours).

    On a quadratic the gradient noise of a batch grows with the excess loss E: about 2 E H / b for samples whose
    gradients are nearly Gaussian. Heavy ball turns it into an excess of G E where, over the eigenvalues l of H,

        G = rate (1 + beta) / (1 - beta) / b * sum l / (2 (1 + beta) - rate l),

    and the loss explodes in mean square once G exceeds 1. Here H is its largest eigenvalue, `limit`, and a flat rest
    of trace b * `noise`, the part of the batch's largest eigenvalue that falls as 1/b. Where noise rules the rate
    is 2 (1 - beta) / noise: linear in the batch size, and by (1 - beta) / (1 + beta) below what the eigenvalue of a
    batch alone would bear. Momentum therefore pays only for batches beyond crossover * (1 + beta) / (1 - beta). That
    the exact threshold of SGD is one in mean square is known (Mulayoff and Michaeli, arXiv 2306.07850, abstract).

    Args:
        limit: largest eigenvalue of very large batches.
        noise: largest eigenvalue of batches of this size, minus `limit`.
        batch_size: b.
        momentum: beta.
    """
    if noise <= 0:
        return math.inf
    pole = 2 * (1 + _share(momentum)) / _positive(limit)
    gain = (1 + momentum) / (1 - momentum)
    below, above = 0.0, pole
    for _ in range(60):  # G grows from 0 to infinity on the way to the pole
        rate = (below + above) / 2
        grown = rate * gain * (limit / batch_size / (limit * (pole - rate)) + noise / (2 * (1 + momentum)))
        below, above = (rate, above) if grown < 1 else (below, rate)
    return below


def nesterov_rate(eigenvalue: float, momentum: float) -> float:
    """(2 + 2 beta) / ((1 + 2 beta) lambda): torch's SGD with nesterov=True."""
    return 2 * (1 + _share(momentum)) / ((1 + 2 * momentum) * _positive(eigenvalue))


def moving_average_rate(eigenvalue: float, momentum: float) -> float:
    """2 (1 + beta) / ((1 - beta) lambda): descent along an exponential moving average of gradients, as Adam's.

    With lambda of the preconditioned curvature this is the threshold of Adam with a settled preconditioner (Cohen et
    al., "Adaptive Gradient Methods at the Edge of Stability", arXiv 2207.14484; recalled, not read again).
    """
    return 2 * (1 + _share(momentum)) / ((1 - momentum) * _positive(eigenvalue))


def square_root_rate(reference_rate: float, reference_batch: float, batch_size: float, crossover: float) -> float:
    """A rate measured at one batch size, carried to another by the square root of the ratio.

    The square-root law for adaptive methods is the paper's (abstract). That the rate stops to grow at a crossover
    batch size, above which noise no longer limits it, is our addition.
    """
    _positive(reference_rate)
    return reference_rate * math.sqrt(min(batch_size, crossover) / min(reference_batch, crossover))


def gauss_newton_damping(rate: float, batch_eigenvalue: float, eigenvalue: float) -> float:
    """Minimal damping of a step -rate (G + damping)^-1 g: rate (lambda'(b) - lambda) / 2.

    Directions that the estimate of G takes for flat carry curvature of the batch's noise, lambda'(b) - lambda; a step
    there is stable where rate * noise < 2 * damping. In the multiplicative form the noise is c/b, so that damping is
    proportional to rate over batch size, which is what an earlier abstract of the paper (arXiv 2006.09092v1) states
    without its constant. The derivation and the constant 1/2 are ours.
    """
    return 0.5 * _positive(rate) * max(batch_eigenvalue - eigenvalue, 0.0)


def divergence_rate(fisher: DataOperator, gradient: Tensor, budget: float) -> float:
    """The rate at which a step along the gradient changes the predictions by a KL divergence of `budget` on average.

    sqrt(2 budget / (g^T F g)), with F the Fisher matrix: the Gauss-Newton matrix of cross-entropy. For objectives such
    as entropy, whose Hessian is indefinite, no eigenvalue guards against collapse; this does, to second order (ours).

    Args:
        fisher: a `GaussNewtonOperator` of cross-entropy.
        gradient: of the objective that is descended [P].
        budget: nats per sample.
    """
    curvature = dot64(gradient.to(fisher.device, fisher.dtype), fisher.product(gradient))
    if curvature <= 0:
        raise UsageError("the step changes no prediction, so it has no bound by divergence; check the gradient")
    return math.sqrt(2 * _positive(budget) / curvature)


def _positive(value: float) -> float:
    if not value > 0 or math.isinf(value):
        raise UsageError(f"{value} is not positive and finite, so no largest stable rate follows from it")
    return value


def _share(momentum: float) -> float:
    if not 0 <= momentum < 1:
        raise UsageError(f"momentum {momentum} is not in [0, 1)")
    return momentum
