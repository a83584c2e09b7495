"""`edgetta bench fuzz`: damaged bundles and states by the thousand, each read in a process with limits."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click

EVERY = 500
"""Inputs after which the result file is written anew: a bench that is ended early has counted what it read."""

SAMPLES = 20
"""Failures that the result file describes."""


@dataclass(frozen=True)
class Settings:
    """What decides the figures; the result file holds it."""

    inputs: int = 1000
    seed: int = 0
    seconds: float = 30.0  # for one input, or it hangs
    bytes: int = 3 << 30  # of data in memory
    model: str = "resnet8"


@dataclass
class Tally:
    """What came of the inputs."""

    outcomes: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    reached: int = 0
    largest: int = 0
    samples: list[dict[str, Any]] = field(default_factory=list)

    def note(self, number: int, facts: dict[str, Any]) -> None:
        self.outcomes[facts["outcome"]] += 1
        self.kinds[facts.get("kind", "?")] += 1
        self.reached += bool(facts.get("reached"))
        self.largest = max(self.largest, facts.get("grown", 0))
        if facts["outcome"] not in ("accepted", "refused") and len(self.samples) < SAMPLES:
            self.samples.append({"number": number, **facts})

    @property
    def failures(self) -> int:
        return sum(
            count for outcome, count in self.outcomes.items() if outcome in ("crash", "hang", "traceback", "long")
        )

    def row(self) -> dict[str, Any]:
        """The row of the result file."""
        return {
            "inputs": self.outcomes.total(),
            "reached_readers": self.reached,
            "crashes": self.outcomes["crash"],
            "tracebacks": self.outcomes["traceback"],
            "hangs": self.outcomes["hang"],
            "long_lines": self.outcomes["long"],
            "out_of_memory": self.outcomes["memory"],
            "caught_by_the_last_net": self.outcomes["netted"],
            "refused": self.outcomes["refused"],
            "accepted": self.outcomes["accepted"],
            "largest_bytes": self.largest,
        }


@click.command(epilog="Example: edgetta bench fuzz --inputs 10000 --json fuzz.json")
@click.option("--inputs", default=1000, show_default=True, type=click.IntRange(1), help="Damaged inputs to read.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Which ones.")
@click.option("--bundle", type=click.Path(path_type=Path), help="Damage this one; by default a small one is made.")
@click.option("--json", "path", type=click.Path(path_type=Path), help="Write the result file here.")
def command(inputs: int, seed: int, bundle: Path | None, path: Path | None) -> None:
    """Damage bundles and states, with hashes that fit the damage, and read them.

    No reader may crash, hang, take gigabytes, or end in more than one line. The exit code is 1 where one did.
    """
    from edgetta.bench.result_file import write_results
    from edgetta.cli.progress import progress_bar
    from edgetta.cli.tables import print_facts
    from edgetta.errors import EdgettaError

    settings = Settings(inputs=inputs, seed=seed, model="resnet8" if bundle is None else bundle.name)
    with tempfile.TemporaryDirectory(prefix="edgetta-fuzz-") as folder:
        place = bundle or small_bundle(Path(folder) / "small")
        with progress_bar("reading", inputs, unit="inputs") as update:

            def watch(done: int, tally: Tally) -> None:
                update(done)
                if path is not None and (done % EVERY == 0 or done == inputs):
                    facts = {"kinds": dict(tally.kinds), "samples": tally.samples}
                    write_results(path, [tally.row()], asdict(settings), facts)

            tally = fuzz(place, Path(folder), settings, watch)
    print_facts([*tally.row().items(), ("by kind", ", ".join(f"{k} {n:,}" for k, n in tally.kinds.items()))])
    if path is not None:
        click.echo(f"wrote {path}")
    if tally.failures:
        raise EdgettaError(f"{tally.failures} inputs did what none may do: {json.dumps(tally.samples[:2])}")


def small_bundle(path: Path) -> Path:
    """A bundle of a small network with seeded weights, as the exporter writes it."""
    import torch

    from edgetta.adaptation.config import AdaptConfig
    from edgetta.export.bundle_writer import Shipment, write_bundle
    from edgetta.export.content import measure_content
    from edgetta.export.derive import derive
    from edgetta.models.resnet8 import ResNet8
    from edgetta.offline.network import Network
    from edgetta.offline.source_statistics import synthetic_images, with_source_statistics

    torch.manual_seed(0)
    module = ResNet8(num_classes=5, width=0.5)
    model = derive(module.eval(), (3, 16, 16), ("layer1", "layer2", "layer3"))
    programs = with_source_statistics(Network(model.programs), None).programs
    shipment = Shipment(programs, model.cuts, content=measure_content(programs, synthetic_images(model.input_shape)))
    write_bundle(path, shipment, name="small", config=AdaptConfig(), classes=[f"class {k}" for k in range(5)])
    return path


def fuzz(
    bundle: Path, folder: Path, settings: Settings, progress: Callable[[int, Tally], object] = lambda done, tally: None
) -> Tally:
    """Read the inputs, in as many processes one after another as it takes."""
    tally, number = Tally(), 0
    (folder / "work").mkdir()
    while number < settings.inputs:
        number = _one_process(bundle, folder / "work", settings, number, tally, progress)
    return tally


def _one_process(
    bundle: Path, folder: Path, settings: Settings, first: int, tally: Tally, progress: Callable[[int, Tally], object]
) -> int:
    """Read inputs until the end, or until the process fails at one. Returns the number to go on with."""
    arguments = [str(bundle), str(folder), str(settings.seed), str(first), str(settings.inputs), str(settings.bytes)]
    process = subprocess.Popen(
        [sys.executable, "-m", "edgetta.bench.fuzzing.worker", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_pump, args=(process, lines), daemon=True).start()
    number, begun, outcome = first, False, ""
    try:
        while not outcome:
            try:
                line = lines.get(timeout=settings.seconds if begun else 300)
            except queue.Empty:
                outcome = "hang"
                continue
            if line is None:
                outcome = "" if number >= settings.inputs else "crash"
                break
            facts = json.loads(line)
            if "outcome" in facts:
                tally.note(number, facts)
                number += 1
                progress(number, tally)
            begun = begun or "number" in facts
    finally:
        process.kill()
        process.wait()
    if outcome:
        error = "" if process.stderr is None else process.stderr.read()[-600:]
        tally.note(number, {"outcome": outcome, "line": error, "code": process.returncode})
        number += 1
    return number


def _pump(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line)
    lines.put(None)
