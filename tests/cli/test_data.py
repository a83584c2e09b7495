"""DATA by name: built-in sets, and what is told when a name means nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgetta.cli.data import class_labels, labelled_data, source_images
from edgetta.errors import UsageError
from edgetta.sources import datasets
from tests.tiny_model import pictures, write_folder


def test_digits_have_test_images_of_their_own() -> None:
    train, test = labelled_data("digits", (3, 16, 16), held_out=0.5, seed=0)
    for data, split in ((train, "train"), (test, "test")):
        expected = datasets.digits(split, 16)
        assert np.array_equal(data.images.permute(0, 2, 3, 1).numpy(), expected.images)
        assert data.labels.tolist() == expected.labels.tolist() and data.classes == tuple("0123456789")
    assert len(train) + len(test) == 1797


def test_digits_for_other_models() -> None:
    train, test = labelled_data("digits", (1, 20, 24), held_out=0.1, seed=0, limit=50)
    assert train.images.shape == test.images.shape == (50, 1, 20, 24) and train.images.dtype == torch.float32
    assert len(set(train.labels.tolist())) == 10, "a sample of all, not the beginning"
    assert source_images("digits", (3, 8, 8), 30).images.shape == (30, 3, 8, 8)
    with pytest.raises(UsageError, match="the model takes 2 channels; digits has 3"):
        labelled_data("digits", (2, 8, 8), held_out=0.1, seed=0)


def test_cifar10(data_folder: Path) -> None:
    train, test = labelled_data("cifar10-jpeg", (3, 32, 32), held_out=0.1, seed=0, limit=40)
    assert train.images.shape == test.images.shape == (40, 3, 32, 32)
    assert np.bincount(test.labels.numpy()).tolist() == [4] * 10, "spread over a file that is sorted by class"


def test_a_file_of_that_name_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "digits", 60)
    train, test = labelled_data("digits", (3, 8, 8), held_out=0.2, seed=0)
    assert train.classes == ("blue", "green", "red") and (len(train), len(test)) == (48, 12)


def test_names_that_mean_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for read in (
        lambda: labelled_data("mnist", (3, 8, 8), held_out=0.1, seed=0),
        lambda: source_images("x", (3, 8, 8), 5),
    ):
        with pytest.raises(UsageError, match=r"DATA is a folder, an \.npz, or one of digits, cifar10-jpeg"):
            read()


def test_unlabelled_images_serve_for_statistics(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", pictures(20)[0])
    assert len(source_images(str(tmp_path / "x.npy"), (3, 8, 8), 1000)) == 20


def test_labels_of_calibration_images(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos", 9)
    pictures_there = source_images(str(folder), (3, 8, 8), 100)
    labels, names, note = class_labels(str(folder), pictures_there, 3, None)
    assert names == ("blue", "green", "red") and note == ""
    assert labels is not None and labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    labels, names, note = class_labels(str(folder), pictures_there, 4, ("red", "grey", "blue", "white"))
    assert labels is not None and labels.tolist() == [2] * 3 + [-1] * 3 + [0] * 3 and names is not None
    labels, names, note = class_labels(str(folder), pictures_there, 5, None)
    assert labels is None and "has 3 sub-folders and the model 5 classes: name all classes with --classes" in note
    labels, names, note = class_labels(str(folder), pictures_there, 2, ("cat", "dog"))
    assert labels is None and "no sub-folder of" in note and "is one of --classes" in note
    assert class_labels("digits", source_images("digits", (3, 8, 8), 20), 10, None)[0] is not None
