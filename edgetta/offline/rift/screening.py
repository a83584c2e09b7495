"""A cheap guess of criticality from gradient and curvature, to look closely only where it pays.

Within its ball the robust loss of one module is taken for a quadratic function. Lanczos from the gradient (with the
block of the Hessian that belongs to the module) gives the plane or little more in which that function rises fastest;
its highest point in the ball is then a problem of a few numbers.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgetta.offline.curvature import HessianOperator, LossSurface, run_lanczos
from edgetta.offline.rift.robust_loss import AdversarialSet
from edgetta.offline.rift.suffix import Suffix
from edgetta.offline.rift.weight_groups import WeightGroup


def quadratic_rise(
    model: nn.Module,
    group: WeightGroup,
    gradient: Mapping[str, Tensor | None],
    data: AdversarialSet,
    epsilon: float,
    *,
    products: int,
    limit: int,
) -> float:
    """The largest rise of the quadratic model of the loss in a module's ball, over a Krylov space of its gradient.

    Args:
        model: in evaluation mode.
        group: the module. Of several tensors each has its own ball: they are scaled so that one ball holds them.
        gradient: of the loss by each tensor; one of them at least is not None.
        data: adversarial images for the curvature; few are enough. They are one batch.
        epsilon: radius of each ball as a share of the tensor's norm.
        products: with the Hessian; 0: first order alone.
        limit: bytes for kept activations.
    """
    weights = {name: value.detach() for name, value in model.named_parameters() if name in group.parameters}
    flat = torch.cat([_of(gradient, name, value).flatten() for name, value in weights.items()])
    reach = torch.cat([torch.full((value.numel(),), epsilon * float(value.norm())) for value in weights.values()])
    scaled = flat * reach.to(flat)  # gradient by weights measured in radii
    slope = float(scaled.norm())
    first_order = sum(epsilon * float(v.norm()) * float(_of(gradient, name, v).norm()) for name, v in weights.items())
    if products == 0 or slope == 0:
        return first_order
    device = flat.device
    surface = LossSurface(model, F.cross_entropy, parameters=list(weights))
    operator = HessianOperator(
        surface, (data.images.to(device), data.labels.to(device)), batch_size=len(data), distributed=False
    )
    suffix = Suffix(model, group.owners, [data.images.to(device)], limit)
    with suffix.replaying(0):
        run = run_lanczos(_Scaled(operator, reach.to(flat)), products, start=scaled, keep_basis=False)
    tridiagonal = run.tridiagonal
    rise = highest_in_ball(np.asarray(tridiagonal.alpha), np.asarray(tridiagonal.beta[:-1]), slope)
    return rise * first_order / slope  # several balls reach further than the one that is inside them all


def highest_in_ball(alpha: np.ndarray, beta: np.ndarray, slope: float) -> float:
    """The largest value of slope * y_1 + y^T T y / 2 over ||y|| <= 1, for a tridiagonal T.

    Args:
        alpha: diagonal of T [k].
        beta: its off-diagonal [k - 1].
        slope: positive.
    """
    values, vectors = np.linalg.eigh(np.diag(alpha) + np.diag(beta, 1) + np.diag(beta, -1))
    parts = slope * vectors[0]
    if values[-1] < 0 and np.linalg.norm(parts / -values) <= 1:  # the highest point lies inside
        point = parts / -values
        return float(parts @ point + 0.5 * values @ point**2)
    # On the sphere: y = (shift - T)^-1 slope e_1 with the shift above every eigenvalue that makes it a unit vector.
    low, high = max(values[-1], 0.0), max(values[-1], 0.0) + slope + 1e-12
    for _ in range(200):
        shift = (low + high) / 2
        long = np.linalg.norm(parts / np.maximum(shift - values, 1e-300)) > 1
        low, high = (shift, high) if long else (low, shift)
    point = parts / np.maximum(high - values, 1e-300)
    rest = max(0.0, 1 - float(point @ point))
    return float(parts @ point + 0.5 * values @ point**2 + 0.5 * values[-1] * rest)


class _Scaled:
    """D A D for a diagonal D: the Hessian by weights that are measured in radii of their balls."""

    def __init__(self, operator: HessianOperator, scale: Tensor) -> None:
        self.operator, self.scale = operator, scale
        self.dimension, self.dtype, self.device = operator.dimension, operator.dtype, operator.device

    def product(self, vectors: Tensor) -> Tensor:
        scale = self.scale if vectors.dim() == 1 else self.scale.unsqueeze(1)
        return scale * self.operator.product(scale * vectors)


def _of(gradient: Mapping[str, Tensor | None], name: str, like: Tensor) -> Tensor:
    part = gradient[name]
    return torch.zeros_like(like) if part is None else part
