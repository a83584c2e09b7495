"""Labelled images: read as the device reads frames, labelled by folder or array, sampled and split fairly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edgetta.errors import UsageError
from edgetta.sources import SourceError, open_source
from edgetta.sources.labelled import Labelled, check_classes, folder_classes, read_labelled, read_pictures, split
from edgetta.sources.tensors import images_of

SHAPE = (3, 8, 8)


def picture(path: Path, grey: int, size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), grey, np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two cats and three dogs of other sizes, grey values 10, 11, 20, 21, 22."""
    for name, greys in (("cat", (10, 11)), ("dog", (20, 21, 22))):
        for grey in greys:
            picture(tmp_path / "data" / name / f"{grey}.png", grey, (12, 9))
    return tmp_path / "data"


def greys(data: Labelled) -> list[int]:
    return [int(image.float().mean()) for image in data.images]


def test_sub_folders_are_classes_in_alphabetical_order(folder: Path) -> None:
    data = read_labelled(str(folder), SHAPE)
    assert data.classes == ("cat", "dog") and data.labels.tolist() == [0, 0, 1, 1, 1]
    assert data.images.shape == (5, 3, 8, 8) and data.images.dtype == torch.uint8
    assert greys(data) == [10, 11, 20, 21, 22] and len(data) == 5


def test_images_are_those_that_a_stream_delivers(folder: Path) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (30, 20, 3), dtype=np.uint8)).save(folder / "cat" / "noise.jpg")
    data = read_labelled(str(folder), SHAPE)
    with open_source(folder, size=SHAPE[1:]) as source:
        stream = images_of(list(source)).permute(0, 3, 1, 2)
    assert torch.equal(data.images, stream)


def test_given_classes_decide_the_labels(folder: Path) -> None:
    data = read_labelled(str(folder), SHAPE, classes=("dog", "bird", "cat"))
    assert data.labels.tolist() == [2, 2, 0, 0, 0] and data.classes == ("dog", "bird", "cat")
    with pytest.raises(UsageError, match="has the sub-folder 'cat', which is none of the 2 classes given"):
        read_labelled(str(folder), SHAPE, classes=("dog", "bird"))


def test_a_class_has_its_number_before_anything_is_read(tmp_path: Path) -> None:
    """An empty class, one whose picture is damaged, and one that a sample misses renumber no other."""
    for number, name in enumerate(("ant", "bee", "cat", "dog", "eel")):
        for index in range(0 if name == "cat" else 1 if name == "bee" else 6):
            picture(tmp_path / name / f"{index}.png", 40 * number)
    (tmp_path / "cat").mkdir()
    for limit in (None, 5):
        data = read_labelled(str(tmp_path), SHAPE, limit=limit)
        assert data.classes == ("ant", "bee", "cat", "dog", "eel")
        assert [40 * label for label in data.labels.tolist()] == greys(data)
    (tmp_path / "bee" / "0.png").write_bytes(b"")
    data = read_labelled(str(tmp_path), SHAPE)
    assert [40 * label for label in data.labels.tolist()] == greys(data) and set(greys(data)) == {0, 120, 160}
    assert check_classes(data, 5) is data
    with pytest.raises(UsageError, match="has 5 classes and the model 6, so that nobody knows which is which"):
        check_classes(data, 6)


def test_labels_beyond_the_models_classes() -> None:
    data = Labelled(torch.zeros(3, *SHAPE), torch.tensor([0, 4, 1]), None, "x.npz")
    assert check_classes(data, 5) is data
    with pytest.raises(UsageError, match=r"x\.npz has the label 4, and the model has 4 classes, from 0"):
        check_classes(data, 4)


def test_folders_that_are_numbers(tmp_path: Path) -> None:
    for number in range(11):
        (tmp_path / "short" / str(number)).mkdir(parents=True)
        (tmp_path / "long" / f"{number:02d}").mkdir(parents=True)
    assert folder_classes(tmp_path / "long")[10] == "10"
    with pytest.raises(UsageError, match="in alphabetical order '10' would be class 2"):
        folder_classes(tmp_path / "short")
    (tmp_path / "short" / "10").rmdir()
    assert folder_classes(tmp_path / "short") == tuple("0123456789")


def test_what_cannot_be_used_is_skipped_and_named(folder: Path) -> None:
    (folder / "cat" / "broken.png").write_bytes((folder / "cat" / "10.png").read_bytes()[:50])
    (folder / "dog" / "text.jpg").write_text("no picture")
    picture(folder / "loose.png", 1)
    data = read_labelled(str(folder), SHAPE)
    assert greys(data) == [10, 11, 20, 21, 22] and data.labels.tolist() == [0, 0, 1, 1, 1]
    assert data.skipped_count == 3
    assert {frame.name: frame.reason.split(":")[0] for frame in data.skipped} == {
        "cat/broken.png": "cannot be decoded",
        "dog/text.jpg": "not an image, or of a kind that is not read (JPEG, PNG, BMP, WebP, PPM are)",
        "loose.png": "not in the sub-folder of a class",
    }


def test_an_array_brings_its_labels(tmp_path: Path) -> None:
    images = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "x.npz", images=images, labels=np.array([2, 0, 1, 2, 0, 1]))
    data = read_labelled(str(tmp_path / "x.npz"), SHAPE)
    assert data.classes is None and data.labels.tolist() == [2, 0, 1, 2, 0, 1] and greys(data) == [0, 1, 2, 3, 4, 5]
    assert read_labelled(str(tmp_path / "x.npz"), SHAPE, classes=("a", "b", "c")).classes == ("a", "b", "c")
    with pytest.raises(UsageError, match="has the label 2, beyond the 2 classes given"):
        read_labelled(str(tmp_path / "x.npz"), SHAPE, classes=("a", "b"))


def test_labels_of_an_array_stay_with_their_rows(tmp_path: Path) -> None:
    images = np.zeros((4, 8, 8, 3), np.float32)
    images[1] = np.nan
    np.savez(tmp_path / "x.npz", images=images, labels=np.arange(4))
    data = read_labelled(str(tmp_path / "x.npz"), SHAPE)
    assert data.labels.tolist() == [0, 2, 3] and data.images.dtype == torch.float32
    assert data.skipped_count == 1 and data.skipped[0].name == "x.npz[1]"
    np.savez(tmp_path / "x.npz", images=images, labels=np.arange(4) - 1)
    with pytest.raises(SourceError, match="has the label -1; labels count from 0"):
        read_labelled(str(tmp_path / "x.npz"), SHAPE)


def test_data_without_labels(tmp_path: Path, folder: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((3, 8, 8, 3), np.uint8))
    for source in (str(tmp_path / "x.npy"), str(folder / "cat" / "10.png")):
        with pytest.raises(SourceError, match="has no labels; give a folder with one sub-folder per class"):
            read_labelled(source, SHAPE)
    with pytest.raises(SourceError, match="holds images but no sub-folders"):
        read_labelled(str(folder / "cat"), SHAPE)


def test_nothing_usable(folder: Path) -> None:
    for file in folder.rglob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(
        SourceError, match=r"no frame of .* can be used \(5 skipped; the first, cat/10.png: the file is"
    ):
        read_labelled(str(folder), SHAPE)


@pytest.mark.parametrize("limit", [1, 7, 10, 16, 30])
def test_a_limit_spreads_over_data_that_is_sorted(tmp_path: Path, limit: int) -> None:
    count = 20
    labels = np.repeat(np.arange(4), 5)
    images = np.arange(count, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "x.npz", images=images, labels=labels)
    for number in range(count):
        picture(tmp_path / "data" / str(labels[number]) / f"{number:02}.png", number)
    expected = sorted({number * count // min(limit, count) for number in range(min(limit, count))})
    for source in (tmp_path / "x.npz", tmp_path / "data"):
        data = read_labelled(str(source), SHAPE, classes=("0", "1", "2", "3"), limit=limit)
        assert greys(data) == expected and data.labels.tolist() == labels[expected].tolist()


def test_progress_reaches_the_end(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    read_labelled(str(folder), SHAPE, limit=4, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_many_frames_become_one_tensor_in_order(tmp_path: Path) -> None:
    values = np.arange(600, dtype=np.float32)[:, None, None] / 600 * np.ones((1, 8, 8), np.float32)
    np.save(tmp_path / "x.npy", values)
    pictures = read_pictures(str(tmp_path / "x.npy"), SHAPE)
    assert pictures.indices == tuple(range(600)) and pictures.names[599] == "x.npy[599]"
    torch.testing.assert_close(pictures.floats()[:, 0, 0, 0], torch.from_numpy(values[:, 0, 0]))
    assert len(pictures.floats(5)) == 5


def test_models_for_other_channels(folder: Path) -> None:
    assert read_pictures(str(folder), (1, 8, 8)).images.shape == (5, 1, 8, 8)
    with pytest.raises(UsageError, match="the model takes 2 channels"):
        read_pictures(str(folder), (2, 8, 8))


def labelled(counts: tuple[int, ...]) -> Labelled:
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return Labelled(torch.arange(len(labels))[:, None, None, None].float(), labels, None, "x")


def test_a_split_keeps_a_share_of_every_class_apart() -> None:
    data = labelled((100, 50, 10))
    rest, apart = split(data, 0.2, seed=3)
    assert torch.bincount(apart.labels).tolist() == [20, 10, 2]
    together = torch.cat([rest.images, apart.images]).flatten().tolist()
    assert sorted(together) == data.images.flatten().tolist(), "nothing is lost and nothing occurs twice"
    again, other = split(data, 0.2, seed=3)[1], split(data, 0.2, seed=4)[1]
    assert torch.equal(again.images, apart.images) and not torch.equal(other.images, apart.images)


def test_shuffling_mixes_and_loses_nothing() -> None:
    data = labelled((30, 30))
    mixed = data.shuffled(1)
    assert sorted(mixed.images.flatten().tolist()) == data.images.flatten().tolist()
    assert torch.equal(mixed.labels, (mixed.images.flatten() >= 30).long()), "labels stay with their images"
    assert 5 < int(mixed.labels[:30].sum()) < 25
    few = data.shuffled(1, 7)
    assert torch.equal(few.images, mixed.images[:7]) and not torch.equal(data.shuffled(2).labels, mixed.labels)


def test_splits_that_cannot_be() -> None:
    for share in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(UsageError, match="the share to keep apart must be above 0 and below 1"):
            split(labelled((5, 5)), share)
    with pytest.raises(UsageError, match=r"2 images cannot be split with 0\.1 kept apart"):
        split(labelled((1, 1)), 0.1)
