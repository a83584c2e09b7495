"""The baselines: what each changes, what none of them touches, and that EcoTTA on autograd is edgetta's network."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgetta.adaptation.config import AdaptConfig
from edgetta.adaptation.meta_network import MetaSpec
from edgetta.adaptation.objective import filtered_entropy
from edgetta.bench.baselines import (
    BatchNormStatistics,
    Cotta,
    Eata,
    EcottaStock,
    Method,
    Rdumb,
    Roid,
    Rotta,
    RottaConfig,
    Sar,
    Source,
    StockMeta,
    Tent,
    TentConfig,
    error_rate,
    stock_metas,
)
from edgetta.bench.baselines.entropy import entropy
from edgetta.engines.contract import Mixing, Moments
from edgetta.engines.torch import TorchEngine
from edgetta.errors import UsageError
from edgetta.models import cuts, load_model
from tests.adaptation.backbones import SmallNet, randomised, small_model, small_programs


def images(seed: int = 0, count: int = 24) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def shifted(seed: int = 0) -> Tensor:
    return images(seed) * 0.3 + 0.6


def stock(config: AdaptConfig | None = None, names: tuple[str, ...] = SmallNet.cuts, count: int = 3) -> EcottaStock:
    metas = stock_metas(small_model("published").programs)
    return EcottaStock(randomised(SmallNet()), names, metas[:count], config)


METHODS: dict[str, Callable[[nn.Module], Method]] = {
    "source": Source,
    "batch norm statistics": BatchNormStatistics,
    "tent": Tent,
    "eata": lambda model: Eata(model, [images()]),
    "cotta": Cotta,
    "sar": Sar,
    "rotta": lambda model: Rotta(model, RottaConfig(memory=8, period=8)),
    "rdumb": Rdumb,
    "roid": Roid,
    "ecotta": lambda model: EcottaStock(model, SmallNet.cuts, stock_metas(small_model().programs)),
}


@pytest.mark.parametrize("name", METHODS)
def test_the_model_given_is_never_changed(name: str) -> None:
    model = randomised(SmallNet())
    before = copy.deepcopy(model.state_dict())
    method = METHODS[name](model)
    method(shifted())
    assert not model.training and all(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key]), key
    assert not method(images()).requires_grad


def test_source_predicts_as_the_model_and_never_changes() -> None:
    model = randomised(SmallNet())
    method = Source(model)
    with torch.no_grad():
        expected = model(images())
    for seed in range(3):
        method(shifted(seed))
    assert torch.equal(method(images()), expected)


def test_batch_statistics_undo_a_shift_that_the_source_suffers() -> None:
    """Behind a layer without bias, BatchNorm takes a change of brightness and contrast away."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(1024, 5)).eval()

    def change(method: Method) -> float:
        return float((method(images()) - method(shifted())).abs().max())

    assert change(BatchNormStatistics(model)) < 0.01 < 0.1 < change(Source(model))


def test_batch_statistics_learn_nothing() -> None:
    method = BatchNormStatistics(randomised(SmallNet()))
    first = method(images())
    method(shifted())
    assert torch.equal(method(images()), first)


def test_batch_statistics_are_those_of_training_mode() -> None:
    model = randomised(SmallNet())
    expected = copy.deepcopy(model).train()(images()).detach()
    assert torch.allclose(BatchNormStatistics(model)(images()), expected, atol=1e-5)


def test_tent_lowers_the_entropy_of_what_it_sees() -> None:
    method = Tent(randomised(SmallNet()))
    batch = shifted()
    first = entropy(method(batch)).mean()
    for _ in range(20):
        last = entropy(method(batch)).mean()
    assert last < first - 0.01


def test_tent_predicts_before_it_learns_and_moves_weights_of_batch_norm_alone() -> None:
    model = randomised(SmallNet())
    method = Tent(model)
    start = copy.deepcopy(method.model.state_dict())
    assert torch.equal(method(shifted()), BatchNormStatistics(model)(shifted()))
    norms = {
        f"{name}.{parameter}"
        for name, module in method.model.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for parameter in ("weight", "bias")
    }
    moved = {key for key, tensor in method.model.state_dict().items() if not torch.equal(tensor, start[key])}
    assert moved == norms


def test_tent_step_is_the_gradient_of_the_mean_entropy() -> None:
    """One SGD step, against the same loss written out in training mode."""
    model = randomised(SmallNet()).double()
    method = Tent(model, TentConfig("sgd", learning_rate=0.1, momentum=0.0))
    reference = copy.deepcopy(model).train()
    p = torch.softmax(reference(shifted().double()), 1)
    (-(p * p.log()).sum(1).mean()).backward()
    method(shifted().double())
    adapted = dict(method.model.named_parameters())
    for name, parameter in reference.named_parameters():
        step = -0.1 * parameter.grad if ".bn" in f".{name}" or name.startswith("stem.1") else torch.zeros(())
        assert torch.allclose(adapted[name], parameter.detach() + step, atol=1e-10), name


def test_tent_takes_as_many_steps_as_asked() -> None:
    model = randomised(SmallNet())
    once, twice = Tent(model, TentConfig(steps=1)), Tent(model, TentConfig(steps=2))
    for _ in range(2):
        once(shifted())
    twice(shifted())
    assert torch.allclose(once(images()), twice(images()), atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_reset_forgets_everything(name: str) -> None:
    method = METHODS[name](randomised(SmallNet()))
    stream = [shifted(seed) for seed in range(4)]
    first = [method(batch) for batch in stream]
    method.reset()
    for before, batch in zip(first, stream, strict=True):
        assert torch.equal(method(batch), before)


def test_wrong_use_is_named() -> None:
    plain = nn.Sequential(nn.Flatten(), nn.Linear(768, 3))
    for make in (BatchNormStatistics, Tent, Eata, Cotta):
        with pytest.raises(UsageError, match="no BatchNorm"):
            make(plain)
    with pytest.raises(UsageError, match="at least one step"):
        TentConfig(steps=0)
    with pytest.raises(UsageError, match="2 parts"):
        stock(names=SmallNet.cuts[:3])
    with pytest.raises(UsageError, match="no module 'block9'"):
        stock(names=(*SmallNet.cuts[:3], "block9"))
    with pytest.raises(UsageError, match="out of turn"):
        stock(names=("stem", "block2", "block1", "block3"))(images())


def test_error_rate_counts_over_all_batches() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval()
    batches = [(torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 0])), (torch.rand(1, 1, 2, 2), torch.tensor([1]))]
    method = Source(model)
    wrong = sum(int((method(x).argmax(1) != y).sum()) for x, y in batches)
    assert error_rate(method, batches) == wrong / 4
    assert error_rate(method, []) != error_rate(method, [])  # nan


@pytest.mark.parametrize("initialisation", ["identity", "published"])
def test_ecotta_on_autograd_is_the_network_of_edgetta(initialisation: str) -> None:
    """Predictions in float64; gradients of the meta-networks are alike, for edgetta's take a way from one bit."""
    config = AdaptConfig(learning_rate=1.0, momentum=0.0, regulariser=0.7, entropy_margin=0.99)
    programs = small_programs(initialisation, "meta")
    engine = TorchEngine(programs, torch.float64, pack=False)
    reference = EcottaStock(randomised(SmallNet()), SmallNet.cuts, stock_metas(programs), config)
    reference.backbone.double()
    reference.metas.double()
    reference.reset()
    before = Moments(programs.source.mean, programs.source.variance)
    parameters, counted = programs.shipped.astype(np.float64), []
    for seed in range(3):
        batch = shifted(seed).double()
        logits, own = engine.measure(batch.numpy(), parameters, Mixing.plain(before, 1.0))
        objective = filtered_entropy(logits, config.entropy_margin)
        counted.append(objective.kept)
        passed = engine.forward(batch.numpy(), parameters, own)  # type: ignore[arg-type]
        gradients = engine.backward(passed.residuals, objective.gradient, 0.7, parameters)
        start = {name: tensor.clone() for name, tensor in reference.metas.state_dict().items()}
        np.testing.assert_allclose(reference(batch).numpy(), logits, atol=1e-9)
        steps = {name: start[name] - tensor for name, tensor in reference.metas.state_dict().items()}
        ours = programs.parameters.split(gradients)
        found = np.concatenate([steps[name.removeprefix("metas.")].flatten().numpy() for name in ours])
        assert found @ gradients > 0.9 * np.linalg.norm(found) * np.linalg.norm(gradients), seed
        parameters = parameters - 0.05 * gradients
        reference.follow(programs, parameters)
    assert any(counted), "the filter lets some of them count"


def test_ecotta_without_confident_samples_still_follows_its_regulariser() -> None:
    method = stock(AdaptConfig(learning_rate=0.05, entropy_margin=1e-6))
    start = copy.deepcopy(method.metas.state_dict())
    assert torch.isfinite(method(images())).all()
    assert any(not torch.equal(tensor, start[key]) for key, tensor in method.metas.state_dict().items())


def test_autograd_keeps_the_published_figure_for_wrn40_2() -> None:
    """342 MB at batch 64: 5.346 MB an image, entropy alone; the regulariser's differences come to 0.36 MB more.

    The figure follows from the shapes: in units of one 32 x 32 map of 32 channels, four tensors a block.
    """
    model = load_model("wrn40_2")
    shapes = [(16, 32, 1), (32, 32, 1), (32, 64, 2), (64, 128, 2)]
    metas = [StockMeta(MetaSpec(inputs, outputs, 3, stride)) for inputs, outputs, stride in shapes]
    method = EcottaStock(model.module, cuts("wrn40_2", 4), metas)
    batch = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    first, second, third = (4 * 32 * 32 * 32 // 2**k for k in range(3))  # bytes of a map of each stage
    parts = 3 * 4 * first + (2 * first + 5 * 4 * second + 2 * second) + (2 * second + 5 * 4 * third + 2 * third)
    stages = (first, first, second, third)
    branches = first // 2 + 3 * sum(stages)  # the stem's output, and x_k, convolution and ReLU of each meta-network
    expected = 2 * (parts + branches + 2 * third)  # the classifier's BatchNorm and ReLU
    small = 2 * 4 * 4096  # statistics, logits and pooled features
    entropy_alone = method.saved_bytes(batch)
    assert expected <= entropy_alone <= expected + 8 * small
    assert 340e6 < entropy_alone * 32 < 345e6
    both = method.saved_bytes(batch, regulariser=True)
    assert abs(both - entropy_alone - 2 * sum(stages)) <= small


def test_what_tent_keeps_grows_with_the_batch() -> None:
    method = Tent(randomised(SmallNet()))
    first, second, fourth = (method.saved_bytes(images(count=count)) for count in (1, 2, 4))
    assert first > 4 * 4 * 6 * 256  # four maps of the first block, at least
    assert fourth - second == 2 * (second - first)
