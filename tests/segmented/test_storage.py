"""Every way to keep what a step needs, and every slice of its backward, against autograd and against keeping all."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from edgetta.adaptation.meta_backward import can_undo
from edgetta.adaptation.model import build
from edgetta.adaptation.network import AdaptiveNetwork
from edgetta.adaptation.step_memory import STORAGES, StepMemory
from edgetta.export.derive import derive
from edgetta.segmented.adapter import AdaptConfig, Adapter
from edgetta.segmented.objective import filtered_entropy
from edgetta.segments.torch_engine import TorchSegment
from tests.adaptation.backbones import (
    SmallNet,
    autograd_loss,
    network_of,
    randomised,
    small_model,
    with_detached_norms,
)
from tests.export.small_networks import SMALL

REGULARISER, MARGIN = 0.7, 1.0  # every image counts
BOUNDS = {"half": 1e-2, "int8": 5e-2, "recompute": 1e-5, "recompute-int8": 5e-2}
SLICES = (0, 1, 7, 8, 100)
POLICIES = [("batch", "adaptive"), ("ema", "adaptive"), ("source", "source")]


def images(count: int = 24, seed: int = 3) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradients(network: AdaptiveNetwork, memory: StepMemory, batch: Tensor) -> dict[str, Tensor]:
    """Of every trainable parameter, by number; statistics are as before afterwards."""
    parameters = list(network.parameters())
    for parameter in parameters:
        parameter.grad = None
    before = network.statistics_snapshot()
    network.memory = memory
    logits, tape = network.forward(batch)
    network.backward(tape, filtered_entropy(logits, MARGIN).gradient, REGULARISER)
    network.restore_statistics(before)
    return {str(i): p.grad.clone() for i, p in enumerate(parameters) if p.grad is not None}


def error(found: dict[str, Tensor], reference: dict[str, Tensor]) -> float:
    """Relative L2 of all gradients together."""
    assert found.keys() == reference.keys() and reference
    difference = sum(float((found[name] - reference[name]).square().sum()) for name in reference)
    return (difference / sum(float(gradient.square().sum()) for gradient in reference.values())) ** 0.5


@pytest.mark.parametrize("initialisation", ["identity", "published"])
@pytest.mark.parametrize("gradient", ["exact", "recompute", "local"])
@pytest.mark.parametrize("storage", ["full", "recompute"])
def test_exact_storages_equal_autograd_in_every_slice(storage: str, gradient: str, initialisation: str) -> None:
    network = network_of(small_model(initialisation), "batch", gradient)
    found = [gradients(network, StepMemory(storage, size), images()) for size in SLICES]  # type: ignore[arg-type]
    network.metas.zero_grad()
    backbone = with_detached_norms(randomised(SmallNet()).double())
    autograd_loss(backbone, network.metas, images(), MARGIN, REGULARISER, local=gradient == "local").backward()
    reference = {str(i): p.grad for i, p in enumerate(network.parameters()) if p.grad is not None}
    for size, of_size in zip(SLICES, found, strict=True):
        assert error(of_size, reference) < 1e-10, size


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize(("policy", "form"), POLICIES)
@pytest.mark.parametrize("gradient", ["exact", "recompute", "local"])
def test_slices_and_recompute_change_nothing(gradient: str, policy: str, form: str, biases: bool) -> None:
    network = network_of(small_model(adapt="bias" if biases else "meta", form=form), policy, gradient)  # type: ignore[arg-type]
    reference = gradients(network, StepMemory(), images())
    assert len(reference) == len(list(network.parameters())) - (gradient == "local") * _biases_of_parts(network)
    for storage in ("full", "recompute"):
        for size in (7, 8):
            assert error(gradients(network, StepMemory(storage, size), images()), reference) < 1e-10  # type: ignore[arg-type]


def _biases_of_parts(network: AdaptiveNetwork) -> int:
    return sum(len(part.affine) for part in network.parts)


@pytest.mark.parametrize("size", [0, 5])
@pytest.mark.parametrize("gradient", ["exact", "recompute"])
@pytest.mark.parametrize(("policy", "form"), POLICIES)
@pytest.mark.parametrize("storage", list(BOUNDS))
def test_gradient_errors_are_bounded(storage: str, policy: str, form: str, gradient: str, size: int) -> None:
    network = network_of(small_model(adapt="bias", form=form), policy, gradient, torch.float32)  # type: ignore[arg-type]
    batch = images().float()
    reference = gradients(network, StepMemory(), batch)
    found = error(gradients(network, StepMemory(storage, size), batch), reference)  # type: ignore[arg-type]
    assert found < BOUNDS[storage]
    assert storage == "recompute" or found > 1e-7, "few bits must show, or nothing was tested"


def test_statistics_are_those_of_a_slice_where_the_gradient_goes_through_them() -> None:
    """Close to the gradients of the whole batch, in the same places, but not the same."""
    network = network_of(small_model(adapt="affine"), "batch")
    reference = gradients(network, StepMemory(), images())
    sliced = gradients(network, StepMemory("full", 8), images())
    assert sliced.keys() == reference.keys() and 1e-6 < error(sliced, reference) < 0.5


@pytest.mark.parametrize("name", ["transformer", "convnext", "gates", "mobile"])
@pytest.mark.parametrize("gradient", ["auto", "exact", "recompute"])
def test_other_backbones_in_slices(name: str, gradient: str) -> None:
    """Tokens, layers without BatchNorm, and activations that are kept as codes."""
    small = SMALL[name]
    derived = derive(randomised(small.build()), small.input_shape, small.cuts, adapt="bias")
    policy = "source" if derived.batch_norm == "source" else "batch"
    network = build(derived, lambda _, graphs, mode: TorchSegment(graphs, mode, dtype=torch.float64), gradient, policy)  # type: ignore[arg-type]
    network.metas.double()
    generator = torch.Generator().manual_seed(7)
    for parameter in network.metas.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    batch = torch.rand(6, *small.input_shape, generator=generator, dtype=torch.float64)
    reference = gradients(network, StepMemory(), batch)
    for memory in (StepMemory("full", 1), StepMemory("recompute"), StepMemory("recompute", 4)):
        assert error(gradients(network, memory, batch), reference) < 1e-10, memory
    for storage in STORAGES:
        found = error(gradients(network, StepMemory(storage, 2), batch), reference)
        assert found < BOUNDS.get(storage, 1e-5), storage


@pytest.mark.parametrize("gradient", ["exact", "recompute", "local"])
@pytest.mark.parametrize("size", [0, 5])
def test_where_the_norm_cannot_be_undone_the_frozen_part_runs_again(gradient: str, size: int) -> None:
    network = network_of(small_model(), "batch", gradient)
    with torch.no_grad():
        network.metas[1].norm_weight[2] = 1e-9  # type: ignore[index, operator]
        network.metas[2].norm_weight[:3] = 0  # type: ignore[index, operator]
    assert [can_undo(meta) for meta in network.metas] == [True, False, False]  # type: ignore[arg-type]
    reference = gradients(network, StepMemory(), images())
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert error(gradients(network, StepMemory("recompute", size), images()), reference) < 1e-10
    assert all(torch.equal(state[name], tensor) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("count", [4, 24])
def test_running_statistics_move_as_without(count: int) -> None:
    """4 images move running statistics, 24 replace them; the reruns of a backward touch neither."""
    ends = []
    for memory in (StepMemory(), StepMemory("recompute-int8", 3)):
        network = network_of(small_model(), "auto", dtype=torch.float32)
        with torch.no_grad():
            network.metas[1].norm_weight[2] = 0  # type: ignore[index, operator]
        network.memory = memory
        for seed in range(3):
            logits, tape = network.forward(images(count, seed).float())
            network.backward(tape, logits.cos(), REGULARISER)
        ends.append({name: t.clone() for name, t in network.state_dict().items() if "mean" in name or "var" in name})
    assert ends[0].keys() == ends[1].keys() and len(ends[0]) > 10
    assert all(torch.allclose(ends[0][name], tensor, rtol=1e-5, atol=1e-6) for name, tensor in ends[1].items())


@pytest.mark.parametrize("storage", STORAGES)
def test_predictions_are_the_same(storage: str) -> None:
    network = network_of(small_model(), "batch", dtype=torch.float32)
    reference, tape = network.forward(images().float())
    network.memory = StepMemory(storage)
    logits, other = network.forward(images().float())
    assert torch.equal(logits, reference)
    assert torch.allclose(torch.stack(tape.distances), torch.stack(other.distances), rtol=1e-6)
    network.memory = StepMemory(storage, 5)
    assert torch.allclose(network.forward(images().float())[0], reference, rtol=1e-4, atol=1e-5)
    assert torch.allclose(network.forward(images().float(), keep=False)[0], reference, rtol=1e-4, atol=1e-5)


def test_the_choice_may_change_between_a_forward_and_its_backward() -> None:
    network = network_of(small_model(), "batch")
    reference = gradients(network, StepMemory(), images())
    for now, later in ((StepMemory("recompute", 5), StepMemory()), (StepMemory(), StepMemory("recompute-int8", 5))):
        network.metas.zero_grad()
        network.memory = now
        logits, tape = network.forward(images())
        network.memory = later
        network.backward(tape, filtered_entropy(logits, MARGIN).gradient, REGULARISER)
        found = {str(i): p.grad for i, p in enumerate(network.parameters()) if p.grad is not None}
        assert error(found, reference) < 1e-10


class Views(torch.nn.Module):
    """A part whose output is its input's own memory: nothing may be written there."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], -1).reshape(x.shape)


@pytest.mark.parametrize("storage", STORAGES)
def test_what_a_part_hands_through_is_not_written_to(storage: str) -> None:
    backbone = SmallNet()
    backbone.block1 = Views()  # type: ignore[assignment]
    derived = derive(randomised(backbone), (3, 16, 16), SmallNet.cuts, kernel=3)
    network = network_of(derived, "batch")
    reference = gradients(network, StepMemory(), images())
    found = error(gradients(network, StepMemory(storage), images()), reference)  # type: ignore[arg-type]
    assert found < BOUNDS.get(storage, 1e-10)
    stem = network.stem.forward(images(), keep=False)[0]
    before = stem.clone()
    network.metas[0](stem, network.parts[0].forward(stem)[0])  # type: ignore[operator]
    assert torch.equal(stem, before)


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("memory", [StepMemory("int8"), StepMemory("recompute", 7), StepMemory("recompute-int8", 7)])
def test_adapting_ends_near_where_it_would(memory: StepMemory, passes: int) -> None:
    ends = []
    for choice in (StepMemory(), memory, memory):
        network = network_of(small_model(), "auto", dtype=torch.float32)
        network.memory = choice
        start = _weights(network)
        adapter = Adapter(network, AdaptConfig(learning_rate=5e-3, entropy_margin=1.0, passes=passes, window=20))
        for seed in range(6):
            adapter.step(images(24, seed).float())
        for frame in images(20, 9).float():  # gathered in a window
            adapter.step(frame[None])
        assert adapter.updates == 7
        ends.append(_weights(network))
    moved = float((ends[0] - start).norm())
    assert float((ends[1] - ends[0]).norm()) < (1e-3 if memory.storage == "recompute" else 5e-2) * moved
    assert torch.equal(ends[1], ends[2]), "random rounding begins alike in every network"


def test_a_batch_that_is_not_finite_is_refused_in_few_bits_too() -> None:
    network = network_of(small_model(), "auto", dtype=torch.float32)
    network.memory = StepMemory("recompute-int8", 5)
    adapter = Adapter(network, AdaptConfig(entropy_margin=1.0))
    adapter.step(images().float())
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for bad in (float("nan"), float("inf"), 1e30):
        poisoned = images().float()
        poisoned[3, 1, 4, 4] = bad
        assert adapter.step(poisoned).reason == "non-finite"
        assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert adapter.step(images().float()).adapted


def test_a_restored_network_rounds_from_the_beginning() -> None:
    network = network_of(small_model(), "batch", dtype=torch.float32)
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    first, second = (gradients(network, StepMemory("int8"), images().float()) for _ in range(2))
    assert error(second, first) > 1e-6
    network.load_state_dict(state)
    assert error(gradients(network, StepMemory("int8"), images().float()), first) == 0


def _weights(network: AdaptiveNetwork) -> Tensor:
    return torch.cat([parameter.detach().flatten().clone() for parameter in network.parameters()])
