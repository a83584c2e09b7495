"""Passes from a module on against whole passes, for networks that make it hard."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from edgetta.models import load_model
from edgetta.offline.attack import evaluation_mode
from edgetta.offline.rift.suffix import Suffix
from edgetta.offline.rift.weight_groups import weight_groups

LARGE = 1 << 30


class Functional(nn.Module):
    """Functions between modules, one ReLU for all, an addition in place, an output of two tensors."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.conv2, self.conv3 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), Pair()
        self.relu = nn.ReLU(inplace=True)
        self.short = nn.Conv2d(4, 4, 1)
        self.linear = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x * 2 - 1))
        out = self.relu(self.conv2(x))
        one, two = self.conv3(out)
        one += self.short(x)
        x = self.relu(one) + torch.sigmoid(two)
        return self.linear(self.relu(x).mean((2, 3)))


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.first(x), self.second(x)


class InPlace(nn.Module):
    """Writes into the output of a module that ran before: keeping it without a copy would spoil the next pass."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.late = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv(x)
        out += self.late(x)
        return out.mean((2, 3))


def models() -> dict[str, nn.Module]:
    found = {"functional": Functional(), "in place": InPlace()}
    for name in ("adv_resnet2b", "resnet20", "preresnet20", "resnet18"):
        torch.manual_seed(0)
        found[name] = load_model(name, width=0.25).module
    return {name: model.eval() for name, model in found.items()}


@pytest.mark.parametrize("name", list(models()))
def test_logits_and_gradients_are_those_of_whole_passes(name: str) -> None:
    model = models()[name]
    size = 8 if name in ("functional", "in place") else 32
    batches = torch.rand(7, 3, size, size, generator=torch.Generator().manual_seed(1)).split(4)
    groups = weight_groups(model)
    with evaluation_mode(model):
        for group in groups[:: max(1, len(groups) // 6)]:
            suffix = Suffix(model, group.owners, batches, LARGE)
            start = {n: p.detach() for n, p in model.named_parameters() if n in group.parameters}
            for scale in (1.0, 1.2, 0.7):
                weights = {n: (scale * p).requires_grad_(True) for n, p in start.items()}
                for number, images in enumerate(batches):
                    found = suffix.logits(number, weights)
                    expected = functional_call(model, weights, (images,))
                    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
                    pairs = [
                        torch.autograd.grad(out.square().sum(), list(weights.values())) for out in (found, expected)
                    ]
                    for one, two in zip(*pairs, strict=True):
                        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4 * float(two.abs().max()))
    assert not any("forward" in module.__dict__ for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_what_ran_before_is_not_computed_again() -> None:
    model = load_model("resnet20", width=0.25).module
    ran: Counter[str] = Counter()
    convolutions = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    with evaluation_mode(model):
        suffix = Suffix(model, ["layer3.1.conv2"], [torch.rand(4, 3, 32, 32)], LARGE)
        assert suffix.kept_batches == 1
        assert suffix.share == pytest.approx(4 / 20), "of the weights three more follow"
        plain = {name: module.forward for name, module in convolutions.items()}
        for name, module in convolutions.items():
            module.forward = lambda x, name=name: (ran.update([name]), plain[name](x))[1]  # type: ignore[method-assign]
        try:
            suffix.logits(0, {"layer3.1.conv2.weight": model.layer3[1].conv2.weight.detach()})
        finally:
            for module in convolutions.values():
                del module.__dict__["forward"]
    assert ran == Counter(["layer3.1.conv2", "layer3.2.conv1", "layer3.2.conv2"])


def test_a_limit_keeps_fewer_batches_and_changes_nothing() -> None:
    model = load_model("resnet20", width=0.25).module
    batches = torch.rand(12, 3, 32, 32).split(4)
    name = "layer2.1.conv1"
    with evaluation_mode(model):
        one = sum(c.output.nbytes for c in Suffix(model, [name], batches[:1], LARGE).kept[0] if c.output is not None)
        # Stem, first stage and the block before: not every activation that ever was.
        assert one == 4 * (2 * 4 * 32 * 32 + 8 * 16 * 16) * 4
        suffix = Suffix(model, [name], batches, 2 * one)
        assert suffix.kept_batches == 2
        weights = {f"{name}.weight": model.layer2[1].conv1.weight.detach() * 1.1}
        for number, images in enumerate(batches):
            torch.testing.assert_close(suffix.logits(number, weights), functional_call(model, weights, (images,)))
        whole = Suffix(model, [name], batches, 0)
        assert whole.kept_batches == 0 and whole.share == 1
        assert Suffix(model, ["conv1"], batches, LARGE).logits(0, {}).shape == (4, 10)
