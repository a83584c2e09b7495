"""The whole of RiFT on a small network: what it reports, that it resumes, and what it refuses."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn

from edgetta.errors import BundleError, UsageError
from edgetta.offline.attack import PGD, Threat, classified_right
from edgetta.offline.crop_and_flip import CropAndFlip
from edgetta.offline.curvature import launched_processes
from edgetta.offline.rift import CONTROLS, Constraint, CriticalityConfig, RiftConfig, fine_tuning, run_rift
from tests.offline.attack.small_models import images, network, trained
from tests.offline.test_curvature_parallel import free_port, leave

CONFIG = RiftConfig(
    attack=PGD(Threat("linf", 0.01), 4),
    criticality=CriticalityConfig(step_images=32),
    criticality_images=96,
    schedule=fine_tuning(2, batch=32, learning_rate=0.02, augmentation=CropAndFlip(0, 0)),
    constraint=Constraint(0.05),
    joint=2,
    candidates=3,
)


def job(folder: Path, config: RiftConfig = CONFIG, **options: Any) -> tuple[nn.Module, Any]:
    model = trained(network(), steps=60)
    data = [images(count, seed=seed) for count, seed in ((200, 31), (200, 32), (150, 33))]
    corrupted = {"dark": (data[2][0] * 0.7, data[2][1]), "bright": (data[2][0] * 0.7 + 0.3, data[2][1])}
    return model, run_rift(model, *data, folder, config, corrupted=corrupted, **options)


def test_report_weights_and_controls(tmp_path: Path) -> None:
    told: set[str] = set()
    config = replace(CONFIG, controls=CONTROLS)
    model, report = job(tmp_path, config, progress=lambda stage, done, total, note: told.add(stage))
    rows = {row.variant: row for row in report.rows}
    assert list(rows) == ["source", "rift", *CONTROLS]
    assert rows["source"].robust_loss == 0 and rows["source"].alpha is None
    tried = {
        name.removeprefix("candidate."): way for name, way in report.interpolations.items() if "candidate" in name
    }
    assert set(tried) == {score.name for score in report.criticality.least_critical(3)} and len(tried) == 3
    (picked,) = rows["rift"].modules
    assert tried[picked] == report.interpolations["rift"]
    assert tried[picked].clean == max(way.clean for way in tried.values())
    assert rows["most_critical"].modules == (report.criticality.most.name,)
    assert rows["last_layer"].modules == ("7",) and rows["all_layers"].modules == ("all",)
    assert len(rows["joint"].modules) == 2 and rows["bn_only"].alpha is None
    for row in rows.values():
        assert 0 <= row.robust <= row.clean <= 1 and row.corrupted is not None
        assert row.robust_loss_upper > row.robust_loss
    # On validation images the constraint holds at the chosen point.
    for way in report.interpolations.values():
        point = next(point for point in way.points if point.alpha == way.alpha)
        assert way.alpha == 0 or (point.attacked and point.robust_loss_upper <= 0.05)
    # The model ends with RiFT's weights, which lie in the folder.
    test = images(150, seed=33)
    assert float(classified_right(model, *test).float().mean()) == pytest.approx(rows["rift"].clean)
    written = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(value, written[name]) for name, value in model.state_dict().items())
    source = trained(network(), steps=60).state_dict()
    moved = {name for name, value in written.items() if not torch.equal(value, source[name])}
    assert moved <= {f"{picked}.weight"}
    assert json.loads((tmp_path / "report.json").read_text()) == json.loads(json.dumps(report.to_json()))
    assert {"criticality", f"fine-tuning candidate.{picked}", "interpolating", "testing"} <= told


def test_statistics_move_only_where_that_is_asked_for(tmp_path: Path) -> None:
    source = trained(network(), steps=60).state_dict()
    config = replace(CONFIG, candidates=1, recalibrate=True, constraint=Constraint(0.9))
    _, report = job(tmp_path, config)
    tuned = load_file(tmp_path / f"candidate.{report.criticality.least.name}.tuned.safetensors")
    moved = {name for name, value in tuned.items() if not torch.equal(value, source[name])}
    assert {"1.running_mean", "4.running_var", f"{report.criticality.least.name}.weight"} <= moved
    final, alpha = load_file(tmp_path / "model.safetensors"), next(r.alpha for r in report.rows if r.variant == "rift")
    expected = torch.lerp(source["1.running_mean"], tuned["1.running_mean"], alpha)
    torch.testing.assert_close(final["1.running_mean"], expected)
    assert torch.equal(final["1.num_batches_tracked"], source["1.num_batches_tracked"])


class Stopped(Exception):
    """Stands for Ctrl-C."""


@pytest.mark.parametrize("stage", ["criticality", "fine-tuning", "interpolating", "attacking test images"])
def test_an_interrupted_job_continues_and_ends_the_same(tmp_path: Path, stage: str) -> None:
    _, expected = job(tmp_path / "whole")
    seen = [0]

    def stop(name: str, done: int, total: int, note: str) -> None:
        seen[0] += name.startswith(stage)
        if seen[0] == 2 or (seen[0] == 1 and total == 1):
            raise Stopped

    interrupted = tmp_path / "interrupted"
    if stage == "attacking test images":  # one batch: told once
        seen[0] = 1
    with pytest.raises(Stopped):
        job(interrupted, progress=stop)
    _, report = job(interrupted)
    assert report.rows == expected.rows and report.interpolations == expected.interpolations
    _, again = job(interrupted)
    assert again.rows == expected.rows


def test_another_job_s_folder_is_left_alone(tmp_path: Path) -> None:
    job(tmp_path)
    before = (tmp_path / "report.json").read_text()
    other = replace(CONFIG, seed=5)
    with pytest.raises(UsageError, match=r"holds a job with other settings \(config\)"):
        job(tmp_path, other)
    assert (tmp_path / "report.json").read_text() == before
    job(tmp_path, other, overwrite=True)
    next(tmp_path.glob("candidate.*.interpolation.json")).write_text("{")
    with pytest.raises(BundleError, match="remove it to do this stage again"):
        job(tmp_path, other)
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds other things"):
        job(strange)


def test_errors_come_before_anything_long(tmp_path: Path) -> None:
    model, data = network(), images(300)
    with pytest.raises(UsageError, match="20 validation images cannot show"):
        run_rift(model, data, images(20), data, tmp_path / "a", CONFIG)
    with pytest.raises(UsageError, match="a label is 9"):
        run_rift(model, data, data, (data[0], data[1] + 6), tmp_path / "a", CONFIG)
    with pytest.raises(UsageError, match="control 'nothing' is unknown"):
        RiftConfig(controls=("nothing",))
    with pytest.raises(UsageError, match="5 candidates are not possible: 1 to 3"):
        RiftConfig(candidates=5)
    assert not (tmp_path / "a").exists()


def worker(rank: int, folder: str, count: int) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": (Path(folder) / "port").read_text()}
    with launched_processes():
        _, report = job(Path(folder) / "shared")
        torch.save(json.dumps(report.to_json()["rows"]), Path(folder) / f"{rank}.pt")
        leave()


@pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")
def test_two_processes_do_what_one_does(tmp_path: Path) -> None:
    (tmp_path / "port").write_text(str(free_port()))
    torch.multiprocessing.spawn(worker, args=(str(tmp_path), 2), nprocs=2)
    _, single = job(tmp_path / "single")
    texts = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    assert texts[0] == texts[1]
    for row, expected in zip(json.loads(texts[0]), single.rows, strict=True):
        assert row["modules"] == list(expected.modules) and row["alpha"] == expected.alpha
        assert row["clean"] == pytest.approx(expected.clean, abs=0.02)
        assert row["robust"] == pytest.approx(expected.robust, abs=0.02)
