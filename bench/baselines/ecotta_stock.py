"""EcoTTA on stock autograd: the mathematics of edgetta, and the memory of torch.

The backbone is the torch module itself, the meta-networks are ordinary modules, and autograd keeps what it keeps: the
input of every frozen convolution and BatchNorm behind the first meta-network, and every ReLU's output, all as floats.
Every BatchNorm uses the batch's statistics; those of frozen ones are constants in the backward. Predictions are those
of edgetta with the same parameters and the batch's statistics, which is what makes the bytes comparable; gradients
differ in that edgetta takes the way through a meta-network's statistics from one bit per element.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgetta.adaptation.config import AdaptConfig
from edgetta.adaptation.meta_network import EPSILON, MetaSpec
from edgetta.adaptation.step_rate import DEFAULT_RATE
from edgetta.bench.baselines.entropy import entropy
from edgetta.engines.contract import Array, ProgramSet
from edgetta.errors import UsageError
from edgetta.export.whole_network import initial_values
from edgetta.memory.meter import stock_saved_bytes


class EcottaStock:
    """Predicts and adapts (Song et al., CVPR 2023, equations 2 and 3, in one forward).

    model   classifier; a copy is taken
    cuts    module names after which it is cut, the stem's end first
    metas   one meta-network per part, copied, with weights as they are; they use batch statistics
    config  learning rate, momentum, regulariser and entropy margin count; schedule and window do not
    constant_statistics  False: the gradient of a frozen BatchNorm passes through the batch's statistics, too, as an
            attack on the images wants it; outputs are the same
    Raises `UsageError` when cuts and metas do not fit the model.
    """

    def __init__(
        self,
        model: nn.Module,
        cuts: Sequence[str],
        metas: Sequence[StockMeta],
        config: AdaptConfig | None = None,
        *,
        constant_statistics: bool = True,
    ) -> None:
        if len(cuts) != len(metas) + 1:
            raise UsageError(f"{len(cuts)} cuts make {len(cuts) - 1} parts, but there are {len(metas)} meta-networks")
        self.config = config or AdaptConfig()
        self.backbone = _with_batch_statistics(copy.deepcopy(model), constant_statistics).eval().requires_grad_(False)
        self.metas = nn.ModuleList(copy.deepcopy(meta) for meta in metas)
        self._pass = _Pass(list(cuts))
        modules = dict(self.backbone.named_modules())
        for place, name in enumerate(cuts):
            if name not in modules:
                raise UsageError(f"the model has no module {name!r} to cut after")
            modules[name].register_forward_hook(self._hook(place))
        self._start = copy.deepcopy(self.metas.state_dict())
        self.optimizer = self._optimizer()

    def __call__(self, images: Tensor) -> Tensor:
        logits, distances = self.forward(images)
        if self.config.regulariser:
            for meta, distance in zip(self.metas, distances, strict=True):
                _accumulate(meta, self.config.regulariser * distance)
        self.objective(logits).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return logits.detach()

    @torch.enable_grad()
    def forward(self, images: Tensor, regulariser: bool = True) -> tuple[Tensor, list[Tensor]]:
        """Logits (N, classes) and R_k of every part, with the graph that the backward needs."""
        self._pass.begin(regulariser)
        logits: Tensor = self.backbone(images)
        distances = self._pass.end()
        return logits, distances

    def objective(self, logits: Tensor) -> Tensor:
        """Mean entropy of the samples below the margin; zero, with a graph, where there is none."""
        entropies = entropy(logits)
        kept = entropies < self.config.entropy_margin * math.log(logits.shape[1])
        return entropies[kept].mean() if bool(kept.any()) else 0.0 * logits.sum()

    def parameters(self) -> Iterator[nn.Parameter]:
        """What adapts."""
        return (parameter for parameter in self.metas.parameters() if parameter.requires_grad)

    def saved_bytes(self, images: Tensor, regulariser: bool = False) -> int:
        """Bytes that autograd keeps between forward and backward: each storage once, weights not counted.

        Without the regulariser it is what the published order of two passes keeps in its larger one; with it, the
        differences x~_k - x_k are kept too, as floats.
        """
        weights = [*self.backbone.parameters(), *self.metas.parameters()]
        return stock_saved_bytes(lambda: self._losses(images, regulariser), weights)

    def _losses(self, images: Tensor, regulariser: bool) -> Tensor:
        logits, distances = self.forward(images, regulariser)
        return torch.stack([self.objective(logits), *distances]).sum()

    def follow(self, programs: ProgramSet, parameters: Array) -> None:
        """Take over the weights of meta-networks that adapt elsewhere: parameters (P,) of programs."""
        values = programs.parameters.split(parameters)
        for k, own in enumerate(self.metas):
            with torch.no_grad():
                for name, parameter in own.named_parameters():
                    if f"metas.{k}.{name}" in values:
                        parameter.copy_(torch.from_numpy(values[f"metas.{k}.{name}"]))

    def reset(self) -> None:
        """Back to the meta-networks that were given, with a fresh optimizer."""
        self.metas.load_state_dict(self._start)
        self.optimizer = self._optimizer()

    def _optimizer(self) -> torch.optim.Optimizer:
        rate = DEFAULT_RATE if self.config.learning_rate is None else self.config.learning_rate
        return torch.optim.SGD(self.parameters(), rate, self.config.momentum)

    def _hook(self, place: int) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        """Where the backbone passes a cut, its meta-network takes over and hands on x~_k."""

        def hook(module: nn.Module, inputs: tuple[Tensor, ...], frozen: Tensor) -> Tensor:
            return self._pass.cross(place, frozen, None if place == 0 else self.metas[place - 1])

        return hook


class _Pass:
    """One forward from cut to cut."""

    def __init__(self, cuts: list[str]) -> None:
        self._cuts = cuts
        self.begin(False)

    def begin(self, regulariser: bool) -> None:
        self._regulariser = regulariser
        self._place = 0
        self._adapted = torch.empty(0)
        self._distances: list[Tensor] = []

    def cross(self, place: int, frozen: Tensor, meta: nn.Module | None) -> Tensor:
        if place != self._place:
            raise UsageError(
                f"the model passes {self._cuts[place]!r} out of turn; name cuts in order, each of them passed once"
            )
        self._place += 1
        self._adapted = frozen if meta is None else meta(self._adapted, frozen)
        if meta is not None and self._regulariser:
            self._distances.append(F.l1_loss(self._adapted, frozen.detach()))
        return self._adapted

    def end(self) -> list[Tensor]:
        if self._place != len(self._cuts):
            raise UsageError(f"the model never passes {self._cuts[self._place]!r}; name another cut")
        self._adapted = torch.empty(0)
        return self._distances


class StockMeta(nn.Module):
    """A meta-network as anybody would write it: x~_k = norm(x_k) + scale * relu(branch_norm(conv(x~_{k-1}))).

    values  parameters by name; those of its initialisation when None. The published block has no scale.
    """

    conv: Tensor
    norm_weight: Tensor
    norm_bias: Tensor
    branch_weight: Tensor
    branch_bias: Tensor
    scale: Tensor

    def __init__(self, spec: MetaSpec, values: Mapping[str, Tensor] | None = None, seed: int = 0) -> None:
        super().__init__()
        if spec.tokens or not spec.normalised:
            raise UsageError("EcoTTA on stock autograd is for feature maps and BatchNorm networks")
        self.stride, self.padding = spec.stride, spec.kernel // 2
        identity = spec.initialisation == "identity"
        given = {**initial_values(spec, seed), **(values or {})}
        if not identity:
            given["scale"] = torch.ones_like(given["scale"])
        for name, value in given.items():
            self.register_parameter(name, nn.Parameter(value.detach().clone(), identity or name != "scale"))

    def forward(self, x_in: Tensor, x_frozen: Tensor) -> Tensor:
        branch = F.conv2d(x_in, self.conv, None, self.stride, self.padding)
        branch = F.relu(_normalise(branch, self.branch_weight, self.branch_bias))
        return _normalise(x_frozen, self.norm_weight, self.norm_bias) + self.scale.view(1, -1, 1, 1) * branch


def stock_metas(programs: ProgramSet) -> list[StockMeta]:
    """The meta-networks of programs, with the parameters that ship.

    Raises:
        UsageError: they are for tokens, or stand beside a network without BatchNorm.
    """
    values = {name: torch.tensor(array) for name, array in programs.parameters.split(programs.shipped).items()}
    convolutions = {node.inputs[1]: node for node in programs.predict.nodes if node.op == "Conv"}
    found: list[StockMeta] = []
    while (name := f"metas.{len(found)}.conv") in values:
        prefix = name.removesuffix("conv")
        own = {n.removeprefix(prefix): value for n, value in values.items() if n.startswith(prefix)}
        outputs, inputs, kernel, _ = own["conv"].shape
        stride = convolutions[name].attributes["strides"][0] if name in convolutions else 1
        spec = MetaSpec(
            inputs,
            outputs,
            kernel,
            stride,
            name not in convolutions,
            "identity" if "scale" in own else "published",
            f"{prefix}norm" in programs.statistics.shapes,
        )
        found.append(StockMeta(spec, own))
    return found


class _FrozenNorm(nn.Module):
    """A frozen BatchNorm with the batch's statistics; in the backward they are constants, or not."""

    def __init__(self, norm: _BatchNorm, constant: bool) -> None:
        super().__init__()
        self.norm = norm
        self.constant = constant

    def forward(self, x: Tensor) -> Tensor:
        if not self.constant:
            return F.batch_norm(x, None, None, self.norm.weight, self.norm.bias, True, 0.0, self.norm.eps)
        axes = [axis for axis in range(x.dim()) if axis != 1]
        variance, mean = torch.var_mean(x.detach(), axes, correction=0)
        return F.batch_norm(x, mean, variance, self.norm.weight, self.norm.bias, False, 0.0, self.norm.eps)


def _with_batch_statistics(module: nn.Module, constant: bool) -> nn.Module:
    """`module` with every BatchNorm in it replaced; names of other modules stay."""
    for name, child in module.named_children():
        setattr(module, name, _FrozenNorm(child, constant) if isinstance(child, _BatchNorm) else child)
        _with_batch_statistics(child, constant)
    return module


def _normalise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, weight, bias, True, 0.0, EPSILON)


def _accumulate(meta: nn.Module, loss: Tensor) -> None:
    """Add the gradients of a regulariser to the parameters of its own meta-network, and to no other."""
    own = [parameter for parameter in meta.parameters() if parameter.requires_grad]
    for parameter, gradient in zip(own, torch.autograd.grad(loss, own, retain_graph=True), strict=True):
        parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
