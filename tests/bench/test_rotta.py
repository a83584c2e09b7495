"""RoTTA: what its memory keeps, how slowly its statistics move, and who follows whom."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from edgetta.bench.baselines import Rotta, RottaConfig, Source
from edgetta.bench.baselines.rotta import BalancedMemory
from edgetta.errors import UsageError
from tests.adaptation.backbones import SmallNet, randomised


def images(seed: int = 0, count: int = 24) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 0.3 + 0.6


def test_the_memory_balances_classes() -> None:
    """A stream of one class leaves room for the others, and never fills more than its share once they come."""
    memory = BalancedMemory(4, RottaConfig(memory=8))
    for _ in range(20):
        memory.add(torch.zeros(3, 2, 2), 0, 0.1)
    assert len(memory) == 2
    for label in (1, 2, 3):
        for _ in range(5):
            memory.add(torch.zeros(3, 2, 2), label, 0.1)
    assert [len(items) for items in memory.by_class] == [2, 2, 2, 2]


def test_the_memory_lets_old_and_uncertain_images_go_first() -> None:
    memory = BalancedMemory(2, RottaConfig(memory=4))
    memory.add(torch.full((1, 1, 1), 1.0), 0, 0.6)
    memory.add(torch.full((1, 1, 1), 2.0), 0, 0.1)
    memory.add(torch.full((1, 1, 1), 3.0), 0, 0.2)
    assert [float(item.image) for item in memory.items()] == [2.0, 3.0]
    memory.add(torch.full((1, 1, 1), 4.0), 0, math.log(2))  # less certain than what is there
    assert [float(item.image) for item in memory.items()] == [2.0, 3.0]


def test_statistics_move_slowly_and_only_on_updates() -> None:
    model = randomised(SmallNet())
    method = Rotta(model, RottaConfig(memory=16, period=48, statistics=0.05))
    first = method(images())
    assert torch.allclose(first, Source(model)(images()), atol=1e-5)
    means = [m.running_mean.clone() for m in method.teacher.modules() if hasattr(m, "share")]
    assert means and torch.allclose(
        means[0], next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d)).running_mean
    )  # type: ignore[arg-type]
    method(images(1))
    now = [m.running_mean for m in method.teacher.modules() if hasattr(m, "share")]
    assert not torch.allclose(now[0], means[0])


def test_the_teacher_follows_the_student_by_its_momentum() -> None:
    method = Rotta(
        randomised(SmallNet()), RottaConfig(learning_rate=1e-2, memory=16, period=24, teacher_momentum=0.75)
    )
    start = [p.detach().clone() for p in method.student.parameters()]
    method(images())
    moved = 0.0
    for was, student, teacher in zip(start, method.student.parameters(), method.teacher.parameters(), strict=True):
        assert torch.allclose(teacher, 0.75 * was + 0.25 * student.detach(), atol=1e-6)
        moved += float((student - was).norm())
    assert moved > 0


def test_reset_forgets_everything() -> None:
    method = Rotta(randomised(SmallNet()), RottaConfig(memory=16, period=24))
    first = [method(images(seed)) for seed in range(3)]
    before = copy.deepcopy(method.student.state_dict())
    method.reset()
    assert not all(torch.equal(before[name], tensor) for name, tensor in method.student.state_dict().items())
    assert all(torch.equal(method(images(seed)), was) for seed, was in enumerate(first))


def test_settings_out_of_range() -> None:
    with pytest.raises(UsageError, match="share"):
        RottaConfig(statistics=0)
