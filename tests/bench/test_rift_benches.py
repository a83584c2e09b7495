"""The benches of criticality and RiFT on small networks and few images: rows, resuming, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgetta.bench import criticality, rift, robust_networks
from edgetta.bench.robust_networks import RobustNetwork
from edgetta.errors import UsageError

SMALL = RobustNetwork("adv_resnet2b", "adv_resnet2b.npz", 2 / 255, 1, steps=1, learning_rate=1e-3)


@pytest.fixture
def small(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(robust_networks.NETWORKS, "small_at", SMALL)


def test_criticality_rows(small: None, tmp_path: Path) -> None:
    path = tmp_path / "criticality.json"
    options = ["--networks", "adv_resnet2b,small_at", "--images", "100", "--training-images", "1000"]
    options += ["--work", str(tmp_path), "--json", str(path)]
    result = CliRunner().invoke(criticality.command, options)
    assert result.exit_code == 0, result.exception
    written = path.read_text()
    rows = json.loads(written)["rows"]
    assert [row["model"] for row in rows] == ["adv_resnet2b", "small_at"]
    for row in rows:
        assert row["modules"] == 8 and -1 <= row["rank_correlation"] <= 1 and row["speedup"] > 0
        assert 0.1 < row["robust_accuracy"] < 1 and isinstance(row["same_choice"], bool)
        assert len(row["finalists"]) >= 3 and criticality.least_by_both(row) in row["finalists"]
    assert (tmp_path / "1000" / "small_at-0.safetensors").is_file()
    assert CliRunner().invoke(criticality.command, options).exit_code == 0
    assert path.read_text() == written  # nothing is measured again


def test_of_two_rises_the_higher_one_counts() -> None:
    finalists = {"conv": [0.19, 0.13], "linear": [0.14, 0.16], "shortcut": [0.15, 0.18]}
    assert criticality.least_by_both({"finalists": finalists}) == "linear"


def test_rift_rows(small: None, tmp_path: Path) -> None:
    path = tmp_path / "rift.json"
    options = ["--networks", "small_at", "--seeds", "0", "--training-images", "1000", "--validation-images", "300"]
    options += ["--test-images", "100", "--epochs", "1", "--steps", "2", "--work", str(tmp_path), "--json", str(path)]
    result = CliRunner().invoke(rift.command, options)
    assert result.exit_code == 0, result.exception
    rows = json.loads(path.read_text())["rows"]
    assert [row["variant"] for row in rows] == ["source", "rift", "most_critical", "last_layer", "all_layers", "joint"]
    for row in rows:
        assert row["seed"] == 0 and row["model"] == "small_at" and 0 < row["robust"] <= row["clean"] < 1
        assert 0 < row["corrupted"] < 1 and row["robust_loss_upper"] > 0
    assert "robust lost, at most" in result.output


def test_images_are_the_same_each_time_and_never_shared(data_folder: Path) -> None:
    train, validation = robust_networks.training_images(200, 100)
    again, _ = robust_networks.training_images(100, 100)
    assert (train[0][:100] == again[0]).all() and len(validation[1]) == 100
    known = {image.numpy().tobytes() for image in train[0]}
    assert not known & {image.numpy().tobytes() for image in validation[0]}
    test = robust_networks.test_images(50)
    assert sorted(test.labels.tolist()) == sorted(list(range(10)) * 5) != test.labels.tolist()
    with pytest.raises(UsageError, match="no network 'vgg'"):
        robust_networks.robust_network("vgg", 0, train, validation, Path())
