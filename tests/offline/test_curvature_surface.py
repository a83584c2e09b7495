"""The loss surface: which parameters move, and that the model is left as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgetta.errors import UsageError
from edgetta.offline.curvature import (
    DatasetSamples,
    DataSetTooSmallError,
    HessianOperator,
    LossSurface,
    TensorSamples,
    as_samples,
    select_parameters,
)
from edgetta.offline.curvature.samples import samples_digest
from tests.offline.small_surfaces import convolutional, images, surface


@pytest.mark.parametrize("batch_norm", ["source", "batch"])
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_exactly_as_it_was(batch_norm: str, fails: bool) -> None:
    net = nn.Sequential(convolutional(), nn.Dropout(0.5)).train()
    net[0][1].eval()
    net[0][4].bias.requires_grad_(False)
    modes = {name: module.training for name, module in net.named_modules()}
    state = {name: value.clone() for name, value in net.state_dict().items()}
    versions = {name: value._version for name, value in net.named_buffers()}
    flags = {name: parameter.requires_grad for name, parameter in net.named_parameters()}
    x, y = images(8)
    if fails:
        x[5] = float("inf")
    operator = HessianOperator(surface(net, batch_norm=batch_norm), (x, y), batch_size=4)
    if fails:
        with pytest.raises(Exception, match="nan"):
            operator.product(torch.ones(operator.dimension))
    else:
        operator.product(torch.ones(operator.dimension))
    assert {name: module.training for name, module in net.named_modules()} == modes
    assert {name: value._version for name, value in net.named_buffers()} == versions
    assert {name: parameter.requires_grad for name, parameter in net.named_parameters()} == flags
    assert all(parameter.grad is None for parameter in net.parameters())
    for name, value in net.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_dropout_is_off_and_frozen_parameters_can_be_measured() -> None:
    net, data = nn.Sequential(convolutional(), nn.Dropout(0.9)).train().requires_grad_(False), images(8)
    operator = HessianOperator(surface(net), data)
    vector = torch.ones(operator.dimension)
    assert torch.equal(operator.product(vector), operator.product(vector))
    torch.testing.assert_close(operator.product(vector), HessianOperator(surface(), data).product(vector))


def test_the_surface_follows_the_parameters() -> None:
    net, data = convolutional(), images(8)
    operator = HessianOperator(surface(net), data)
    before = operator.loss()
    with torch.no_grad():
        net[4].weight.mul_(2)
    assert operator.loss() != before
    assert operator.fingerprint() != HessianOperator(surface(), data).fingerprint()


def test_parameters_are_chosen_by_name_module_flag_or_list() -> None:
    net = convolutional()
    assert list(select_parameters(net, "all")) == [name for name, _ in net.named_parameters()]
    assert list(select_parameters(net, "4")) == ["4.weight", "4.bias"]
    assert list(select_parameters(net, ["4.bias", "0"])) == ["0.weight", "0.bias", "4.bias"]
    assert list(select_parameters(net, [net[1].weight])) == ["1.weight"]
    net[0].requires_grad_(False)
    assert list(select_parameters(net, "trainable")) == ["1.weight", "1.bias", "4.weight", "4.bias"]
    for choice, message in (
        ("head", "no module or parameter named 'head'; its first level is: 0, 1"),
        ("2", "has no parameters"),
        ([], "no parameter is chosen"),
        ([nn.Parameter(torch.zeros(2))], "not one of the model's"),
    ):
        with pytest.raises(UsageError, match=message):
            select_parameters(net, choice)


def test_a_subset_gives_the_block_of_the_full_hessian() -> None:
    net, data = convolutional(), images(8)
    full = HessianOperator(surface(net), data)
    block = HessianOperator(surface(net, parameters="4"), data)
    matrix = full.product(torch.eye(full.dimension))
    torch.testing.assert_close(
        block.product(torch.eye(block.dimension)), matrix[-block.dimension :, -block.dimension :], atol=1e-13, rtol=0
    )


def test_shared_parameters_count_once() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 4).double()
    net = nn.Sequential(layer, nn.Tanh(), layer)
    operator = HessianOperator(surface(net), (torch.randn(6, 4).double(), torch.randint(0, 4, (6,))))
    assert operator.dimension == 20
    matrix = operator.product(torch.eye(20))
    torch.testing.assert_close(matrix, matrix.T, atol=1e-14, rtol=0)


def test_batch_norm_policy_errors() -> None:
    with pytest.raises(UsageError, match="'source' or 'batch'"):
        surface(batch_norm="train")
    with pytest.raises(UsageError, match="'0' stores no statistics"):
        surface(nn.Sequential(nn.BatchNorm2d(2, track_running_stats=False), convolutional()))
    with pytest.raises(UsageError, match=r"call model.float\(\)"):
        surface(convolutional().half())
    mixed = convolutional()
    mixed[4].float()
    with pytest.raises(UsageError, match="one type and one device"):
        surface(mixed)


def test_data_is_read_in_a_fixed_order() -> None:
    x, y = images(6)
    dataset = torch.utils.data.TensorDataset(x, y)
    loader = torch.utils.data.DataLoader(dataset, batch_size=2, shuffle=True)
    for data in ((x, y), dataset, loader, TensorSamples(x, y), DatasetSamples(dataset)):
        inputs, targets = as_samples(data).batch([4, 0])
        assert torch.equal(inputs, x[[4, 0]]) and torch.equal(targets, y[[4, 0]])
    assert as_samples(x).batch(range(2, 4))[1] is None
    assert samples_digest(as_samples((x, y))) == samples_digest(as_samples(dataset))
    assert samples_digest(as_samples((x, y))) != samples_digest(as_samples((x.flip(0), y)))


def test_data_that_cannot_be_used_is_refused() -> None:
    class Stream(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
        def __iter__(self):  # type: ignore[no-untyped-def]
            yield from ()

    with pytest.raises(UsageError, match="fixed order"):
        as_samples(torch.utils.data.DataLoader(Stream()))
    with pytest.raises(UsageError, match="cannot read samples from generator"):
        as_samples(x for x in [1])
    with pytest.raises(UsageError, match="3 inputs but 2 targets"):
        as_samples((torch.zeros(3, 1), torch.zeros(2)))
    with pytest.raises(DataSetTooSmallError, match="empty"):
        as_samples(torch.zeros(0, 3))
    with pytest.raises(UsageError, match="a batch holds str"):
        HessianOperator(surface(), [("a", 1), ("b", 2)]).loss()


def test_inputs_may_be_tuples_and_targets_may_be_missing() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 3)

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return self.linear(a + b)

    def entropy(outputs: torch.Tensor, targets: None) -> torch.Tensor:
        assert targets is None
        return -(outputs.softmax(1) * outputs.log_softmax(1)).sum(1).mean()

    def pairs(items: list[torch.Tensor]) -> tuple[tuple[torch.Tensor, torch.Tensor], None]:
        stacked = torch.stack(items)
        return (stacked, stacked), None

    x = torch.randn(5, 2).double()
    operator = HessianOperator(LossSurface(Sum().double(), entropy), DatasetSamples(list(x), pairs), batch_size=2)
    matrix = operator.product(torch.eye(operator.dimension))
    torch.testing.assert_close(matrix, matrix.T, atol=1e-14, rtol=0)
    values = torch.linalg.eigvalsh(matrix)
    assert values[0] < -1e-4  # entropy is not convex
