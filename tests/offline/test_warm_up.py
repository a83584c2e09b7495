"""Warm-up through the graph that ships: it learns, resumes where it stopped, and refuses what cannot be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgetta.errors import BundleError, EdgettaError, UsageError
from edgetta.offline.augment import Augmentation
from edgetta.offline.network import Network
from edgetta.offline.source_statistics import batches_of, with_source_statistics
from edgetta.offline.warm_up import WarmUpConfig, accuracy, warm_up
from tests.adaptation.backbones import small_programs


def data(count: int = 160) -> tuple[torch.Tensor, torch.Tensor]:
    """Five classes, told apart by the brightness of a quadrant and by colour."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 5
    images = torch.rand(count, 3, 16, 16, generator=generator) * 0.5
    for i, label in enumerate(labels.tolist()):
        row, column = divmod(label % 4, 2)
        images[i, label % 3, row * 8 : row * 8 + 8, column * 8 : column * 8 + 8] += 0.5
    return (images * 255).to(torch.uint8), labels


def network(form: str = "adaptive") -> Network:
    images, _ = data()
    return with_source_statistics(Network(small_programs(form=form)), batches_of(images.float() / 255, 40))


CONFIG = WarmUpConfig(epochs=4, batch=32, learning_rate=0.05)
GENTLE = WarmUpConfig(12, 32, learning_rate=0.01, augmentation=Augmentation(jitter=0, blur=0, grey=0))
LEARNING = WarmUpConfig(12, 32, learning_rate=0.5, augmentation=Augmentation(jitter=0, blur=0, grey=0))


@pytest.mark.parametrize("own", [True, False], ids=["adaptive", "folded"])
def test_warm_up_learns_and_the_rest_stays(own: bool) -> None:
    images, labels = data()
    before = network("adaptive" if own else "source")
    shipped = before.programs.shipped.copy()
    seen: list[tuple[int, int]] = []
    made, report = warm_up(
        before, images, labels, (images[:50], labels[:50]), LEARNING if own else GENTLE,
        progress=lambda done, total, loss: seen.append((done, total)), own_statistics=own,
    )  # fmt: skip
    assert report.accuracy_after > report.accuracy_before + 0.2, report
    assert report.accuracy_after == accuracy(made, images[:50], labels[:50], own_statistics=own)
    assert seen[0] == (1, 60) and seen[-1] == (60, 60) == (report.steps, report.steps)
    np.testing.assert_array_equal(before.programs.shipped, shipped)
    moved = made.programs.parameters.split(made.programs.shipped != shipped)
    assert all(bool(array.any()) for array in moved.values()), "all that adapts is trained"
    assert made.programs.predict is before.programs.predict and made.programs.source.mean is not None


def test_resumed_warm_up_ends_at_the_same_weights(tmp_path: Path) -> None:
    images, labels = data()
    straight, _ = warm_up(network(), images, labels, (images, labels), CONFIG)

    class Stop(Exception):
        pass

    def stop(done: int, total: int, loss: float) -> None:
        if done == total // 2 + 2:
            raise Stop

    checkpoint = tmp_path / "warm_up.safetensors"
    with pytest.raises(Stop):
        warm_up(network(), images, labels, (images, labels), CONFIG, checkpoint, stop)
    resumed, _ = warm_up(network(), images, labels, (images, labels), CONFIG, checkpoint)
    np.testing.assert_allclose(resumed.programs.shipped, straight.programs.shipped, atol=1e-6)


def test_checkpoint_of_other_settings_or_damaged_is_refused(tmp_path: Path) -> None:
    images, labels = data()
    checkpoint = tmp_path / "warm_up.safetensors"
    warm_up(network(), images, labels, (images, labels), WarmUpConfig(epochs=1, batch=32), checkpoint)
    with pytest.raises(UsageError, match="other settings"):
        warm_up(network(), images, labels, (images, labels), CONFIG, checkpoint)
    checkpoint.write_bytes(checkpoint.read_bytes()[:100])
    with pytest.raises(BundleError, match="start again"):
        warm_up(network(), images, labels, (images, labels), CONFIG, checkpoint)


def test_schedule_of_the_published_recipe() -> None:
    config = WarmUpConfig()
    rates = [config.rate(step, 100) for step in (0, 99, 100, 299, 300, 600, 800, 999)]
    assert rates == pytest.approx([5e-4, 5e-2, 5e-2, 5e-2, 1e-2, 2e-3, 4e-4, 4e-4])


def test_what_cannot_be_warmed_up() -> None:
    images, labels = data()
    with pytest.raises(UsageError, match="at least one batch"):
        warm_up(network(), images[:8], labels[:8], (images, labels), CONFIG)
    with pytest.raises(UsageError, match=r"0\.\.4"):
        warm_up(network(), images, labels + 3, (images, labels), CONFIG)
    with pytest.raises(EdgettaError, match="not finite"):
        warm_up(network(), images, labels, (images, labels), WarmUpConfig(epochs=2, batch=32, learning_rate=1e30))
