"""Data sets: what is given, in which order, split without leakage, and what is said when something is wrong."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgetta.errors import EdgettaError, UsageError
from edgetta.sources import datasets
from edgetta.sources.datasets import Images


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("EDGETTA_DATA", str(tmp_path))
    return tmp_path


def flat(count: int, side: int = 16) -> np.ndarray:
    """Image i is the grey 10 i."""
    return np.broadcast_to(np.arange(0, 10 * count, 10, dtype=np.uint8)[:, None, None, None], (count, side, side, 3))


def write_jpegs(path: Path, images: np.ndarray, header: int, **labels: np.ndarray) -> None:
    """In the layout of the project's JPEG copies: the first `header` bytes, equal in all, are stored once."""
    files = []
    for image in images:
        buffer = BytesIO()
        Image.fromarray(np.ascontiguousarray(image)).save(buffer, "JPEG", quality=75)
        files.append(buffer.getvalue())
    assert len({file[:header] for file in files}) == 1
    bodies = [file[header:] for file in files]
    arrays = {
        "data": np.frombuffer(b"".join(bodies), np.uint8),
        "offsets": np.cumsum([0, *map(len, bodies)]).astype(np.uint32),
        **labels,
    }
    if header:
        arrays["header"] = np.frombuffer(files[0][:header], np.uint8)
    np.savez(path, **arrays)


def test_the_folder_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGETTA_DATA", "elsewhere")
    assert datasets.data_folder() == Path("elsewhere")
    for unset in ("", None):
        monkeypatch.delenv("EDGETTA_DATA") if unset is None else monkeypatch.setenv("EDGETTA_DATA", unset)
        assert datasets.data_folder() == Path("data")


def test_subset_takes_rows_in_the_order_asked() -> None:
    images = Images(np.ascontiguousarray(flat(5)), np.arange(5), "five", ("a", "b", "c", "d", "e"))
    some = images.subset([4, 0])
    assert len(some) == 2 and some.labels.tolist() == [4, 0] and some.images[0, 0, 0, 0] == 40
    assert (some.name, some.classes) == ("five", images.classes)
    assert images.subset(np.array([True, False, False, True, False])).labels.tolist() == [0, 3]
    assert images.subset(slice(1, 3)).labels.tolist() == [1, 2]
    assert len(images.subset([])) == 0
    for wrong in ([5], [-1], [0.5], [[0]]):
        with pytest.raises(UsageError, match="five: rows must be whole numbers from 0 to 4"):
            images.subset(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 4, 4, 3)), np.zeros(2, np.int64), "float64"),
        (np.zeros((2, 4, 4, 1), np.uint8), np.zeros(2, np.int64), "not uint8 \\(N, H, W, 3\\)"),
        (np.zeros((2, 4, 4, 3), np.uint8), np.zeros(3, np.int64), "labels are int64 \\(3,\\)"),
        (np.zeros((2, 4, 4, 3), np.uint8), np.zeros(2, np.uint8), "labels are uint8"),
    ],
)
def test_images_of_another_kind_are_refused(images: np.ndarray, labels: np.ndarray, message: str) -> None:
    with pytest.raises(EdgettaError, match=f"mine: .*{message}"):
        Images(images, labels, "mine")


@pytest.mark.parametrize("split", ["train", "test"])
def test_cifar10_jpeg_decodes_the_rows_asked_for(split: str, folder: Path) -> None:
    write_jpegs(folder / f"cifar10_{split}_jpeg.npz", flat(6), 623, labels=np.arange(6, dtype=np.uint8))
    whole = datasets.cifar10_jpeg(split)
    assert whole.images.shape == (6, 16, 16, 3) and whole.labels.dtype == np.int64
    assert np.abs(whole.images.astype(int) - flat(6)).max() <= 2
    assert "JPEG-75 copy" in whole.name and split in whole.name
    some = datasets.cifar10_jpeg(split, rows=[5, 2])
    assert np.array_equal(some.images, whole.images[[5, 2]]) and some.labels.tolist() == [5, 2]
    with pytest.raises(UsageError, match="0 to 5"):
        datasets.cifar10_jpeg(split, rows=[6])
    assert len(datasets.cifar10_jpeg(split, rows=[])) == 0


def test_a_damaged_jpeg_is_named_by_its_row(folder: Path) -> None:
    path = folder / "cifar10_test_jpeg.npz"
    write_jpegs(path, flat(3), 623, labels=np.zeros(3, np.uint8))
    with np.load(path) as file:
        arrays = dict(file)
    arrays["offsets"][2] = arrays["offsets"][1] + 4  # image 1 ends too early
    np.savez(path, **arrays)
    assert len(datasets.cifar10_jpeg("test", rows=[0])) == 1
    with pytest.raises(EdgettaError, match="image 1 cannot be decoded"):
        datasets.cifar10_jpeg("test")


def test_imagenet_photographs(folder: Path) -> None:
    write_jpegs(
        folder / "nips17_imagenet1000_224_jpeg.npz", flat(3, 32), 0, labels_1000=np.array([7, 999, 0], np.int16)
    )
    photographs = datasets.imagenet1000(rows=slice(1, None))
    assert photographs.images.shape == (2, 32, 32, 3) and photographs.labels.tolist() == [999, 0]


def test_lossless_and_frozen_sets(folder: Path) -> None:
    labels = np.arange(4, dtype=np.uint8)
    np.savez(folder / "cifar10_test_lossless_subset.npz", images=flat(4), labels=labels)
    np.savez(folder / "cifar10c_sev5_lossless737.npz", labels=labels, clean=flat(4), fog=flat(4) + np.uint8(1))
    assert np.array_equal(datasets.cifar10_lossless("test").images, flat(4))
    assert np.array_equal(datasets.cifar10c_lossless("fog").images, flat(4) + np.uint8(1))
    assert "fog" in datasets.cifar10c_lossless("fog").name
    with pytest.raises(EdgettaError, match="holds no 'rain'; it has clean, fog, labels"):
        datasets.cifar10c_lossless("rain")


@pytest.mark.parametrize(
    "load",
    [
        lambda: datasets.cifar10_jpeg("train"),
        lambda: datasets.cifar10_lossless("test"),
        lambda: datasets.cifar10c_lossless("fog"),
        datasets.imagenet1000,
        lambda: datasets.cifar10_c("fog", 5),
        lambda: datasets.cifar100_c("fog", 5),
    ],
)
def test_absent_files_are_named(load: Callable[[], Images], folder: Path) -> None:
    with pytest.raises(EdgettaError, match=f"{folder}.* is absent; "):
        load()


def test_damaged_and_pickled_files_are_refused(folder: Path) -> None:
    path = folder / "cifar10_test_lossless_subset.npz"
    path.write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(EdgettaError, match=r"cannot be read.*replace it"):
        datasets.cifar10_lossless("test")
    np.savez(path, images=np.array([{}], object), labels=np.zeros(1))
    with pytest.raises(EdgettaError, match="cannot be read"):
        datasets.cifar10_lossless("test")


@pytest.mark.parametrize("load", [datasets.cifar10_jpeg, datasets.cifar10_lossless, datasets.digits])
def test_another_split_is_refused(load: Callable[[str], Images]) -> None:
    with pytest.raises(UsageError, match='"train" or "test"'):
        load("validation")


def test_published_layout(folder: Path) -> None:
    where = folder / "CIFAR-10-C"
    where.mkdir()
    np.save(where / "labels.npy", np.tile(np.arange(4, dtype=np.uint8), 5))
    np.save(where / "fog.npy", flat(20))
    third = datasets.cifar10_c("fog", 3)
    assert third.labels.tolist() == [0, 1, 2, 3]
    assert third.images[:, 0, 0, 0].tolist() == [80, 90, 100, 110]
    assert datasets.cifar10_c("fog", 5, rows=[3]).images[0, 0, 0, 0] == 190
    assert datasets.cifar100_c("fog", 1, folder=where).name == "CIFAR-100-C (fog, severity 1)"
    for severity in (0, 6):
        with pytest.raises(UsageError, match=f"no severity {severity}"):
            datasets.cifar10_c("fog", severity)
    np.save(where / "labels.npy", np.arange(19))
    with pytest.raises(EdgettaError, match="not 5 severities"):
        datasets.cifar10_c("fog", 1)
    np.save(where / "labels.npy", np.array([{}] * 20, object))
    with pytest.raises(EdgettaError, match="cannot be read"):
        datasets.cifar10_c("fog", 1)


def test_digits_are_split_by_hand_and_balanced() -> None:
    pytest.importorskip("sklearn")
    from sklearn.datasets import load_digits

    train, test = datasets.digits("train", size=8), datasets.digits("test", size=8)
    scans = np.round(load_digits().images * (255 / 16)).astype(np.uint8)
    where = {scan.tobytes(): number for number, scan in enumerate(scans)}
    assert len(where) == len(scans) == len(train) + len(test) == 1797  # no two scans are equal
    rows = {part.name: [where[image[..., 0].tobytes()] for image in part.images] for part in (train, test)}
    assert not set(rows[train.name]) & set(rows[test.name])
    form = np.searchsorted(datasets._FORMS, np.arange(1797), side="right")
    assert not set(form[rows[train.name]]) & set(form[rows[test.name]])
    for part in (train, test):
        counts = np.bincount(part.labels, minlength=10)
        assert counts.min() > 0.9 * counts.max()
        assert np.array_equal(part.labels, load_digits().target[rows[part.name]])


def test_forms_are_where_the_writers_start_their_text_again() -> None:
    pytest.importorskip("sklearn")
    from sklearn.datasets import load_digits

    text = "".join(map(str, load_digits().target))
    assert len(text) == datasets._FORMS[-1]
    for start, end in zip(datasets._FORMS, datasets._FORMS[1:], strict=False):
        assert text[start : start + 40].count("095565") == text[start:end].count("095565") == 1
        assert text[end - 8 : end].endswith(("98", "93", "08"))


def test_digits_are_seeded_and_enlarged_smoothly() -> None:
    pytest.importorskip("sklearn")
    first = datasets.digits("test")
    assert first.images.shape[1:] == (32, 32, 3) and first.classes == tuple("0123456789")
    assert np.array_equal(first.images, datasets.digits("test").images)
    assert not np.array_equal(first.labels[:100], datasets.digits("test", seed=1).labels[:100])
    assert np.array_equal(first.images[..., 0], first.images[..., 2])
    blocks = np.abs(np.diff(first.images[..., 0].astype(int), axis=2)).reshape(-1, 31)
    assert blocks[:, 3::4].mean() < 2 * np.delete(blocks, np.s_[3::4], axis=1).mean()  # no 4 x 4 tiles
    small = datasets.digits("test", size=8)
    assert np.abs(first.images[:, 1::4, 1::4, 0].astype(float) - small.images[..., 0]).mean() < 25
    with pytest.raises(UsageError, match="size=4"):
        datasets.digits("train", size=4)


def save(path: Path, image: np.ndarray, mode: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(image)
    (picture if mode is None else picture.convert(mode)).save(path)


def test_image_folder_reads_every_mode(tmp_path: Path) -> None:
    rgb = np.full((20, 20, 3), (200, 100, 50), np.uint8)
    save(tmp_path / "b" / "1.png", rgb)
    save(tmp_path / "b" / "2.png", rgb, "RGBA")
    save(tmp_path / "b" / "3.PNG", rgb, "P")
    save(tmp_path / "a" / "deep" / "grey.png", rgb[..., 0])
    save(tmp_path / "a" / "sixteen.png", np.full((20, 20), 40000, np.uint16))
    save(tmp_path / "a" / ".hidden.png", rgb)
    (tmp_path / "a" / "notes.txt").write_text("not an image")
    save(tmp_path / "stray.png", rgb)
    found = datasets.image_folder(tmp_path)
    assert found.classes == ("a", "b") and found.labels.tolist() == [0, 0, 1, 1, 1]
    assert found.images[:2, 0, 0].tolist() == [[200] * 3, [40000 // 257] * 3]
    assert np.abs(found.images[2:, 0, 0].astype(int) - (200, 100, 50)).max() < 30  # the palette is coarse
    assert np.array_equal(found.images[2], rgb) and np.array_equal(found.images[3], rgb)


def test_image_folder_brings_all_to_one_size(tmp_path: Path) -> None:
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 255
    save(tmp_path / "a" / "wide.png", wide)
    save(tmp_path / "a" / "tall.png", wide.transpose(1, 0, 2))
    with pytest.raises(EdgettaError, match=r"wide.png has 60 x 20 pixels, .*tall.png has 20 x 60; give a size"):
        datasets.image_folder(tmp_path)
    found = datasets.image_folder(tmp_path, size=10)
    assert found.images.shape == (2, 10, 10, 3)
    assert found.images[:, 3:7, 3:7].min() == 255  # the middle is what stays


def test_image_folder_names_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(EdgettaError, match="is not a folder"):
        datasets.image_folder(tmp_path / "absent")
    with pytest.raises(EdgettaError, match="holds no image"):
        datasets.image_folder(tmp_path)
    save(tmp_path / "a" / "cut.png", np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8))
    data = (tmp_path / "a" / "cut.png").read_bytes()
    for content in (data[: len(data) // 2], b"text", b""):
        (tmp_path / "a" / "cut.png").write_bytes(content)
        with pytest.raises(EdgettaError, match=r"cut\.png cannot be read as an image"):
            datasets.image_folder(tmp_path)
