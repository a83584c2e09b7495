"""`edgetta bench faults`: kills at random moments and injected faults, and what was lost."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import click


@dataclass(frozen=True)
class Settings:
    """What decides the figures; the result file holds it."""

    saver_kills: int = 50
    run_kills: int = 5
    seed: int = 0


@click.command(epilog="Example: edgetta bench faults --saver-kills 1000 --run-kills 50 --json faults.json")
@click.option("--saver-kills", default=50, show_default=True, type=click.IntRange(0), help="Of a process that saves.")
@click.option("--run-kills", default=5, show_default=True, type=click.IntRange(0), help="Of `edgetta run`.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="When they are killed.")
@click.option("--bundle", type=click.Path(path_type=Path), help="Run this one; by default a small one is made.")
@click.option("--json", "path", type=click.Path(path_type=Path), help="Write the result file here.")
def command(saver_kills: int, run_kills: int, seed: int, bundle: Path | None, path: Path | None) -> None:
    """Kill processes that save and predict, put faults in, and count what is lost.

    The exit code is 1 where a state or a row was lost, or a fault was not recovered from.
    """
    import numpy as np

    from edgetta.bench.faults.injected import Bench, faults
    from edgetta.bench.faults.kills import kill_runs, kill_savers
    from edgetta.bench.fuzzing.command import small_bundle
    from edgetta.bench.result_file import write_results
    from edgetta.cli.progress import progress_bar
    from edgetta.cli.tables import print_table
    from edgetta.errors import EdgettaError

    settings = Settings(saver_kills, run_kills, seed)
    with tempfile.TemporaryDirectory(prefix="edgetta-faults-") as name:
        folder = Path(name)
        for part in ("savers", "runs", "injected"):
            (folder / part).mkdir()
        place = bundle or small_bundle(folder / "small")
        with progress_bar("saves killed", saver_kills, unit="kills") as update:
            savers = kill_savers(folder / "savers", saver_kills, seed, lambda done: update(done))
        frames = folder / "frames.npy"
        np.save(frames, np.random.default_rng(seed).integers(0, 256, (3000, 16, 16, 3), dtype=np.uint8))
        with progress_bar("runs killed", run_kills, unit="kills") as update:
            runs = kill_runs(place, frames, folder / "runs", run_kills, seed, lambda done: update(done))
        kills = [savers.row("saves"), runs.row("edgetta run")]
        print_table(tuple(kills[0]), [list(row.values()) for row in kills], left=("process",))
        rows = []
        for row in faults(Bench(place, folder / "injected")):
            rows.append(row)
            print_table(("fault", "recovered", "seconds"), [[row["fault"], row["recovered"], row["seconds"]]])
    if path is not None:
        write_results(path, rows, asdict(settings), {"kills": kills})
        click.echo(f"wrote {path}")
    lost = sum(row["states_lost"] + row["rows_lost"] + row["rows_broken"] for row in kills)
    failed = [row["fault"] for row in rows if not row["recovered"]]
    if lost or failed:
        raise EdgettaError(f"lost: {lost} states or rows; not recovered from: {', '.join(failed) or 'nothing'}")
