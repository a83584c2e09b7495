"""Small networks, data and matrices that the curvature and learning-rate tests share."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from edgetta.offline.curvature import LossSurface

torch.set_num_threads(1)  # the networks here are too small to share among threads


class DenseOperator:
    """A symmetric matrix in the open."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix
        self.dimension = len(matrix)
        self.dtype, self.device = matrix.dtype, matrix.device
        self.products = 0

    def product(self, vectors: Tensor) -> Tensor:
        self.products += 1
        return self.matrix @ vectors


def convolutional(dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Sequential:
    """A convolution, BatchNorm with statistics that are not trivial, and a classifier; 51 parameters."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1, stride=2), nn.BatchNorm2d(2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)
    )
    net[1].running_mean.uniform_(-0.5, 0.5)
    net[1].running_var.uniform_(0.5, 2.0)
    return net.to(dtype)


def images(count: int = 17, dtype: torch.dtype = torch.float64, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Random pictures [N, 1, 4, 4] with three classes."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 1, 4, 4, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.randint(0, 3, (count,), generator=generator)


def surface(net: nn.Module | None = None, **options: object) -> LossSurface:
    """Cross-entropy of `convolutional()`, or of another network."""
    return LossSurface(net or convolutional(), nn.functional.cross_entropy, **options)  # type: ignore[arg-type]


def flat_loss(net: nn.Module, x: Tensor, y: Tensor, names: list[str], flat: Tensor) -> Tensor:
    """The loss as a plain function of a vector of the named parameters: what the operators must agree with."""
    parameters = dict(net.named_parameters())
    parts = flat.split([parameters[name].numel() for name in names])
    state = {name: part.view_as(parameters[name]) for name, part in zip(names, parts, strict=True)}
    buffers = {name: value.clone() for name, value in net.named_buffers()}
    return nn.functional.cross_entropy(torch.func.functional_call(net, {**state, **buffers}, (x,)), y)


def dense_hessian(net: nn.Module, x: Tensor, y: Tensor, names: list[str] | None = None) -> Tensor:
    """The Hessian [P, P] of `flat_loss`, by torch.autograd.functional, in the mode that the network is in."""
    parameters = dict(net.named_parameters())
    names = names or list(parameters)
    flat = torch.cat([parameters[name].detach().flatten() for name in names])
    with sdpa_kernel(SDPBackend.MATH):
        return torch.autograd.functional.hessian(lambda vector: flat_loss(net, x, y, names, vector), flat)


def symmetric(values: Tensor, seed: int = 0) -> Tensor:
    """A symmetric matrix with these eigenvalues and random eigenvectors."""
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64))
    return (basis * values.double()) @ basis.T
