"""What a torch optimizer divides the gradient by, and the rate at which it becomes unstable."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edgetta.errors import UsageError
from edgetta.offline.curvature import DataOperator, LossSurface
from edgetta.offline.learning_rate.rates import (
    gradient_descent_rate,
    heavy_ball_rate,
    moving_average_rate,
    nesterov_rate,
)

SQUARES = ("max_exp_avg_sq", "exp_avg_sq", "square_avg", "sum")
"""Where Adam with AMSGrad, Adam and its kin, RMSprop, and Adagrad keep their squared gradients."""
NOT_SCALED = (torch.optim.LBFGS, torch.optim.Rprop, torch.optim.Adadelta)
"""Optimizers whose step is not rate times a fixed linear map of the gradient: no eigenvalue bounds their rate."""


def divides(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer divides by the root of squared gradients."""
    return "betas" in optimizer.param_groups[0] or isinstance(optimizer, (torch.optim.RMSprop, torch.optim.Adagrad))


def divisor(optimizer: torch.optim.Optimizer, surface: LossSurface, batches: Sequence[DataOperator]) -> Tensor | None:
    """What the optimizer divides the gradient by [P]; None where it divides by nothing.

    The root of the optimizer's own squared gradients (bias-corrected for Adam and its kin) plus its damping `eps`;
    before its first step, of the mean squared gradients of `batches`.
    """
    if not divides(optimizer):
        return None
    first = optimizer.param_groups[0]
    states = [optimizer.state.get(parameter, {}) for parameter in surface.parameters.values()]
    keys = [next((key for key in SQUARES if key in state), None) for state in states]
    steps = [float(state.get("step", 0)) for state in states]
    if any(key is None for key in keys) or min(steps) < 1:
        squares = torch.stack([batch.gradient().square() for batch in batches]).mean(dim=0)
    else:
        squares = surface.flatten([state[key] for state, key in zip(states, keys, strict=True)])
        if "betas" in first:
            squares = squares / (1 - first["betas"][1] ** min(steps))
    # A gradient that was zero throughout would be divided by eps alone and its curvature blown up: floor it.
    root = squares.sqrt()
    return root + max(float(first.get("eps", 0.0)), 1e-6 * float(root.max()), 1e-30)


def threshold_rate(optimizer: torch.optim.Optimizer, eigenvalue: float) -> float:
    """The rate at which the optimizer becomes unstable on a quadratic of this largest (preconditioned) curvature.

    Raises:
        UsageError: a step of the optimizer is no multiple of its rate.
    """
    if isinstance(optimizer, NOT_SCALED):
        raise UsageError(
            f"{type(optimizer).__name__} has no learning rate that curvature bounds; use SGD, RMSprop, Adagrad or one "
            "of Adam's kin"
        )
    group = optimizer.param_groups[0]
    if "betas" in group:
        return moving_average_rate(eigenvalue, group["betas"][0])
    momentum = group.get("momentum", 0.0)
    if group.get("nesterov"):
        return nesterov_rate(eigenvalue, momentum)
    if momentum and group.get("dampening"):
        # torch's dampening d scales the gradient that enters the momentum.
        return heavy_ball_rate(eigenvalue, momentum) / (1 - group["dampening"])
    return heavy_ball_rate(eigenvalue, momentum) if momentum else gradient_descent_rate(eigenvalue)


def coupled_decay(optimizer: torch.optim.Optimizer) -> float:
    """Weight decay that adds a multiple of the identity to the curvature: SGD's; zero for optimizers that divide."""
    if divides(optimizer):
        return 0.0
    return float(max(group.get("weight_decay", 0.0) for group in optimizer.param_groups))
