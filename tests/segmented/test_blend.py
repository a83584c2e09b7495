"""The stream's statistics blended with the source's: the arithmetic, the choice of the share, and that it lasts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from edgetta.adaptation import stream_statistics
from edgetta.adaptation.network import AdaptiveNetwork
from edgetta.errors import UsageError
from edgetta.segmented.adapter import AdaptConfig, Adapter
from edgetta.segmented.blend import SHARES, before_images, stream_alone
from edgetta.segmented.objective import entropy
from edgetta.segmented.stream_statistics import COMPARED, FEW, SURER, StreamStatistics
from tests.adaptation.backbones import network_of, small_model


def statistics(seed: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    numbers = [torch.rand(5, generator=generator, dtype=torch.float64) for _ in range(4)]
    names = ("a.running_mean", "a.running_var")
    return [
        dict(zip(names, numbers[:2], strict=True)),
        dict(zip(("norm_mean", "norm_variance"), numbers[2:], strict=True)),
    ]


def lerped(a: list[dict[str, Tensor]], b: list[dict[str, Tensor]], share: float) -> list[dict[str, Tensor]]:
    return [{name: (1 - share) * x[name] + share * y[name] for name in x} for x, y in zip(a, b, strict=True)]


def close(a: list[dict[str, Tensor]], b: list[dict[str, Tensor]]) -> bool:
    return all(torch.allclose(x[name], y[name], atol=1e-12) for x, y in zip(a, b, strict=True) for name in x)


def network() -> AdaptiveNetwork:
    return network_of(small_model(), "auto", dtype=torch.float32)


def grain(count: int, seed: int) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("images", [1.0, 0.5, 0.01])
def test_images_make_the_blend_that_is_asked_for(share: float, images: float) -> None:
    stream, source, own = statistics(0), statistics(1), statistics(2)
    states, momentum = before_images(stream, source, share, images)
    made = lerped(states, own, momentum)
    now = lerped(stream, own, images)  # the stream's average with the images
    assert close(made, lerped(now, source, share))
    assert close(stream_alone(made, source, share), now)


def test_variances_of_the_stream_are_never_negative() -> None:
    source = [{"a.running_mean": torch.tensor([1.0]), "a.running_var": torch.tensor([1.0])}]
    blended = [{"a.running_mean": torch.tensor([0.0]), "a.running_var": torch.tensor([0.1])}]
    alone = stream_alone(blended, source, 0.75)
    assert alone[0]["a.running_var"].item() == 0 and alone[0]["a.running_mean"].item() == pytest.approx(-3)


def surer(by: dict[float, float], count: int = 64) -> Callable[[float], Tensor]:
    return lambda share: torch.full((count,), by[share])


def test_the_share_rises_as_long_as_predictions_are_clearly_surer() -> None:
    stream = StreamStatistics()
    stream.share(grain(64, 0))
    clearly, hardly = 1 - 2 * SURER, 1 - SURER / 2
    assert stream.choose_source(surer({0.0: 1, 0.25: hardly})) == 0
    stream.share(grain(64, 1))
    assert stream.choose_source(surer({0.0: 1, 0.25: 0.5, 0.5: 0.5 * clearly, 0.75: 0.5 * clearly * hardly})) == 0.5
    assert stream.choose_source(surer({0.0: 1, 0.25: 0.5, 0.5: 0.4, 0.75: 0.4})) == 0.5, "of all since the change"


def test_a_few_predictions_choose_nothing_and_what_is_no_number_neither() -> None:
    stream = StreamStatistics()
    stream.share(grain(8, 0))
    sure = {0.0: 1.0, 0.25: 0.1, 0.5: 0.1}
    for _ in range(FEW // 8 - 1):
        assert stream.choose_source(surer(sure, 8)) == 0
    assert stream.choose_source(surer(sure, 8)) == 0.25, "all since the change count"
    other = StreamStatistics()
    other.share(grain(64, 0))
    assert other.choose_source(surer({0.0: 1.0, 0.25: float("nan")})) == 0


def test_choosing_ends_after_so_many_images() -> None:
    adapter = Adapter(network(), AdaptConfig(when="off"))
    for seed in range(COMPARED // 32):
        assert adapter.stream.domain is None or adapter.stream.compares
        adapter.step(grain(32, seed))
    assert not adapter.stream.compares and adapter.stream.changes == 0


def test_a_network_predicts_with_the_blend() -> None:
    """Two batches that are alike: a quarter of the statistics is the source's, the rest of both batches."""
    adapter = Adapter(network(), AdaptConfig(when="off", source_share=0.25))
    adapter.step(grain(32, 0))
    logits = adapter.step(grain(32, 1)).logits
    reference = network()
    source = reference.statistics_snapshot()
    for seed, share in ((0, 1.0), (1, 0.5)):
        stream = source if seed == 0 else stream_alone(reference.statistics_snapshot(), source, 0.25)
        states, momentum = before_images(stream, source, 0.25, share)
        reference.restore_statistics(states)
        wanted, _ = reference.forward(grain(32, seed), share=momentum)
    assert torch.allclose(logits, wanted, atol=1e-5)
    plain = Adapter(network(), AdaptConfig(when="off", source_share=0.0))
    plain.step(grain(32, 0))
    assert not torch.allclose(plain.step(grain(32, 1)).logits, logits, atol=1e-3)


@pytest.fixture
def easily_surer(monkeypatch: pytest.MonkeyPatch) -> float:
    """A network with random weights is hardly surer of anything."""
    monkeypatch.setattr(stream_statistics, "SURER", 0.015)
    return 0.015


def test_the_share_that_is_chosen_is_the_one_that_predicts(easily_surer: float) -> None:
    adapter = Adapter(network(), AdaptConfig(when="off"))
    images = grain(64, 3)
    logits = adapter.step(images).logits
    by_share = {
        share: Adapter(network(), AdaptConfig(when="off", source_share=share)).step(images).logits for share in SHARES
    }
    chosen = 0
    means = [float(entropy(by_share[share]).mean()) for share in SHARES]
    while chosen + 1 < len(SHARES) and means[chosen + 1] < (1 - easily_surer) * means[chosen]:
        chosen += 1
    assert adapter.stream.source == SHARES[chosen] > 0, "this network is surer with the source's statistics"
    assert torch.allclose(logits, by_share[SHARES[chosen]], atol=1e-6)


def test_a_change_is_seen_through_the_blend() -> None:
    adapter = Adapter(network(), AdaptConfig(when="off", source_share=0.75))
    for seed in range(6):
        adapter.step(grain(32, seed))
    assert adapter.stream.changes == 0
    adapter.step(grain(32, 8) * 0.3 + 0.6)
    assert adapter.stream.changes == 1


def test_the_choice_is_saved_and_restored(easily_surer: float) -> None:
    adapter = Adapter(network(), AdaptConfig(when="off"))
    adapter.step(grain(64, 3))
    restored = StreamStatistics()
    restored.restore({name: tensor.clone() for name, tensor in adapter.stream.tensors().items()})
    assert restored.source == adapter.stream.source > 0 and restored.compares
    damaged = adapter.stream.tensors()
    damaged["numbers"][2] = 1.0
    with pytest.raises(ValueError, match="share of 1"):
        restored.restore(damaged)


def test_another_share_is_blended_from_the_same_stream() -> None:
    """Statistics saved with one share and continued with another are those that the other would have had."""
    images = grain(64, 3)
    saved = Adapter(network(), AdaptConfig(when="off", source_share=0.25))
    saved.step(images)
    assert saved.stream.source == 0.25
    continued = Adapter(network(), AdaptConfig(when="off", source_share=0.0))
    continued.network.load_state_dict(saved.network.state_dict())
    continued.stream.restore(saved.stream.tensors())
    continued.step(images)
    plain = Adapter(network(), AdaptConfig(when="off", source_share=0.0))
    for _ in range(2):
        plain.step(images)
    stem = "stem.state.stem.1.running_mean"  # later ones depend on how those before them normalise
    assert torch.allclose(continued.network.state_dict()[stem], plain.network.state_dict()[stem], atol=1e-6)
    assert not torch.allclose(saved.network.state_dict()[stem], plain.network.state_dict()[stem], atol=1e-4)
    assert continued.stream.source == 0


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_that_is_none(share: float) -> None:
    with pytest.raises(UsageError, match="source_share must be at least 0 and below 1"):
        AdaptConfig(source_share=share)
