"""The bench of a device: rows, error, energy, Markdown of several devices, wrong arguments. It asserts no time."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from edgetta.bench import device as module
from edgetta.bench.device import COLUMNS, command, device_facts, markdown, percentile, precision, timed
from edgetta.bundle import read_bundle
from edgetta.devices import doctor, power
from edgetta.devices.jetson import PowerMode, TegraRelease
from edgetta.devices.power import Rail
from edgetta.errors import UsageError
from edgetta.runtime import load
from tests.small_bundle import whole_bundle

ROW = {
    "device": "Orin",
    "power_mode": "25W",
    "jetpack": "6.2",
    "model": "wrn40_2",
    "engine": "tensorrt",
    "precision": "fp16",
    "batch": 64,
    "forward_seconds": 0.0123,
    "forward_p95_seconds": 0.0140,
    "step_seconds": 0.0456,
    "step_p95_seconds": 0.05,
    "frames_per_second": 1403.5,
    "peak_bytes": 310_000_000,
    "joules_per_frame": 0.0112,
    "error": 0.2861,
    "source_error": 0.4,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of the small bundle's size with labels, as an .npz."""
    channels, height, width = read_bundle(whole_bundle()).input_shape
    generator = np.random.default_rng(5)
    images = generator.integers(0, 256, (24, height, width, channels), dtype=np.uint8)
    file = tmp_path_factory.mktemp("data") / "labelled.npz"
    np.savez(file, images=images, labels=generator.integers(0, 5, 24))
    return file


def test_rows_and_their_file(tmp_path: Path, data: Path) -> None:
    file = tmp_path / "device.json"
    words = f"{whole_bundle()} --batch 8 --engine torch --repetitions 2 --data {data} --json {file}"
    result = CliRunner().invoke(command, [*words.split(), "--name", "bench | box"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "bench | box" in result.output and "step ms (p95)" in result.output
    written = json.loads(file.read_text())
    assert written["versions"]["torch"] and written["date"] and written["settings"]["repetitions"] == 2
    rows = written["rows"]
    assert [(row["engine"], row["batch"]) for row in rows] == [("torch", 8)]
    for row in rows:
        assert row["device"] == "bench | box" and row["precision"] == "fp32" and row["model"] == "small"
        for kind in ("forward", "step"):
            assert 0 < row[f"{kind}_seconds"] <= row[f"{kind}_p95_seconds"] < math.inf
        assert row["frames_per_second"] == pytest.approx(row["batch"] / row["step_seconds"])
        assert row["peak_bytes"] > 0 and row["kept_bytes"] > 0 and row["images"] == 24
    again = CliRunner().invoke(command, ["--table", str(file), "--table", str(file)], catch_exceptions=False)
    lines = again.output.splitlines()
    assert len(lines) == 2 + 2 and lines[2] == lines[3]
    assert lines[2].startswith("| bench \\| box | - | - | small | torch | fp32 | 8 | ")


def test_error_is_that_of_the_stream(data: Path) -> None:
    """The same images, batch by batch in order, on a fresh runtime with the bundle's own settings."""
    row = module.stream_errors(read_bundle(whole_bundle()), "torch", 8, str(data), limit=20)
    arrays = np.load(data)
    assert row["images"] == 20
    chosen = np.arange(20) * 24 // 20
    runtime = load(whole_bundle(), "torch")
    wrong = source_wrong = 0
    for start in range(0, 20, 8):
        rows = chosen[start : start + 8]
        wrong += int((runtime(arrays["images"][rows]).argmax(1) != arrays["labels"][rows]).sum())
        source = runtime.source(arrays["images"][rows]).argmax(1)
        source_wrong += int((source != arrays["labels"][rows]).sum())
    assert (row["error"], row["source_error"]) == (wrong / 20, source_wrong / 20)


def test_energy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rail = tmp_path / "power"
    rail.write_text("6000000")
    monkeypatch.setattr(power, "find_rails", lambda: (Rail("VDD_IN", (rail,), 1e-6),))
    calls: list[int] = []
    timing = timed(lambda: calls.append(1), 4)
    assert len(calls) == 4 + module.WARM_UP
    assert timing.watts == pytest.approx(6.0) and timing.joules is not None and timing.joules > 0
    monkeypatch.setattr(power, "find_rails", lambda: ())
    monkeypatch.setenv("PATH", "")
    assert timed(lambda: None, 2).joules is None


def test_percentile() -> None:
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert percentile(values, 95) == 5.0 and percentile(values, 80) == 4.0 and percentile(values, 20) == 1.0
    assert percentile([7.0], 95) == 7.0 and percentile(values, 0) == 1.0
    assert percentile([float(number) for number in range(1, 101)], 95) == 95.0


def test_markdown() -> None:
    lines = markdown([ROW]).splitlines()
    assert lines[0] == f"| {' | '.join(COLUMNS)} |" and lines[1].count("---:") == len(COLUMNS) - 6
    assert lines[2] == (
        "| Orin | 25W | 6.2 | wrn40_2 | tensorrt | fp16 | 64 | 12.3 (14.0) | 45.6 (50.0) | 1403.5 | 310.0 | 11.2 "
        "| 28.6 (40.0) |"
    )
    bare = {**ROW, "power_mode": None, "jetpack": None, "joules_per_frame": None, "error": None}
    assert markdown([bare]).splitlines()[2].split(" | ")[1:3] == ["-", "-"]


def test_what_the_device_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "jetson_model", lambda: "NVIDIA Jetson Orin Nano Developer Kit")
    monkeypatch.setattr(doctor, "tegra_release", lambda: TegraRelease(36, "4.3"))
    monkeypatch.setattr(doctor, "power_mode", lambda: PowerMode("MAXN_SUPER", 2))
    monkeypatch.setattr(doctor, "device_profile", lambda: None)
    assert device_facts() == {
        "device": "NVIDIA Jetson Orin Nano Developer Kit",
        "profile": None,
        "jetpack": "6.2",
        "l4t": "36.4.3",
        "power_mode": "MAXN_SUPER",
    }
    assert device_facts("mine")["device"] == "mine"


def test_precision_is_that_of_the_engine_or_of_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = load(whole_bundle(), "torch")
    assert precision(runtime) == "fp32"
    monkeypatch.setattr(runtime.engine, "precision", "fp16", raising=False)
    assert precision(runtime) == "fp16"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ((), "name the bundle to measure"),
        (("bundle", "--table", "x.json"), "leave out the bundle"),
        (("--table", "nowhere.json"), "is no result file"),
    ],
)
def test_wrong_arguments(words: tuple[str, ...], line: str) -> None:
    result = CliRunner().invoke(command, list(words))
    assert isinstance(result.exception, UsageError) and line in str(result.exception)


def test_wrong_batches_and_files(tmp_path: Path) -> None:
    for batches in ("0", "a", "4,,8"):
        result = CliRunner().invoke(command, [str(whole_bundle()), "--batch", batches])
        assert isinstance(result.exception, UsageError) and "comma-separated" in str(result.exception)
    other = tmp_path / "latency.json"
    other.write_text('{"rows": [{"model": "wrn40_2"}]}')
    result = CliRunner().invoke(command, ["--table", str(other)])
    assert isinstance(result.exception, UsageError) and "is no result file" in str(result.exception)
