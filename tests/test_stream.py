"""A stream through a runtime: what is predicted, counted and written, and what is whole however it ends."""

from __future__ import annotations

import json
import math
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgetta.adaptation.adapter import StepResult
from edgetta.adaptation.config import AdaptConfig
from edgetta.adaptation.normaliser import softmax
from edgetta.adaptation.objective import entropy
from edgetta.bundle import read_bundle
from edgetta.errors import EdgettaError, UsageError
from edgetta.memory.accuracy_costs import AccuracyCosts
from edgetta.predictions import open_writer
from edgetta.runtime import Runtime
from edgetta.sources import Frame, FrameSource, Skipped, open_source
from edgetta.sources.pictures import images_of
from edgetta.stream import RECENT, BatchReport, Summary, run_stream
from tests.adaptation.pictures import pictures
from tests.small_bundle import NAMES, whole_bundle

CONFIG = AdaptConfig(
    learning_rate=0.01, entropy_margin=1.0, window=8, small_batch=4, when="every 1", hold_back=False, learn_images=8
)


class Noise(FrameSource):
    """`count` made-up frames, those in `bad` skipped; remembers how many were asked for."""

    def __init__(self, count: int, bad: tuple[int, ...] = (), floats: bool = False) -> None:
        super().__init__("noise", description="noise", length=count)
        self.count, self.bad, self.floats, self.delivered = count, bad, floats, 0

    def read(self) -> Iterator[Frame | Skipped]:
        for index in range(self.count):
            self.delivered += 1
            if index in self.bad:
                yield Skipped(f"noise[{index}]", "bad")
                continue
            image = np.round(255 * pictures(1, index)[0].transpose(1, 2, 0)).astype(np.uint8)
            yield Frame(f"noise[{index}]", image / np.float32(255) if self.floats else image, index)


class Scripted:
    """A runtime that answers with given logits; `act` is called within every step."""

    def __init__(
        self, logits: np.ndarray[Any, Any], classes: tuple[str, ...] | None = None, channels: int = 3, act: Any = None
    ) -> None:
        self.bundle = SimpleNamespace(input_shape=(channels, 16, 16), classes=classes, accuracy_costs=None)
        self.rows, self.at, self.act, self.seen = logits, 0, act, []

    def step(self, images: np.ndarray[Any, Any]) -> StepResult:
        self.seen.append(images)
        count = len(images)
        logits = self.rows[self.at : self.at + count]
        self.at += count
        if self.act is not None:
            self.act()
        with np.errstate(invalid="ignore"):
            doubts = entropy(logits)
        good = bool(np.isfinite(logits).all())
        return StepResult(logits, doubts, good, "adapted" if good else "non-finite", 0.0, 0.0, count if good else 0)


def logits_for(*classes: int) -> np.ndarray[Any, Any]:
    return 4 * np.eye(5, dtype=np.float32)[list(classes)]


def runtime(config: AdaptConfig = CONFIG) -> Runtime:
    return Runtime(read_bundle(whole_bundle()), "torch", config, check=False)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_predictions_are_those_of_the_runtime_batch_by_batch(tmp_path: Path) -> None:
    source = Noise(20, bad=(3,))
    with open_writer(tmp_path / "out.jsonl") as writer:
        summary = run_stream(runtime(), source, batch=8, writer=writer)
    expected = runtime()
    images = images_of(list(source), 3)
    results = [expected.step(images[i : i + 8]) for i in range(0, len(images), 8)]
    logits = np.concatenate([result.logits for result in results])
    rows = rows_of(tmp_path / "out.jsonl")
    assert [row["index"] for row in rows] == list(range(19))
    assert [row["frame"] for row in rows] == [f"noise[{i}]" for i in range(20) if i != 3]
    assert [row["class"] for row in rows] == [NAMES[i] for i in logits.argmax(1)]
    doubts = np.concatenate([result.entropy for result in results])
    np.testing.assert_allclose([row["confidence"] for row in rows], softmax(logits).max(1), rtol=0, atol=1e-6)
    np.testing.assert_allclose([row["entropy"] for row in rows], doubts, rtol=0, atol=1e-5)
    assert [row["adapted"] for row in rows] == [r.adapted for r in results for _ in r.logits]
    assert (summary.frames, summary.steps, summary.adapted) == (19, 3, sum(r.adapted for r in results))
    assert summary.skipped == 1 and list(summary.skipped_frames) == [Skipped("noise[3]", "bad")]
    assert summary.mean_entropy == pytest.approx(float(doubts.mean()), rel=1e-5)
    assert sum(summary.classes.values()) == 19 and summary.errors is None and summary.error_rate is None
    assert 0 < summary.step_seconds <= summary.seconds


def test_small_batches_adapt_by_the_window_and_adaptation_can_be_off() -> None:
    single = run_stream(runtime(), Noise(17), batch=1)
    assert (single.frames, single.steps, single.adapted) == (17, 17, 2)
    off = run_stream(runtime(replace(CONFIG, when="off")), Noise(16), batch=8)
    assert (off.steps, off.adapted) == (2, 0)


def test_floats_and_bytes_are_the_same_images() -> None:
    a = run_stream(runtime(), Noise(8), batch=8)
    b = run_stream(runtime(), Noise(8, floats=True), batch=8)
    assert a.classes == b.classes and a.mean_entropy == pytest.approx(b.mean_entropy, rel=1e-5)


def test_errors_are_counted_where_there_are_labels(tmp_path: Path) -> None:
    pictures = np.zeros((6, 16, 16, 3), np.uint8)
    np.savez(tmp_path / "x.npz", images=pictures, labels=np.array([0, 1, 2, 3, 4, 0]))
    with open_source(tmp_path / "x.npz", size=(16, 16)) as source:
        summary = run_stream(Scripted(logits_for(0, 1, 2, 0, 0, 0)), source, batch=4)  # type: ignore[arg-type]
    assert (summary.errors, summary.labelled, summary.error_rate) == (2, 6, pytest.approx(2 / 6))
    assert summary.classes == {0: 4, 1: 1, 2: 1}


def test_labels_of_ones_own_and_of_some_frames_only() -> None:
    script = Scripted(logits_for(0, 0, 1))
    summary = run_stream(
        script,  # type: ignore[arg-type]
        Noise(3),
        batch=2,
        label_of=lambda frame: None if frame.index == 0 else 1,
    )
    assert (summary.errors, summary.labelled) == (1, 2)


def test_labels_follow_their_frames_past_skipped_ones() -> None:
    source = Noise(4, bad=(1,))
    source.labels = np.array([0, 9, 2, 3])
    summary = run_stream(Scripted(logits_for(0, 2, 3)), source, batch=2)  # type: ignore[arg-type]
    assert (summary.errors, summary.labelled) == (0, 3)


def test_a_limit_ends_the_stream_and_reads_no_further() -> None:
    for limit, batch in ((5, 2), (4, 4), (3, 64)):
        source = Noise(50)
        summary = run_stream(Scripted(np.zeros((50, 5), np.float32)), source, batch=batch, limit=limit)  # type: ignore[arg-type]
        assert (summary.frames, source.delivered) == (limit, limit)
    assert run_stream(Scripted(np.zeros((9, 5), np.float32)), Noise(3), batch=2, limit=9).frames == 3  # type: ignore[arg-type]


def test_numbers_that_make_no_sense() -> None:
    for options in ({"batch": 0}, {"batch": -1}, {"batch": 1, "limit": 0}):
        with pytest.raises(UsageError, match="use 1 or more"):
            run_stream(runtime(), Noise(1), **options)


def test_an_empty_source_gives_an_empty_summary() -> None:
    summary = run_stream(Scripted(np.zeros((0, 5), np.float32)), Noise(2, bad=(0, 1)), batch=2)  # type: ignore[arg-type]
    assert (summary.frames, summary.steps, summary.skipped) == (0, 0, 2)
    assert math.isnan(summary.mean_entropy) and summary.error_rate is None


def test_models_for_grey_images_and_for_what_no_source_delivers() -> None:
    grey = Scripted(np.zeros((2, 5), np.float32), channels=1)
    run_stream(grey, Noise(2), batch=2)  # type: ignore[arg-type]
    assert grey.seen[0].shape == (2, 1, 16, 16) and 0.3 < float(grey.seen[0].mean()) < 0.7
    with pytest.raises(UsageError, match="the bundle takes 4 channels; sources deliver 3"):
        run_stream(Scripted(np.zeros((2, 5), np.float32), channels=4), Noise(2), batch=2)  # type: ignore[arg-type]


def test_logits_that_are_not_finite_are_counted_and_written_as_unknown(tmp_path: Path) -> None:
    logits = logits_for(0, 1, 2, 3)
    logits[1] = float("nan")
    with open_writer(tmp_path / "out.jsonl") as writer:
        summary = run_stream(Scripted(logits), Noise(4), batch=2, writer=writer)  # type: ignore[arg-type]
    assert (summary.not_finite, summary.refused, summary.adapted) == (1, 1, 1)
    assert math.isfinite(summary.mean_entropy)
    bad = rows_of(tmp_path / "out.jsonl")[1]
    assert bad["confidence"] is None and bad["entropy"] is None


def test_updates_without_a_confident_frame_are_counted() -> None:
    summary = run_stream(runtime(replace(CONFIG, entropy_margin=1e-6)), Noise(16), batch=8)
    assert (summary.adapted, summary.empty) == (2, 2)


def test_whoever_watches_sees_each_batch_when_its_rows_are_written(tmp_path: Path) -> None:
    reports: list[tuple[int, int, list[str]]] = []
    with open_writer(tmp_path / "out.jsonl") as writer:

        def watch(report: BatchReport) -> None:
            names = [frame.name for frame in report.frames]
            reports.append((report.summary.frames, writer.rows, names))
            assert len(report.predicted) == len(report.result.logits) == len(names)
            assert report.summary.skipped == (1 if report.summary.frames > 2 else 0)

        script = Scripted(np.zeros((5, 5), np.float32))
        run_stream(script, Noise(6, bad=(3,)), batch=2, writer=writer, on_batch=watch)  # type: ignore[arg-type]
    assert [report[:2] for report in reports] == [(2, 2), (4, 4), (5, 5)]
    assert reports[1][2] == ["noise[2]", "noise[4]"]


def test_an_error_leaves_whole_rows_and_a_summary_of_them(tmp_path: Path) -> None:
    class Breaking(Noise):
        def read(self) -> Iterator[Frame | Skipped]:
            yield from super().read()
            raise EdgettaError("the camera stopped")

    summary = Summary()
    with open_writer(tmp_path / "out.jsonl") as writer, pytest.raises(EdgettaError, match="the camera stopped"):
        run_stream(
            Scripted(np.zeros((9, 5), np.float32)),  # type: ignore[arg-type]
            Breaking(5, bad=(0,)),
            batch=2,
            writer=writer,
            summary=summary,
        )
    assert len(rows_of(tmp_path / "out.jsonl")) == 4 == summary.frames
    assert summary.skipped == 1 and summary.seconds > 0


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_in_the_middle_of_a_step_waits_for_its_rows(tmp_path: Path) -> None:
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupted = Scripted(np.zeros((9, 5), np.float32), act=lambda: signal.raise_signal(signal.SIGINT))
    summary = Summary()
    try:
        with open_writer(tmp_path / "out.jsonl") as writer, pytest.raises(KeyboardInterrupt):
            run_stream(interrupted, Noise(9), batch=2, writer=writer, summary=summary)  # type: ignore[arg-type]
    finally:
        signal.signal(signal.SIGINT, earlier)
    assert len(rows_of(tmp_path / "out.jsonl")) == 2 == summary.frames


def test_the_error_is_estimated_from_the_doubt_of_the_latest_frames() -> None:
    """Twice as often wrong as the predictions say, on source images under corruptions."""
    sure, torn = np.array([8.0, 0, 0, 0, 0]), np.array([1.0, 1, 0, 0, 0])
    scripted = Scripted(np.stack([sure] * 300 + [torn] * RECENT))
    scripted.bundle.accuracy_costs = AccuracyCosts(30.0, 64, 32, (), doubt=15.0)
    seen: list[float | None] = []
    summary = run_stream(
        scripted,  # type: ignore[arg-type]
        Noise(300 + RECENT),
        batch=100,
        on_batch=lambda report: seen.append(report.summary.estimated_error),
    )
    doubts = [1 - float(softmax(logits[None]).max()) for logits in (sure, torn)]
    assert seen[0] == pytest.approx(2 * doubts[0], rel=1e-4)
    assert summary.estimated_error == pytest.approx(min(1.0, 2 * doubts[1]), rel=1e-4)
    assert seen[0] < seen[5] < summary.estimated_error  # type: ignore[operator]


def test_without_a_measured_ratio_there_is_no_estimate() -> None:
    for costs in (None, AccuracyCosts(30.0, 64, 32, ())):
        scripted = Scripted(logits_for(1, 2, 3))
        scripted.bundle.accuracy_costs = costs
        assert run_stream(scripted, Noise(3), batch=3).estimated_error is None  # type: ignore[arg-type]
