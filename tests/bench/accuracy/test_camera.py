"""Cells of orders of frames, with methods whose errors are known, and the resumable run into one file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from edgetta.bench.accuracy import camera_command
from edgetta.bench.accuracy.camera import AFTER_KINDS, FIRST, Camera, Row, Work, conditions, order_errors
from edgetta.bench.accuracy.images import ImageCache
from edgetta.bench.accuracy.orders import HELD, SCENES, streams
from edgetta.errors import UsageError

KINDS = ("fog", "contrast")


class Counting:
    """Says class 0 until it has seen `patience` frames, then the right class, which the first pixel tells."""

    def __init__(self, patience: int) -> None:
        self.patience, self.seen = patience, 0

    def __call__(self, images: Tensor) -> Tensor:
        classes = []
        for image in images:
            classes.append(round(float(image[0, 0, 0]) * 255) if self.seen >= self.patience else 0)
            self.seen += 1
        return torch.eye(10)[torch.tensor(classes).clamp(max=9)]

    def reset(self) -> None:
        self.seen = 0


@dataclass
class Pool:
    """Images whose first pixel is their class."""

    count: int = 200
    labels: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.labels = np.random.default_rng(0).integers(0, 10, self.count)

    def images(self, corruption: str, severity: int) -> np.ndarray:
        return np.broadcast_to(self.labels[:, None, None, None], (self.count, 2, 2, 3)).astype(np.uint8)

    def clean(self) -> tuple[np.ndarray, np.ndarray]:
        return self.images("clean", 1), self.labels


@dataclass
class Network:
    """The shipped network is always right; the method is `Counting`."""

    pool: Pool = field(default_factory=Pool)
    severities: tuple[int, ...] = (5, 3)
    patience: int = 10

    def method(self, name: str) -> Counting:
        return Counting(self.patience)

    def source_predictions(self, corruption: str, severity: int) -> np.ndarray:
        return self.pool.labels


def rows(order: str, batch: int = 4, method: str = "rotta", before: int = 5) -> list[Row]:
    camera = Camera(Network(), KINDS, before)  # type: ignore[arg-type]
    return list(camera.rows(Work("net", order, batch, 0, method, 200)))


def test_severities_and_corruptions_of_an_order() -> None:
    assert conditions("iid", (5, 3), KINDS) == [
        ("clean", 0),
        *((kind, severity) for severity in (5, 3) for kind in KINDS),
    ]
    assert conditions("still", (5, 3), KINDS) == [("clean", 0), ("fog", 5), ("contrast", 5)]
    assert conditions("sorted", (3, 4), ("fog",)) == [("clean", 0), ("fog", 3), ("fog", 4)]
    assert [kind for kind, _ in conditions("after-black", (5, 3))] == ["clean", *AFTER_KINDS]


def test_every_stream_starts_the_method_anew() -> None:
    for row in rows("sorted"):
        assert row["error"] == pytest.approx(0) and row["frames"] == 200  # class 0 comes first
    network = Network()
    for row in rows("one-class"):
        parts = streams("one-class", network.pool.labels, 0)
        expected = [100 * (10 / len(part) if label else 0) for label, part in enumerate(parts)]
        assert row["parts"] == pytest.approx(expected, abs=0.01) and row["source_error"] == 0
        assert row["error"] == pytest.approx(np.mean(expected), abs=0.01)
    assert rows("still")[0]["frames"] == SCENES * HELD


def test_the_source_is_looked_up() -> None:
    assert all(row["error"] == row["source_error"] == 0 for row in rows("iid", method="source"))


def test_after_degenerate_frames_the_method_goes_on_from_there() -> None:
    """Ten frames of patience: five were spent before, so that the first 32 have five mistakes, not ten."""
    found = rows("after-noise", batch=1)
    few, many = (
        [row for row in found if row["corruption"] == "fog" and row["frames"] == n]
        for n in (FIRST, max(f["frames"] for f in found))
    )
    labels = Network().pool.labels
    share = np.count_nonzero(labels) / len(labels)
    assert len(few) == len(many) == 1 and few[0]["starts"] == 4 and many[0]["frames"] == 200
    assert few[0]["error"] == pytest.approx(100 * 5 * share / FIRST, rel=0.4)
    assert few[0]["fresh_error"] == pytest.approx(100 * 10 * share / FIRST, rel=0.4)
    assert few[0]["fresh_error"] > few[0]["error"] > many[0]["error"] > 0


def test_orders_of_somebodys_own_images() -> None:
    pool = Pool()
    found = order_errors(Counting(10), pool.images("clean", 1), pool.labels, 4, 0, ("sorted", "one-class"))
    assert found["sorted"] == 0 and found["one-class"] > 20


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    made = Network()
    monkeypatch.setattr(camera_command, "network", lambda *_: made)
    return made


def run(path: Path, images: int = 200, **options: object) -> list[Row]:
    arguments = (("iid", "still"), ("source", "rotta"), ("net",), (4, 16), (0, 1), images, KINDS, ImageCache(path))
    return camera_command.run_camera(*arguments, path / "camera.json", **options)  # type: ignore[arg-type]


def test_a_run_that_was_cut_goes_on(tmp_path: Path, network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(run(tmp_path, end=0.0)) == 1  # the time was over at once
    whole = run(tmp_path)
    assert len(whole) == 2 * 2 * 2 * (5 + 3)
    written = json.loads((tmp_path / "camera.json").read_text())
    assert written["rows"] == whole and written["settings"]["held"] == HELD
    assert all((row["batch"] == 16) == ("of_batch" in row) for row in whole if row["method"] == "rotta")
    assert written["run"] == [
        f"net, batch {batch}, {name}, 200 images: iid (5 conditions, seed 0 1), still (3 conditions, seed 0 1)"
        for batch in (4, 16)
        for name in ("rotta", "source")
    ]
    monkeypatch.setattr(Camera, "rows", None)  # nothing is left to do
    assert run(tmp_path) == whole


def test_more_images_replace_fewer_and_again_measures_anew(tmp_path: Path, network: Network) -> None:
    run(tmp_path, images=100)
    more = run(tmp_path)
    assert len(more) == 64 and {row["images"] for row in more} == {200}
    network.patience = 0
    assert run(tmp_path) == more
    assert max(row["error"] for row in run(tmp_path, again=True)) == 0


def test_the_summary_is_printed(tmp_path: Path, network: Network, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path)
    text = capsys.readouterr().out
    assert "still" in text and "rotta" in text


def test_names_that_do_not_exist(tmp_path: Path, network: Network) -> None:
    with pytest.raises(UsageError, match="--stream 'backwards'"):
        camera_command.check(("backwards",), ("source",))
    with pytest.raises(UsageError, match="--methods 'magic'"):
        camera_command.check(("iid",), ("magic",))
