"""The process that reads damaged inputs: within limits, one after another, a line before and a line after each.

python -m edgetta.bench.fuzzing.worker BUNDLE FOLDER SEED FIRST LAST BYTES
"""

from __future__ import annotations

import gc
import json
import resource
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from edgetta.bench.fuzzing.targets import Targets
from edgetta.bundle.malformed import MalformedError
from edgetta.errors import EdgettaError
from edgetta.memory.allocation_failure import is_allocation_failure
from edgetta.printable import printable
from edgetta.state_files import Contents

LONGEST_LINE = 1500


def main(bundle: str, folder: str, seed: str, first: str, last: str, limit: str) -> None:
    """Read the inputs from `first` up to `last`; no more than `limit` bytes of data in memory."""
    generator = np.random.default_rng(0)
    arrays = {f"network.{k}": generator.normal(size=(8, 3)).astype(np.float32) for k in range(6)}
    contents = Contents({**arrays, "step": np.array(3.0)}, {"bundle": "b" * 64, "counters": {"steps": 3}})
    targets = Targets(Path(bundle), Path(folder), contents)
    for number in range(20):  # what is loaded once is no growth
        _outcome(targets, 1 << 40, number)
    gc.collect()
    resource.setrlimit(resource.RLIMIT_DATA, (int(limit), int(limit)))
    for number in range(int(first), int(last)):
        say({"number": number})
        level = _begin()
        found = _outcome(targets, int(seed), number)
        say({**found, "grown": max(0, _peak() - level)})


def say(facts: dict[str, Any]) -> None:
    """One line for the parent."""
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def _outcome(targets: Targets, seed: int, number: int) -> dict[str, Any]:
    """What became of one input: accepted, refused, netted (refused by the last net), memory or traceback."""
    made = targets.make(seed, number)
    facts: dict[str, Any] = {"kind": made.kind, "name": made.name}
    line = ""
    try:
        made.read()
        outcome = "accepted"
    except MalformedError as error:
        outcome, line = "netted", "".join(traceback.format_exception(error.__cause__))[-600:]
    except EdgettaError as error:
        outcome = "refused" if "\n" not in str(error) and len(printable(str(error))) <= LONGEST_LINE else "long"
        line = "" if outcome == "refused" else str(error)[:400]
    except BaseException as error:
        outcome = "memory" if is_allocation_failure(error) or isinstance(error, MemoryError) else "traceback"
        line = "".join(traceback.format_exception(error))[-600:]
    return {**facts, "outcome": outcome, "reached": targets.reached, "line": line}


def _begin() -> int:
    """Forget the peak so far, where the system can; the bytes that are in memory now."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> int:
    """The most bytes in memory since `_begin`."""
    return _status("VmHWM")


def _status(what: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:  # no Linux: the peak of the process's life
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{what}:"))


if __name__ == "__main__":
    main(*sys.argv[1:])
