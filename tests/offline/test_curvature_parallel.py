"""Two processes give what one gives."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from edgetta.offline.curvature import (
    CurvatureError,
    GaussNewtonOperator,
    HessianOperator,
    NotFiniteError,
    Processes,
    extreme_eigenpairs,
    launched_processes,
    measure_spectrum,
)
from edgetta.offline.learning_rate import measure_ladder
from tests.offline.small_surfaces import convolutional, images, surface

COUNT = 11
CASES = [("source", HessianOperator), ("batch", HessianOperator), ("source", GaussNewtonOperator)]


def measure(folder: Path | None = None) -> dict[str, dict[str, Any]]:
    """Products, loss, gradient and eigenvalues in float32, under both BatchNorm policies."""
    results: dict[str, dict[str, Any]] = {}
    for batch_norm, operator_class in CASES:
        operator = operator_class(
            surface(convolutional(torch.float32), batch_norm=batch_norm), images(COUNT, torch.float32), batch_size=4
        )
        vector = torch.randn(operator.dimension, generator=torch.Generator().manual_seed(0))
        results[f"{batch_norm} {operator.kind}"] = {
            "product": operator.product(vector),
            "gradient": operator.gradient(),
            "loss": torch.tensor(operator.loss()),
        }
    ends = extreme_eigenpairs(operator, 2, 1, iterations=12, folder=folder)
    results["extremes"] = {"values": torch.tensor([*ends.largest.values, *ends.smallest.values])}
    ritz = measure_spectrum(operator, iterations=4, probes=1).runs[0].values
    rung = measure_ladder(operator, (4,), batches=3, tolerance=1e-4).rungs[0]  # the processes share the batches
    results["ladder"] = {"largest": torch.tensor(rung.largest)}
    results["spectrum"] = {"values": torch.from_numpy(ritz.copy())}
    return results


def worker(rank: int, folder: str, count: int) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": (Path(folder) / "port").read_text()}
    with launched_processes() as processes:
        assert processes.count == count and processes.rank == rank
        assert processes.gather(rank) == list(range(count))
        shares = processes.gather(processes.share(COUNT))
        assert [index for share in shares for index in share] == list(range(COUNT))
        results = measure(Path(folder) / "run")
        assert (Path(folder) / "run" / f"rank-{rank}" / "state.json").exists()
        again = measure(Path(folder) / "run")
        assert torch.equal(results["extremes"]["values"], again["extremes"]["values"])
        x, y = images(COUNT, torch.float32)
        x[-1] = float("nan")  # seen by the last process alone; the others must not wait for it
        broken = HessianOperator(surface(convolutional(torch.float32)), (x, y), batch_size=5)
        with pytest.raises(NotFiniteError if rank == count - 1 else CurvatureError, match=r"nan|another process"):
            broken.product(torch.ones(broken.dimension))
        alone = HessianOperator(surface(convolutional(torch.float32)), images(COUNT, torch.float32), distributed=False)
        assert alone.processes.count == 1
        torch.save(results, Path(folder) / f"{rank}.pt")
        leave()


def leave() -> None:
    """End this process at once, when all have come so far: gloo's threads now and then abort an orderly end."""
    dist.barrier()
    os._exit(0)


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")
def test_two_processes_equal_one(tmp_path: Path) -> None:
    (tmp_path / "port").write_text(str(free_port()))
    torch.multiprocessing.spawn(worker, args=(str(tmp_path), 2), nprocs=2)
    single = measure()
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for key, results in single.items():
        for name, value in results.items():
            assert torch.equal(first[key][name], second[key][name])
            scale = float(value.abs().max())
            torch.testing.assert_close(first[key][name], value, atol=1e-5 * scale, rtol=0, msg=f"{key} {name}")


def test_alone_without_a_launcher() -> None:
    with launched_processes() as processes:
        assert (processes.count, processes.rank, processes.together) == (1, 0, False)
    assert list(processes.share(5)) == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="mine"):
        processes.sum(torch.zeros(1), ValueError("mine"))
    with pytest.raises(CurvatureError, match="init_process_group"):
        Processes(together=True)
