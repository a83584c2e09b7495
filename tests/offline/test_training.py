"""SGD that is validated, resumable, and the same in two processes as in one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from edgetta.errors import BundleError, EdgettaError, UsageError
from edgetta.offline.attack import AdversarialTraining, Threat, adversarial_training, classified_right
from edgetta.offline.crop_and_flip import CropAndFlip
from edgetta.offline.curvature import launched_processes
from edgetta.offline.training import Batch, Schedule, train
from tests.offline.attack.small_models import images, network
from tests.offline.test_curvature_parallel import free_port, leave

SHIFT = CropAndFlip(padding=1, flip=0)
SCHEDULE = Schedule(epochs=4, batch=24, learning_rate=0.05, decay_at=(3,), augmentation=SHIFT, seed=1)


def loss(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch.images), batch.labels)


class Stopped(Exception):
    """Stands for Ctrl-C."""


def test_it_learns_and_ends_with_the_best_epoch() -> None:
    net = network()
    scores: list[int] = []

    def score(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        right = classified_right(model, x, y)
        scores.append(int(right.sum()))
        return right

    told: list[tuple[int, int]] = []
    data, validation = images(100), images(40, seed=7)
    history = train(net, data, validation, loss, score, SCHEDULE, progress=lambda a, b, note: told.append((a, b)))
    assert [entry.epoch for entry in history] == [1, 2, 3, 4] and told[-1] == (16, 16)
    assert [round(entry.score * 40) for entry in history] == scores
    assert history[-1].loss < history[0].loss and max(scores) > 25
    assert int(classified_right(net, *validation).sum()) == max(scores)
    assert not net.training and all(p.requires_grad and p.grad is None for p in net.parameters())


def test_only_what_is_named_moves_and_frozen_statistics_stay() -> None:
    net = network()
    net[7].bias.requires_grad_(False)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    only = ["3.weight"]
    train(net, images(60), images(20), loss, classified_right, SCHEDULE, parameters=only, frozen_statistics=True)
    moved = [name for name, value in net.state_dict().items() if not torch.equal(value, before[name])]
    assert moved == only and not net[7].bias.requires_grad
    train(net, images(60), images(20), loss, classified_right, SCHEDULE, parameters=only)
    moved = [name for name, value in net.state_dict().items() if not torch.equal(value, before[name])]
    assert "1.running_mean" in moved and "0.weight" not in moved


@pytest.mark.parametrize("stop_at", [5, 9])
def test_an_interrupted_training_ends_as_one_that_was_not(tmp_path: Path, stop_at: int) -> None:
    whole, halves = network(), network()
    data, validation = images(100), images(40, seed=7)
    expected = train(whole, data, validation, loss, classified_right, SCHEDULE)
    checkpoint = tmp_path / "training.safetensors"

    def stop(done: int, total: int, note: str) -> None:
        if done == stop_at:
            raise Stopped

    with pytest.raises(Stopped):
        train(halves, data, validation, loss, classified_right, SCHEDULE, checkpoint=checkpoint, progress=stop)
    fresh = network(seed=3)  # what it starts from no longer matters
    assert train(fresh, data, validation, loss, classified_right, SCHEDULE, checkpoint=checkpoint) == expected
    for name, value in whole.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value), name
    # Done is done: nothing is trained again.
    again = network(seed=3)
    assert train(again, data, validation, loss, classified_right, SCHEDULE, checkpoint=checkpoint) == expected
    with pytest.raises(UsageError, match="other settings"):
        other = Schedule(epochs=5, batch=24)
        train(again, data, validation, loss, classified_right, other, checkpoint=checkpoint)
    checkpoint.write_bytes(b"no checkpoint")
    with pytest.raises(BundleError, match="remove it to start again"):
        train(again, data, validation, loss, classified_right, SCHEDULE, checkpoint=checkpoint)


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    data, none = images(60), (torch.zeros(0, 3, 8, 8), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(UsageError, match="no validation part"):
        train(network(), data, none, loss, classified_right, SCHEDULE)
    with pytest.raises(UsageError, match="fewer than one batch of 24"):
        train(network(), images(20), data, loss, classified_right, SCHEDULE)
    with pytest.raises(UsageError, match="no parameter 'conv9'"):
        train(network(), data, data, loss, classified_right, SCHEDULE, parameters=["conv9"])
    with pytest.raises(UsageError, match="1 or more"):
        Schedule(epochs=0)
    with pytest.raises(UsageError, match="learning rate"):
        Schedule(learning_rate=float("inf"))
    checkpoint = tmp_path / "training.safetensors"
    wild = Schedule(epochs=3, batch=24, learning_rate=1e30)
    with pytest.raises(EdgettaError, match=r"NaN or infinite in epoch 1, step 2; lower the learning rate"):
        train(network(), data, data, loss, classified_right, wild, checkpoint=checkpoint)
    assert not checkpoint.exists()


AT = AdversarialTraining(
    threat=Threat("linf", 0.04), steps=3, schedule=Schedule(4, 24, learning_rate=0.05, augmentation=SHIFT)
)


def at(method: str) -> tuple[nn.Module, list[float]]:
    """Adversarial training of a network whose BatchNorms are folded away: every process sees the same function."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(54, 4))
    config = AdversarialTraining(method, AT.threat, AT.steps, schedule=AT.schedule)  # type: ignore[arg-type]
    history = adversarial_training(net, images(100), images(41, seed=7), config)
    return net, [entry.score for entry in history]


@pytest.mark.parametrize("method", ["pgd", "trades"])
def test_adversarial_training_makes_robust(method: str) -> None:
    from edgetta.offline.attack import PGD, evaluate

    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(54, 4))
    train(plain, images(100), images(41, seed=7), loss, classified_right, AT.schedule)
    robust, scores = at(method)
    attack = PGD(AT.threat, 10)
    counts = [evaluate(net, *images(100, seed=9), attack).robust for net in (plain, robust)]
    assert counts[0] is not None and counts[1] is not None
    assert int(counts[1].sum()) > int(counts[0].sum())
    assert len(scores) == 4
    with pytest.raises(UsageError, match="a label is 5"):
        adversarial_training(robust, images(60), (images(40)[0], torch.full((40,), 5)), AT)
    with pytest.raises(UsageError, match="choose pgd or trades"):
        AdversarialTraining("mart")  # type: ignore[arg-type]


@pytest.mark.gpu
def test_mixed_precision_on_cuda_trains_what_the_cpu_trains() -> None:
    scores = []
    for device in ("cpu", "cuda"):
        net = network().to(device)
        history = adversarial_training(net, images(200), images(80, seed=7), AT)
        assert next(net.parameters()).device.type == device
        scores.append(history[-1].score)
    assert abs(scores[0] - scores[1]) < 0.15


def with_batch_norm() -> nn.Module:
    """Two steps of training of a network with BatchNorm, in float64: what rounding leaves is tiny."""
    net = network().double()
    schedule = Schedule(epochs=1, batch=21, learning_rate=0.05, decay_at=())
    x, y = images(42)
    train(net, (x.double(), y), (x.double(), y), loss, classified_right, schedule)
    return net


def worker(rank: int, folder: str, count: int) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": (Path(folder) / "port").read_text()}
    with launched_processes():
        net, scores = at("pgd")
        torch.save((net.state_dict(), scores, with_batch_norm().state_dict()), Path(folder) / f"{rank}.pt")
        leave()


@pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")
def test_two_processes_train_what_one_trains(tmp_path: Path) -> None:
    (tmp_path / "port").write_text(str(free_port()))
    torch.multiprocessing.spawn(worker, args=(str(tmp_path), 2), nprocs=2)
    net, scores = at("pgd")
    normalised = with_batch_norm()
    for rank in (0, 1):
        state, theirs, batch_norm = torch.load(tmp_path / f"{rank}.pt")
        assert theirs == scores
        for name, value in normalised.state_dict().items():
            torch.testing.assert_close(batch_norm[name], value, atol=1e-9, rtol=1e-9, msg=name)
        for name, value in net.state_dict().items():
            torch.testing.assert_close(state[name], value, atol=1e-4, rtol=1e-4)
