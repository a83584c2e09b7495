"""The curvature matrices: Hessian, generalised Gauss-Newton, empirical Fisher, and any of them preconditioned."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from edgetta.errors import UsageError
from edgetta.offline.curvature.data_operator import DataOperator, LinearOperator
from edgetta.offline.curvature.parallel import Processes


class HessianOperator(DataOperator):
    """The Hessian, by differentiating the gradient once more (Pearlmutter's product by double backward)."""

    kind = "hessian"

    def _products(
        self, leaves: tuple[Tensor, ...], inputs: Any, targets: Any, directions: Sequence[Sequence[Tensor]]
    ) -> list[Sequence[Tensor | None]]:
        loss = self.surface.value(self.surface.outputs(leaves, inputs), targets)
        gradients = torch.autograd.grad(loss, leaves, create_graph=True, allow_unused=True)
        if all(gradient is None for gradient in gradients):
            raise UsageError("the loss does not depend on the chosen parameters; choose others")
        self._check_graph(gradients)
        # A gradient that no longer depends on the parameters (a linear loss) has no graph: its curvature is zero.
        live = [k for k, gradient in enumerate(gradients) if gradient is not None and gradient.requires_grad]
        if not live:
            return [[None] * len(leaves) for _ in directions]
        return [
            torch.autograd.grad(
                [gradients[k] for k in live],
                leaves,
                grad_outputs=[direction[k] for k in live],
                retain_graph=n + 1 < len(directions),
                allow_unused=True,
            )
            for n, direction in enumerate(directions)
        ]


class _JacobianOperator(DataOperator):
    """J^T M J of a vector-valued function of the parameters; J v comes from differentiating J^T u by u."""

    @abstractmethod
    def _function(self, leaves: tuple[Tensor, ...], inputs: Any, targets: Any) -> tuple[tuple[Tensor, ...], Any]:
        """The function's values, and M as a function of tangents, one tensor per value."""

    def _products(
        self, leaves: tuple[Tensor, ...], inputs: Any, targets: Any, directions: Sequence[Sequence[Tensor]]
    ) -> list[Sequence[Tensor | None]]:
        values, middle = self._function(leaves, inputs, targets)
        dummies = [torch.zeros_like(value, requires_grad=True) for value in values]
        transposed = torch.autograd.grad(values, leaves, grad_outputs=dummies, create_graph=True, allow_unused=True)
        self._check_graph(transposed)
        live = [k for k, part in enumerate(transposed) if part is not None]
        if not live:
            raise UsageError("the model's output does not depend on the chosen parameters; choose others")
        products: list[Sequence[Tensor | None]] = []
        for direction in directions:
            tangents = torch.autograd.grad(
                [transposed[k] for k in live],
                dummies,
                grad_outputs=[direction[k] for k in live],
                retain_graph=True,
                allow_unused=True,
            )
            filled = [torch.zeros_like(d) if t is None else t for t, d in zip(tangents, dummies, strict=True)]
            products.append(
                torch.autograd.grad(values, leaves, grad_outputs=middle(filled), retain_graph=True, allow_unused=True)
            )
        return products


class GaussNewtonOperator(_JacobianOperator):
    """The generalised Gauss-Newton matrix J^T H J, H the Hessian of the loss with respect to the model's output.

    The output is a tensor, or a tuple or list of tensors. For cross-entropy and for squared error this is the Fisher
    matrix of the model. It is positive semi-definite where the loss is convex in the output; entropy is not.
    """

    kind = "ggn"

    def _function(self, leaves: tuple[Tensor, ...], inputs: Any, targets: Any) -> tuple[tuple[Tensor, ...], Any]:
        outputs = self.surface.outputs(leaves, inputs)
        single = isinstance(outputs, Tensor)
        values = (outputs,) if single else tuple(outputs)
        if not all(isinstance(value, Tensor) for value in values):
            raise UsageError("the model must return a tensor or a tuple of tensors; wrap it so that it does")
        heads = [value.detach().requires_grad_(True) for value in values]
        loss = self.surface.value(heads[0] if single else type(outputs)(heads), targets)
        slopes = torch.autograd.grad(loss, heads, create_graph=True, allow_unused=True)
        live = [k for k, slope in enumerate(slopes) if slope is not None and slope.requires_grad]

        def middle(tangents: list[Tensor]) -> list[Tensor]:
            if not live:
                return [torch.zeros_like(value) for value in values]
            bent = torch.autograd.grad(
                [slopes[k] for k in live],
                heads,
                grad_outputs=[tangents[k] for k in live],
                retain_graph=True,
                allow_unused=True,
            )
            return [torch.zeros_like(v) if part is None else part for part, v in zip(bent, values, strict=True)]

        return values, middle


class EmpiricalFisherOperator(_JacobianOperator):
    """The mean of g_i g_i^T over samples, g_i the gradient of the loss of sample i with its given target.

    Under batch statistics g_i is the gradient through the statistics of i's batch. The output must be a tensor with
    the sample axis first.

    Raises:
        UsageError: the surface is declared as not separable without batch statistics: no loss of one sample exists.
    """

    kind = "fisher"

    def _function(self, leaves: tuple[Tensor, ...], inputs: Any, targets: Any) -> tuple[tuple[Tensor, ...], Any]:
        if not self.surface.separable:
            raise UsageError("the empirical Fisher needs the loss of each sample; this loss is no mean over samples")
        outputs = self.surface.outputs(leaves, inputs)
        if not isinstance(outputs, Tensor):
            raise UsageError("the empirical Fisher needs a model that returns one tensor; wrap it so that it does")
        count = len(outputs)
        each = [
            self.surface.value(outputs[i : i + 1], None if targets is None else targets[i : i + 1])
            for i in range(count)
        ]
        return (torch.stack(each),), lambda tangents: [tangents[0] / count]


class PreconditionedOperator:
    """D^(-1/2) A D^(-1/2): what an optimiser that divides by D sees of the curvature A.

    Args:
        operator: A.
        divisor: the diagonal of D [P], positive.
    """

    def __init__(self, operator: LinearOperator, divisor: Tensor) -> None:
        if divisor.shape != (operator.dimension,) or not bool((divisor > 0).all()):
            raise UsageError(f"the divisor must hold {operator.dimension} positive numbers; add a damping term")
        self.operator = operator
        self.scale = divisor.to(operator.device, operator.dtype).rsqrt()
        self.dimension, self.dtype, self.device = operator.dimension, operator.dtype, operator.device
        self.processes: Processes | None = getattr(operator, "processes", None)

    def fingerprint(self) -> str:
        """A short name of the very matrix, by which a saved run is recognised."""
        described = getattr(self.operator, "fingerprint", None)
        digest = hashlib.sha256(described().encode() if described else type(self.operator).__name__.encode())
        digest.update(self.scale.cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def product(self, vectors: Tensor) -> Tensor:
        scale = self.scale if vectors.dim() == 1 else self.scale.unsqueeze(1)
        return scale * self.operator.product(scale * vectors.to(self.device, self.dtype))


OPERATORS: dict[str, type[DataOperator]] = {
    operator.kind: operator for operator in (HessianOperator, GaussNewtonOperator, EmpiricalFisherOperator)
}
"""The operators by the names that the command line and saved results use."""
