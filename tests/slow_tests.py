"""Which tests `make test-fast` leaves out: those that took long when last measured, named in `slow_tests.txt`.

    python -m pytest --durations=0 --durations-min=0.05 > durations.txt
    python -m tests.slow_tests durations.txt

A line is a test without its parameters, or a whole file where a fixture of it takes long.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

LIST = Path(__file__).with_name("slow_tests.txt")
LONGEST_TEST = 1.0  # seconds of a test, all of its parameters together
LONGEST_SETUP = 2.5  # seconds of a fixture

_LINE = re.compile(r"^\s*([0-9.]+)s (call|setup|teardown)\s+(\S+?\.py)::([^\[\s]+)")


def slow(lines: Iterable[str]) -> list[str]:
    """The names that take long, from pytest's table of durations, sorted."""
    calls: dict[str, float] = defaultdict(float)
    files = set()
    for seconds, phase, file, test in (found.groups() for found in map(_LINE.match, lines) if found):
        calls[f"{file}::{test}"] += float(seconds) if phase == "call" else 0.0
        if phase == "setup" and float(seconds) > LONGEST_SETUP:
            files.add(file)
    tests = (name for name, seconds in calls.items() if seconds > LONGEST_TEST and name.split("::")[0] not in files)
    return sorted([*files, *tests])


def listed() -> frozenset[str]:
    """The names in the list."""
    return frozenset(LIST.read_text().split())


def is_slow(node: str, names: frozenset[str]) -> bool:
    """Whether a test, by pytest's name for it, is in the list."""
    return node.split("[")[0] in names or node.split("::")[0] in names


if __name__ == "__main__":
    found = slow(line for path in sys.argv[1:] for line in Path(path).read_text().splitlines())
    LIST.write_text("\n".join(found) + "\n")
    print(f"{len(found)} names in {LIST}")
