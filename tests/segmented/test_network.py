"""The whole step against autograd in float64: every gradient of every trainable parameter."""

from __future__ import annotations

import pytest
import torch

from edgetta.segmented.objective import filtered_entropy
from tests.adaptation.backbones import (
    SmallNet,
    autograd_loss,
    network_of,
    randomised,
    small_model,
    with_detached_norms,
)

REGULARISER = 0.7


def images(count: int = 24, seed: int = 3) -> torch.Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("initialisation", ["identity", "published"])
@pytest.mark.parametrize("gradient", ["exact", "recompute", "local"])
@pytest.mark.parametrize("margin", [0.92, 1.0, 1e-9])
def test_gradients_equal_autograd(initialisation: str, gradient: str, margin: float) -> None:
    network = network_of(small_model(initialisation), "batch", gradient)
    logits, tape = network.forward(images())
    objective = filtered_entropy(logits, margin)
    network.backward(tape, objective.gradient, REGULARISER)
    found = {name: p.grad.clone() for name, p in network.metas.named_parameters() if p.grad is not None}

    backbone = with_detached_norms(randomised(SmallNet()).double())
    network.metas.zero_grad()
    loss = autograd_loss(backbone, network.metas, images(), margin, REGULARISER, local=gradient == "local")
    loss.backward()

    trainable = {id(p) for p in network.parameters()}
    assert (margin > 1e-6) == (objective.kept > 0), "the case with an empty filter must be empty, the others not"
    for name, parameter in network.metas.named_parameters():
        if id(parameter) not in trainable:
            continue
        error = (found[name] - parameter.grad).norm() / parameter.grad.norm().clamp_min(1e-30)
        assert error < 1e-9, f"{name}: relative error {error:.1e}"


def test_local_differs_from_exact() -> None:
    """Otherwise the test above could pass with the gradient through frozen parts lost in both."""
    gradients = []
    for mode in ("exact", "local"):
        network = network_of(small_model(), "batch", mode)
        logits, tape = network.forward(images())
        network.backward(tape, filtered_entropy(logits, 0.92).gradient)
        gradients.append(network.metas[0].conv.grad)
    assert (gradients[0] - gradients[1]).norm() > 0.05 * gradients[0].norm()


def test_bias_gradients_equal_autograd() -> None:
    network = network_of(small_model(adapt="bias"), "batch")
    logits, tape = network.forward(images())
    network.backward(tape, filtered_entropy(logits, 0.92).gradient, REGULARISER)

    backbone = with_detached_norms(randomised(SmallNet()).double())
    autograd_loss(backbone, network.metas, images(), 0.92, REGULARISER).backward()
    references = dict(backbone.named_parameters())
    for part, segment in zip(("block1", "block2", "block3"), network.parts, strict=True):
        assert segment.affine, "adapt exposes the biases of every part"
        for name, bias in segment.affine.items():
            layer = name.removeprefix("bias.").removesuffix(".bias").split(".")[-1]
            reference = references[f"{part}.{layer}.norm.bias"].grad
            assert torch.allclose(bias.grad.flatten(), reference, rtol=1e-8, atol=1e-12), f"{part} {name}"


def test_auto_statistics_follow_the_batch_size() -> None:
    network = network_of(small_model(), "auto")
    assert network.statistics(16) == ("batch", 1.0)
    kind, momentum = network.statistics(1)
    assert kind == "ema" and momentum == pytest.approx(1 / network.ema_images)


@pytest.mark.parametrize("policy", ["ema", "batch"])
def test_running_statistics_stay_when_not_tracked(policy: str) -> None:
    network = network_of(small_model(), policy)  # type: ignore[arg-type]
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.forward(images(20), keep=False, track=False)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("count", [4, 24])
def test_running_statistics_move_only_when_tracked(count: int) -> None:
    """24 images are normalised with their own statistics, 4 with running ones."""
    network = network_of(small_model(), "auto")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.forward(images(count), keep=False, track=False)
    network.forward(images(count) * float("nan"), keep=False, track=False)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    network.forward(images(4), keep=False)
    moved = [name for name, tensor in network.state_dict().items() if not torch.equal(before[name], tensor)]
    assert any(name.startswith("stem.state") for name in moved) and any("metas.0.norm_mean" in name for name in moved)


def test_batch_is_ema_that_forgets_everything() -> None:
    model = small_model()
    a, b = network_of(model, "batch"), network_of(model, "ema")
    b.ema_images = 8
    assert torch.allclose(a.forward(images(), keep=False)[0], b.forward(images(), keep=False)[0], atol=1e-10)


def test_state_of_another_network_is_refused_and_changes_nothing() -> None:
    network = network_of(small_model())
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    broken = dict(state)
    broken["metas.0.conv"] = torch.zeros(1)
    with pytest.raises(ValueError, match="shape"):
        network.load_state_dict(broken)
    broken.pop("metas.0.conv")
    with pytest.raises(ValueError, match="does not belong"):
        network.load_state_dict(broken)
    assert all(torch.equal(state[name], tensor) for name, tensor in network.state_dict().items())


def test_nothing_is_kept_for_the_first_part() -> None:
    """No meta-network comes before it: its input gradient is never needed."""
    network = network_of(small_model())
    _, tape = network.forward(images())
    counts = tape.kept_bytes()
    assert counts["part 1: residuals"] == 0 and counts["part 2: residuals"] > 0
