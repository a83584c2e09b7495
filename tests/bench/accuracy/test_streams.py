"""The streams of the accuracy bench: what comes, in which order, and that nothing depends on what was cached."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgetta.bench.accuracy import images as module
from edgetta.bench.accuracy.images import CLEAN, ImageCache
from edgetta.bench.accuracy.streams import (
    SEVERITIES,
    STREAMS,
    Batch,
    StreamSpec,
    batches,
    clean_batches,
    runs_of_classes,
)
from edgetta.errors import UsageError
from edgetta.sources.datasets import Images

KINDS = ("gaussian_noise", "contrast")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageCache:
    """Images whose mean is their number, ten classes in turn."""

    def numbered(split: str, rows: np.ndarray) -> Images:
        pixels = np.broadcast_to(rows[:, None, None, None] % 200 + 20, (len(rows), 32, 32, 3)).astype(np.uint8)
        return Images(pixels, (rows % 10).astype(np.int64), split)

    monkeypatch.setattr(module, "cifar10_jpeg", numbered)
    return ImageCache(tmp_path / "cache")


def stream(cache: ImageCache, name: str, count: int = 45, batch: int = 16, **others: int) -> list[Batch]:
    return list(batches(StreamSpec(name, count, batch, 3, corruptions=KINDS, **others), cache))  # type: ignore[arg-type]


def kinds(found: list[Batch]) -> list[str]:
    return [kind for batch in found for kind in batch.kinds]


def test_continual_is_one_corruption_after_another(cache: ImageCache) -> None:
    found = stream(cache, "continual")
    assert kinds(found) == [KINDS[0]] * 45 + [KINDS[1]] * 45
    assert [len(batch.labels) for batch in found] == [16, 16, 13] * 2
    assert all(batch.images.dtype == torch.float32 and float(batch.images.max()) <= 1 for batch in found)
    assert torch.equal(found[0].labels, found[3].labels) and not torch.equal(found[0].images, found[3].images)


def test_mixed_holds_the_same_images_in_another_order(cache: ImageCache) -> None:
    mixed, continual = stream(cache, "mixed"), stream(cache, "continual")
    assert sorted(kinds(mixed)) == sorted(kinds(continual)) and len(set(mixed[0].kinds)) == 2

    def content(found: list[Batch]) -> list[float]:
        return sorted(float(image.sum()) for batch in found for image in batch.images)

    assert content(mixed) == content(continual)


def test_gradual_rises_and_falls(cache: ImageCache, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    whole = ImageCache.images

    def spy(self: ImageCache, split: str, kind: str, severity: int, count: int, seed: int) -> Images:
        asked.append(severity)
        return whole(self, split, kind, severity, count, seed)  # type: ignore[arg-type]

    monkeypatch.setattr(ImageCache, "images", spy)
    found = stream(cache, "gradual")
    assert asked == [*SEVERITIES, *SEVERITIES] and len(kinds(found)) == 90


def test_correlated_comes_in_runs_of_classes() -> None:
    labels = np.arange(1000) % 10
    order = runs_of_classes(labels, 0)
    assert sorted(order) == list(range(1000))
    same = np.mean(labels[order][1:] == labels[order][:-1])
    assert same > 0.9 and np.array_equal(order, runs_of_classes(labels, 0))


def test_recurring_is_the_same_again(cache: ImageCache) -> None:
    found = stream(cache, "recurring", rounds=3)
    assert [batch.round for batch in found] == [0] * 6 + [1] * 6 + [2] * 6
    assert all(torch.equal(a.images, b.images) for a, b in zip(found[:6], found[12:], strict=True))


def test_alternating_has_clean_stretches_between(cache: ImageCache) -> None:
    assert kinds(stream(cache, "alternating")) == [*[CLEAN] * 22, *[KINDS[0]] * 45, *[CLEAN] * 22, *[KINDS[1]] * 45]


def test_clean_images_afterwards_are_none_of_the_stream(cache: ImageCache) -> None:
    spec = StreamSpec("jpeg-shift", 45, 16, 3, corruptions=KINDS)
    during = {float(image.sum()) for batch in batches(spec, cache) for image in batch.images}
    after = list(clean_batches(spec, cache, 30))
    assert [len(batch.labels) for batch in after] == [16, 14]
    assert len(during) == 45 or len(during) > 30  # numbers repeat after 200
    rows = np.random.default_rng(3).permutation(10_000)[:75]
    assert torch.cat([batch.labels for batch in after]).tolist() == (rows[45:] % 10).tolist()


def test_a_larger_count_begins_with_the_images_of_a_smaller_one(cache: ImageCache) -> None:
    small = cache.images("test", "gaussian_noise", 5, 10, 0)
    large = cache.images("test", "gaussian_noise", 5, 20, 0)
    assert np.array_equal(small.images, large.images[:10])


def test_what_is_cached_is_what_was_made_and_damage_is_made_again(cache: ImageCache) -> None:
    made = cache.images("test", "contrast", 5, 10, 0)
    files = list(cache.folder.glob("*contrast*"))
    assert len(files) == 1 and np.array_equal(cache.images("test", "contrast", 5, 10, 0).images, made.images)
    files[0].write_bytes(files[0].read_bytes()[:-100])
    assert np.array_equal(cache.images("test", "contrast", 5, 10, 0).images, made.images)


def test_settings_that_are_none() -> None:
    assert len(STREAMS) == 7
    with pytest.raises(UsageError, match="unknown stream"):
        StreamSpec("endless", 10, 2, 0)
    with pytest.raises(UsageError, match="at least one image"):
        StreamSpec("continual", 0, 2, 0)
