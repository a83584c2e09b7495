"""CoTTA against its equations: teacher, restoration, confidence, and what it holds."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from edgetta.bench.baselines import BatchNormStatistics, Cotta, CottaConfig, Tent
from edgetta.bench.baselines.cotta import augmented
from edgetta.errors import UsageError
from tests.adaptation.backbones import SmallNet, randomised


def images(seed: int = 0, count: int = 16) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


SURE = CottaConfig(confidence=0.0)  # never augments


def test_a_confident_batch_is_predicted_by_the_teacher_and_pulls_the_student() -> None:
    """Two steps without restoration, against Adam and equations 2 and 5 written out in float64."""
    config = CottaConfig(learning_rate=0.01, teacher_momentum=0.9, restoration=0.0, confidence=0.0)
    model = randomised(SmallNet()).double()
    method = Cotta(model, config)
    student, teacher = copy.deepcopy(model).train(), copy.deepcopy(model).train()
    optimizer = torch.optim.Adam(student.parameters(), 0.01, (0.9, 0.999))
    for seed in range(2):
        batch = images(seed).double()
        with torch.no_grad():
            target = teacher(batch)
        assert torch.allclose(method(batch), target, atol=1e-10)
        loss = torch.nn.functional.cross_entropy(student(batch), target.softmax(1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
                slow.copy_(0.9 * slow + 0.1 * fast)
    for mine, expected in ((method.student, student), (method.teacher, teacher)):
        for a, b in zip(mine.parameters(), expected.parameters(), strict=True):
            assert torch.allclose(a, b, atol=1e-9)


def test_an_unsure_batch_is_predicted_by_the_average_over_augmentations() -> None:
    model = randomised(SmallNet())
    method = Cotta(model, CottaConfig(confidence=1.0, augmentations=3), seed=5)
    generator = torch.Generator().manual_seed(5)
    plain = BatchNormStatistics(model)
    expected = torch.stack([plain(augmented(images(), generator)) for _ in range(3)]).mean(0)
    found = method(images())
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found, plain(images()), atol=1e-2)


def test_restoration_puts_its_share_of_weights_back() -> None:
    for share in (0.0, 0.25, 1.0):
        method = Cotta(randomised(SmallNet()), CottaConfig(0.05, restoration=share, confidence=0.0))
        method.teacher = copy.deepcopy(randomised(SmallNet(), 1)).train()  # something to follow, so that all move
        method(images())
        pairs = zip(method.student.parameters(), method.source.parameters(), strict=True)
        same = torch.cat([(a == b).flatten() for a, b in pairs]).double().mean()
        assert abs(float(same) - share) < 0.05, share


def test_augmented_images_stay_images_and_differ_one_from_another() -> None:
    batch = images(count=1).expand(8, -1, -1, -1)
    first = augmented(batch, torch.Generator().manual_seed(0))
    assert first.shape == batch.shape and float(first.min()) >= 0 and float(first.max()) <= 1
    assert float((first[0] - first[1]).abs().mean()) > 0.01
    assert torch.equal(first, augmented(batch, torch.Generator().manual_seed(0)))
    assert torch.equal(batch[0], images(count=1)[0])
    flat = augmented(torch.full((4, 3, 16, 16), 0.5), torch.Generator().manual_seed(0))
    assert float((flat - flat.mean((2, 3), keepdim=True)).abs().max()) < 0.05  # no dark borders come in


def test_it_holds_three_networks_and_keeps_the_images_beside_what_tent_keeps() -> None:
    """Stock autograd keeps the input of a frozen convolution as well, so that TENT saves little else."""
    model = randomised(SmallNet())
    method = Cotta(model, SURE)
    more = method.saved_bytes(images()) - Tent(model).saved_bytes(images())
    assert images().nbytes <= more < 1.1 * images().nbytes
    held = [method.student, method.teacher, method.source]
    addresses = {parameter.data_ptr() for network in held for parameter in network.parameters()}
    assert len(addresses) == 3 * len(list(model.parameters()))


def test_wrong_settings_are_named() -> None:
    with pytest.raises(UsageError, match="at least once"):
        CottaConfig(augmentations=0)
