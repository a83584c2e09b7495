"""Scoring a method on a stream, with methods whose errors are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from edgetta.adaptation.config import AdaptConfig
from edgetta.bench.accuracy import images as module
from edgetta.bench.accuracy.edgetta_method import AffineOracle, Edgetta, MetaOracle
from edgetta.bench.accuracy.images import ImageCache
from edgetta.bench.accuracy.score import score
from edgetta.bench.accuracy.streams import StreamSpec
from edgetta.bench.baselines import BatchNormStatistics, Source
from edgetta.offline.network import Network
from edgetta.sources.datasets import Images
from tests.adaptation.backbones import SmallNet, randomised, small_programs
from tests.adaptation.pictures import pictures
from tests.small_bundle import small_content

KINDS = ("brightness", "contrast")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageCache:
    def drawn(split: str, rows: np.ndarray) -> Images:
        pixels = np.concatenate([pictures(1, int(row)) for row in rows]).transpose(0, 2, 3, 1)
        pixels = (255 * pixels).astype(np.uint8)
        return Images(pixels, (rows % 5).astype(np.int64), split)

    monkeypatch.setattr(module, "cifar10_jpeg", drawn)
    return ImageCache(tmp_path / "cache")


def network(adapt: str = "affine") -> Network:
    programs = small_programs(adapt=adapt)
    return Network(programs, small_content(programs))


def config(**settings: Any) -> AdaptConfig:
    return AdaptConfig(hold_back=False, **settings)


class Always:
    """Says the same class of every image."""

    def __call__(self, images: Tensor) -> Tensor:
        return torch.eye(5)[0].expand(len(images), 5)

    def reset(self) -> None:
        pass


def spec(name: str = "continual", rounds: int = 20) -> StreamSpec:
    return StreamSpec(name, 40, 20, 1, corruptions=KINDS, rounds=rounds)


def test_errors_are_shares_of_the_images_of_each_corruption(cache: ImageCache) -> None:
    labels = cache.images("test", "clean", 1, 40, 1).labels
    found = score(Always(), spec(), cache, clean=10)
    expected = 100 * float(np.mean(labels != 0))
    assert found.errors == {kind: pytest.approx(expected) for kind in KINDS} and found.error == pytest.approx(expected)
    assert found.kept_bytes == 0 and found.adapted_share == 0 and found.clean_error_after == found.clean_error_before
    assert "rounds" not in found.row()


def test_rounds_of_a_stream_that_recurs(cache: ImageCache) -> None:
    found = score(Always(), spec("recurring", 3), cache, clean=0)
    assert len(found.row()["rounds"]) == 3 and found.rounds == [pytest.approx(found.error)] * 3


def test_edgetta_counts_its_updates_and_what_it_keeps(cache: ImageCache) -> None:
    every = score(Edgetta(network("bias"), config()), spec(), cache, clean=0)
    half = score(Edgetta(network("bias"), config(when="every 2")), spec(), cache, clean=0)
    off = score(Edgetta(network("bias"), config(when="off")), spec(), cache, clean=0)
    assert (every.adapted_share, half.adapted_share, off.adapted_share) == (1, 0.5, 0)
    assert every.kept_bytes > 0 == off.kept_bytes


def test_the_oracle_is_told_labels_and_learns_them(cache: ImageCache) -> None:
    """Labels that have nothing to do with the images can only be learnt by heart, round after round."""
    model = randomised(SmallNet())
    long = spec("recurring", 30)
    plain = score(BatchNormStatistics(model), long, cache, clean=0).rounds
    for oracle in (AffineOracle(model, 1e-2), MetaOracle(network(), 1e-2)):
        rounds = score(oracle, long, cache, clean=0).rounds
        assert rounds[-1] < rounds[0] - 10, type(oracle)
    assert plain[-1] == plain[0]


def test_the_same_method_twice_gives_the_same(cache: ImageCache) -> None:
    model = randomised(SmallNet())
    assert score(Source(model), spec(), cache).errors == score(Source(model), spec(), cache).errors
    method = Edgetta(network(), config(learning_rate=1e-2))
    first = score(method, spec(), cache)
    assert score(method, spec(), cache).errors == first.errors, "a score begins with a reset"


def test_an_ablation_changes_one_thing_at_a_time_and_goes_on(
    cache: ImageCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgetta.bench.accuracy import ablation
    from edgetta.bench.accuracy.methods import SourceModel

    made = SourceModel("small", "small", randomised(SmallNet()), torch.zeros(1), network(), SmallNet.cuts, cache)
    asked: list[int] = []

    def source(weights: str, parts: int = 4) -> SourceModel:
        asked.append(parts)
        return made

    monkeypatch.setattr(ablation, "tuning_stream", lambda images, batch: spec())
    monkeypatch.setattr(ablation, "CHANGES", {"as shipped": {"hold_back": False}, "not adapted": {"when": "off"}})
    monkeypatch.setattr(ablation, "MODELS", {"five parts": {"parts": 5}})
    rows: list[dict[str, object]] = []
    steps = ablation.ablate(source, cache, rows, 40, 20, "small")
    next(steps), next(steps)
    assert [row["variant"] for row in rows] == ["as shipped", "not adapted"]
    assert [row["adapted_share"] for row in rows] == [1.0, 0.0]
    assert len(list(ablation.ablate(source, cache, rows, 40, 20, "small"))) == 3
    assert len(rows) == 3 and asked == [4, 4, 5]


def test_a_mirrored_baseline_predicts_with_both_views_and_learns_as_ever() -> None:
    from edgetta.bench.accuracy.mirrored import MirroredTent
    from edgetta.bench.baselines import Tent

    model = randomised(SmallNet())
    images = torch.rand(24, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    plain, mirrored = Tent(model), MirroredTent(model)
    with torch.no_grad():
        other = plain.model(images.flip(3)).softmax(1)
    expected = (plain(images).softmax(1) + other) / 2
    assert torch.allclose(mirrored(images).exp(), expected, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), mirrored.parameters(), strict=True))
