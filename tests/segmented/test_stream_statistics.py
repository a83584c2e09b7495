"""Statistics of the stream: how much a batch counts, what a change is, and that adaptation uses and undoes them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from edgetta.adaptation.network import AdaptiveNetwork
from edgetta.errors import UsageError
from edgetta.segmented.adapter import AdaptConfig, Adapter
from edgetta.segmented.stream_statistics import LEAST, StreamStatistics, image_signals
from tests.adaptation.backbones import network_of, small_model


def photographs(count: int, seed: int) -> Tensor:
    """Smooth images, each with its own light."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    light = 0.3 + 0.4 * torch.rand(count, 1, 1, 1, generator=generator)
    return torch.nn.functional.interpolate(coarse, 16, mode="bilinear") * light


def grain(count: int, seed: int) -> Tensor:
    """Images that differ in nothing that a mean over them shows."""
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def noisy(images: Tensor, seed: int) -> Tensor:
    return (images + 0.1 * torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))).clamp(0, 1)


def network() -> AdaptiveNetwork:
    return network_of(small_model(), "auto", dtype=torch.float32)


def test_images_that_are_alike_all_count_the_same_up_to_the_limit() -> None:
    stream = StreamStatistics(limit=100)
    shares = [stream.share(photographs(20, seed)) for seed in range(8)]
    assert shares == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4, 1 / 5, 1 / 6, 1 / 6, 1 / 6])
    assert stream.changes == 0


@pytest.mark.parametrize("batch", [1, 4, 16, 64])
def test_signals_tell_another_corruption(batch: int) -> None:
    stream = StreamStatistics()
    for start in range(0, 256, batch):
        stream.share(photographs(256, 0)[start : start + batch], signals_tell=True)
    assert stream.changes == 0
    after = noisy(photographs(64, 1), 2)
    shares = [stream.share(after[start : start + batch], signals_tell=True) for start in range(0, 64, batch)]
    assert stream.changes == 1
    seen = math.ceil(LEAST / batch)  # batches until there are enough images to compare
    assert shares[seen - 1] == pytest.approx(batch / (seen * batch))
    assert shares[-1] == pytest.approx(batch / 64)
    assert stream.domain is not None and stream.domain.count == 64


def test_the_signals_of_a_domain_are_those_of_its_images() -> None:
    stream = StreamStatistics()
    images = photographs(64, 3)
    for start, stop in ((0, 16), (16, 48), (48, 64)):
        stream.share(images[start:stop])
    signals = image_signals(images)
    assert stream.domain is not None
    assert torch.allclose(stream.domain.mean, signals.mean(0), atol=1e-5)
    assert torch.allclose(stream.domain.variance, signals.var(0, correction=0), rtol=1e-3, atol=1e-6)


def test_signals_tell_noise_blur_light_and_contrast_apart() -> None:
    images = photographs(32, 4)

    def of(images: Tensor) -> tuple[float, float, float, float]:
        """Light, contrast, steps, what stands out."""
        mean = image_signals(images).mean(0)
        return float(mean[:3].mean()), float(mean[3:6].mean()), float(mean[6]), float(mean[7])

    plain, noise, dark = of(images), of(noisy(images, 0)), of(images * 0.5)
    assert noise[3] > plain[3] + 1 and noise[2] > plain[2] + 0.3 and abs(noise[0] - plain[0]) < 0.05
    assert dark[0] < 0.6 * plain[0] and dark[1] == pytest.approx(plain[1] + math.log(0.5), abs=1e-3)
    blurred = torch.nn.functional.avg_pool2d(noisy(images, 0), 3, 1, 1)
    assert of(blurred)[3] < noise[3] - 1


def test_deviations_are_those_of_each_channel_and_images_may_be_tiny() -> None:
    images = photographs(8, 4).double()
    expected = images.std((2, 3), correction=0).log().float()
    assert torch.allclose(image_signals(images)[:, 3:6], expected, atol=1e-3)
    tiny = image_signals(torch.rand(8, 3, 1, 1))
    assert tiny.shape == (8, 6) and bool(torch.isfinite(tiny).all())


def test_a_network_normalises_with_the_average_over_the_stream() -> None:
    """Two batches that are alike: the second is predicted with the statistics of both."""
    adapter = Adapter(network(), AdaptConfig(when="off", source_share=0.0))
    images = photographs(64, 5)
    adapter.step(images[:32])
    first = adapter.step(images[32:]).logits
    reference = network()
    reference.forward(images[:32], share=1.0)
    assert torch.allclose(first, reference.forward(images[32:], share=0.5)[0], atol=1e-6)
    plain = Adapter(network(), AdaptConfig(when="off", statistics="batch"))
    plain.step(images[:32])
    assert torch.allclose(plain.step(images[32:]).logits, network().forward(images[32:])[0], atol=1e-6)
    assert not torch.allclose(plain.step(images[32:]).logits, first, atol=1e-4)


def test_statistics_that_depart_begin_a_new_average_at_once() -> None:
    """The batch with which another corruption begins is already predicted with its own statistics."""
    adapter = Adapter(network(), AdaptConfig(when="off", source_share=0.0))
    for seed in range(6):
        adapter.step(grain(32, seed))
    assert adapter.stream.changes == 0
    other = grain(32, 8) * 0.3 + 0.6
    logits = adapter.step(other).logits
    assert adapter.stream.changes == 1 and adapter.stream.domain is not None and adapter.stream.domain.count == 32
    fresh = network()
    assert torch.allclose(logits, fresh.forward(other, share=1.0)[0], atol=1e-5)
    again = grain(32, 9) * 0.3 + 0.6
    assert torch.allclose(adapter.step(again).logits, fresh.forward(again, share=0.5)[0], atol=1e-5)
    assert adapter.stream.changes == 1


def test_frames_of_a_still_camera_are_no_changes() -> None:
    """They depart by rounding and by the camera's noise alone, some more than others."""
    adapter = Adapter(network(), AdaptConfig(learning_rate=0.01, source_share=0.0))
    scene = photographs(32, 3)
    for step in range(8):
        noise = torch.randn(scene.shape, generator=torch.Generator().manual_seed(step))
        adapter.step((scene + (0.0 if step < 3 else 0.001) * noise).clamp(0, 1))
    assert adapter.stream.changes == 0


def test_a_departure_is_measured_against_chance() -> None:
    """The means of n images against those of m: what chance makes of it is divided out, in variances."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for count in (16, 64, 256):
        stream = StreamStatistics(limit=10_000)
        mean, seen = torch.zeros(400), 0
        for _ in range(40):
            share = stream.share(torch.rand(count, 1, 1, 1))
            batch = torch.randn(count, 400, generator=generator).mean(0)
            was = {"a.running_mean": mean, "a.running_var": torch.ones(400)}
            mean = torch.lerp(mean, batch, share)
            stream.departs(torch.rand(count, 1, 1, 1), share, [was], [{**was, "a.running_mean": mean}])
            seen += count
        assert stream.domain is not None and stream.changes == 0
        found.append(stream.domain.usual)
    assert all(0.7 < usual < 1.1 for usual in found), found


def test_a_policy_that_was_chosen_stays() -> None:
    chosen = network()
    chosen.batch_norm = "batch"
    adapter = Adapter(chosen, AdaptConfig(when="off"))
    images = photographs(64, 6)
    adapter.step(images[:32])
    assert torch.equal(adapter.step(images[32:]).logits, chosen.forward(images[32:])[0])


def test_a_batch_that_is_not_finite_leaves_the_average_as_it_was() -> None:
    adapter = Adapter(network())
    adapter.step(photographs(32, 7))
    before = adapter.stream.domain
    broken = photographs(32, 8)
    broken[3] = math.nan
    assert adapter.step(broken).reason == "non-finite"
    assert adapter.stream.domain is before
    assert adapter.step(photographs(32, 9)).adapted


def test_a_step_that_fails_leaves_the_average_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = Adapter(network())
    adapter.step(photographs(32, 7))
    before, statistics = adapter.stream.domain, adapter.network.statistics_snapshot()

    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(adapter.network, "backward", fail)
    with pytest.raises(MemoryError):
        adapter.step(noisy(photographs(32, 8), 0))
    assert adapter.stream.domain is before and adapter.stream.changes == 0
    for was, now in zip(statistics, adapter.network.statistics_snapshot(), strict=True):
        assert all(torch.equal(was[name], now[name]) for name in was)


@pytest.mark.parametrize("setting", [{"statistics": "none"}, {"statistics_images": 0}, {"change": 0.0}])
def test_settings_out_of_range_are_named(setting: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=next(iter(setting))):
        AdaptConfig(**setting)  # type: ignore[arg-type]


def test_on_drift_adapts_until_the_average_is_full_and_again_after_a_change() -> None:
    config = AdaptConfig(when="on-drift", statistics_images=64, source_share=0.0)
    adapter = Adapter(network(), config)
    adapted = [adapter.step(grain(32, seed)).adapted for seed in range(5)]
    assert adapted == [True, True, False, False, False]
    changed = [adapter.step(grain(32, seed) * 0.3 + 0.6).adapted for seed in range(5)]
    assert changed == [False, True, False, False, False], "a change is noticed with the first batch, and acted on next"
    assert adapter.updates == 3 and adapter.stream.changes == 1


def test_on_drift_needs_to_see_changes() -> None:
    with pytest.raises(UsageError, match="on-drift"):
        AdaptConfig(when="on-drift", statistics="batch")


def predictions(*classes: int, of: int = 5) -> torch.Tensor:
    return 4 * torch.nn.functional.one_hot(torch.tensor(classes), of).float()


def taken_in(*batches: tuple[int, ...]) -> StreamStatistics:
    """Statistics of a stream with these predictions."""
    stream = StreamStatistics()
    for number, classes in enumerate(batches):
        stream.share(grain(len(classes), number))
        stream.saw(predictions(*classes))
    return stream


@pytest.mark.parametrize("size", [1, 8, 40])
def test_runs_of_classes_are_told_from_shuffled_ones(size: int) -> None:
    """Forty images of each of five classes, class after class, or in any order; as batches of any size."""
    runs = [kind for kind in range(5) for _ in range(40)]
    shuffled = [runs[i] for i in torch.randperm(200, generator=torch.Generator().manual_seed(1)).tolist()]
    for order, expected in ((runs * 2, True), (shuffled * 2, False)):
        batches = [tuple(order[i : i + size]) for i in range(0, len(order), size)]
        assert taken_in(*batches).in_runs == expected


def test_one_class_alone_is_no_run_and_few_images_tell_nothing() -> None:
    assert not taken_in(*[(2,) * 32] * 4).in_runs, "that all are alike is what the shares of the classes say"
    assert not taken_in((0,) * 8 + (1,) * 8).in_runs


def test_runs_blend_more_of_the_source_in() -> None:
    adapter = Adapter(network(), AdaptConfig(when="off"))
    adapter.step(grain(32, 0))
    adapter.stream.domain = replace(adapter.stream.domain, seen=64, alike=0.9, classes=torch.full((5,), 0.2))  # type: ignore[type-var]
    adapter.step(grain(32, 1))
    assert adapter.stream.source >= 0.75
    asked = Adapter(network(), AdaptConfig(when="off", source_share=0.25))
    asked.step(grain(32, 0))
    asked.stream.domain = replace(asked.stream.domain, seen=64, alike=0.9, classes=torch.full((5,), 0.2))  # type: ignore[type-var]
    asked.step(grain(32, 1))
    assert asked.stream.source == 0.25, "what was asked for is kept"


def test_what_was_predicted_is_saved_and_restored() -> None:
    stream = taken_in((0, 1, 2, 3, 4) * 8, (1,) * 40)
    again = StreamStatistics()
    again.restore(stream.tensors())
    assert again.domain is not None and stream.domain is not None
    assert (again.domain.latest, again.domain.seen, again.domain.alike) == (1, 80, stream.domain.alike)
    assert torch.equal(again.domain.classes, stream.domain.classes)
