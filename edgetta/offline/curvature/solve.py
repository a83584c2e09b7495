"""Damped systems of a curvature matrix, by conjugate gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from edgetta.errors import UsageError
from edgetta.offline.curvature.data_operator import LinearOperator
from edgetta.offline.curvature.errors import CurvatureError
from edgetta.offline.curvature.lanczos import dot64, norm64


def solve_damped(
    operator: LinearOperator, right: Tensor, damping: float, *, iterations: int = 50, tolerance: float = 1e-3
) -> Tensor:
    """Solve (A + damping) x = right for a positive semi-definite A.

    Args:
        operator: A.
        right: [P].
        damping: positive.
        iterations: at most; what has been reached by then is returned.
        tolerance: stop where the residual is this much of `right`.

    Raises:
        CurvatureError: A + damping has a negative eigenvalue.
    """
    if damping <= 0:
        raise UsageError(f"damping {damping} is not positive")
    solution = torch.zeros_like(right)
    residual = right.clone()
    direction = residual.clone()
    squared = dot64(residual, residual)
    goal = tolerance * norm64(right)
    for _ in range(iterations):
        if squared**0.5 <= goal:
            break
        product = operator.product(direction) + damping * direction
        bend = dot64(direction, product)
        if bend <= 0:
            raise CurvatureError("the damped matrix is not positive; use the Gauss-Newton matrix, or more damping")
        step = squared / bend
        solution += step * direction
        residual -= step * product
        previous, squared = squared, dot64(residual, residual)
        direction = residual + (squared / previous) * direction
    return solution
