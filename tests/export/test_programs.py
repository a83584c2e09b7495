"""The derived whole step in float64 against autograd: gradients of everything that adapts, moments, distances.

The reference re-states the method in a few lines of stock autograd: BatchNorms that are given their statistics, with
the gradient through them that one bit per element gives (`OneBit`), meta-networks beside the parts, and a regulariser
that reaches its own meta-network only.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from edgetta.engines.contract import Array, ProgramSet, Statistics
from edgetta.engines.torch import TorchEngine
from tests.adaptation.backbones import SmallNet, randomised, small_model
from tests.export.test_gradients_batch_norm import OneBit

LIMIT = 1e-9
REGULARISER = 0.7


def images(count: int = 12) -> Array:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64).numpy()


def generic(programs: ProgramSet, seed: int = 5) -> tuple[Array, Statistics]:
    """Parameters and statistics at no special point: every branch of a meta-network is alive."""
    rng = np.random.default_rng(seed)
    parameters = programs.shipped.astype(np.float64) + 0.3 * rng.standard_normal(programs.parameters.size)
    size = programs.statistics.size
    return parameters, Statistics(0.2 * rng.standard_normal(size), 0.5 + rng.random(size))


@dataclass
class Reference:
    """The network in autograd, on flat vectors as the programs take them."""

    programs: ProgramSet
    parameters: Array
    statistics: Statistics
    backbone: SmallNet = field(init=False)
    values: dict[str, Tensor] = field(init=False)
    own: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    distance: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))

    def __post_init__(self) -> None:
        self.backbone = randomised(SmallNet()).double()  # type: ignore[assignment]
        split = self.programs.parameters.split(self.parameters)
        self.values = {name: torch.tensor(array).requires_grad_(True) for name, array in split.items()}

    def norm(self, layer: str, x: Tensor, weight: Tensor, bias: Tensor, track: bool = True) -> Tensor:
        mean, variance = (
            torch.tensor(self.programs.statistics.split(vector)[layer])
            for vector in (self.statistics.mean, self.statistics.variance)
        )
        if track:
            own_variance, own_mean = torch.var_mean(x.detach(), (0, 2, 3), correction=0)
            self.own[layer] = (own_mean, own_variance)
        if not weight.requires_grad:
            return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, 1e-5)
        return OneBit.apply(x, weight, bias, mean, variance)  # type: ignore[no-any-return, no-untyped-call]

    def frozen_norm(self, piece: str, path: str, x: Tensor) -> Tensor:
        module = self.backbone.get_submodule(path)
        weight = self.values.get(f"{piece}.weight.{path}.weight", module.weight.detach())  # type: ignore[operator, union-attr]
        bias = self.values.get(f"{piece}.bias.{path}.bias", module.bias.detach())  # type: ignore[operator, union-attr]
        return self.norm(f"{piece}.{path}", x, weight, bias)

    def block(self, k: int, x: Tensor) -> Tensor:
        block, path = self.backbone.get_submodule(f"block{k}"), f"block{k}"
        y = F.relu(self.frozen_norm(f"part{k}", f"{path}.bn1", block.conv1(x)))  # type: ignore[operator, union-attr]
        y = self.frozen_norm(f"part{k}", f"{path}.bn2", block.conv2(y))  # type: ignore[operator, union-attr]
        return F.relu(y + block.shortcut(x))  # type: ignore[operator, union-attr]

    def meta(self, k: int, x: Tensor, frozen: Tensor, track: bool = True) -> Tensor:
        def value(name: str) -> Tensor:
            return self.values[f"metas.{k - 1}.{name}"]

        branch = F.conv2d(x, value("conv"), None, 2 if k == 2 else 1, 1)
        branch = self.norm(f"metas.{k - 1}.branch", branch, value("branch_weight"), value("branch_bias"), track)
        main = self.norm(f"metas.{k - 1}.norm", frozen, value("norm_weight"), value("norm_bias"), track)
        return main + value("scale") * F.relu(branch)

    def logits(self, batch: Tensor) -> Tensor:
        net = self.backbone
        x = F.relu(self.frozen_norm("stem", "stem.1", net.stem[0](batch))).detach()  # type: ignore[operator]
        for k in (1, 2, 3):
            frozen = self.block(k, x)
            alone = self.meta(k, x.detach(), frozen.detach(), track=False)
            self.distance = self.distance + (alone - frozen.detach()).abs().mean()
            x = self.meta(k, x, frozen)
        return net.fc(x.mean((2, 3)))

    def gradients(self) -> Array:
        found = [value.grad for value in self.values.values()]
        assert all(gradient is not None for gradient in found)
        return self.programs.parameters.join([gradient.numpy() for gradient in found])  # type: ignore[union-attr]


def programs_of(adapt: str = "affine", form: str = "adaptive", initialisation: str = "identity") -> ProgramSet:
    programs = small_model(initialisation, adapt, form).programs
    assert programs is not None
    return programs


def close(found: Array, wanted: Array, limit: float = LIMIT) -> bool:
    return float(np.linalg.norm(found - wanted) / max(np.linalg.norm(wanted), 1e-12)) < limit


def grad_logits(count: int) -> Array:
    return np.random.default_rng(2).standard_normal((count, 5)) / count


@pytest.mark.parametrize("way", ["backward", "recompute"])
def test_every_gradient_is_autograds(way: str) -> None:
    programs = programs_of()
    parameters, statistics = generic(programs)
    engine = TorchEngine(programs, torch.float64, pack=False)
    batch = images()
    gradient = grad_logits(len(batch))
    reference = Reference(programs, parameters, statistics)
    logits = reference.logits(torch.from_numpy(batch))
    ((logits * torch.from_numpy(gradient)).sum() + REGULARISER * reference.distance).backward()

    passed = engine.forward(batch, parameters, statistics)
    assert close(passed.logits, logits.detach().numpy())
    assert abs(passed.distance - float(reference.distance.detach())) < LIMIT
    assert passed.moments is not None
    for i, vector in enumerate((passed.moments.mean, passed.moments.variance)):
        for layer, array in programs.statistics.split(vector).items():
            assert close(array, reference.own[layer][i].numpy()), layer
    if way == "backward":
        found = engine.backward(passed.residuals, gradient, REGULARISER, parameters)
    else:
        found = engine.recompute(batch, gradient, REGULARISER, parameters, statistics)
    wanted = programs.parameters.split(reference.gradients())
    for name, array in programs.parameters.split(found).items():
        assert close(array, wanted[name]), name
