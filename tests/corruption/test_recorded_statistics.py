"""Every corruption, severity and table gives the statistics that were recorded, on images made by formula.

`python tests/corruption/test_recorded_statistics.py` records them anew; do that only for a change that is meant,
after `test_frozen_reference.py` has passed with the real images. Frost uses the synthetic ice here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgetta.corruption import CORRUPTIONS, EXTRA_CORRUPTIONS, corrupt

RECORD = Path(__file__).with_name("recorded_statistics.json")
SETS = {"cifar": (24, 32), "imagenet": (1, 224)}  # number of images, side
TOLERANCE = 0.1  # grey levels: room for other versions of numpy, scipy and the JPEG library, not for another parameter
NAMES = CORRUPTIONS + EXTRA_CORRUPTIONS


def statistics(clean: np.ndarray, name: str) -> list[list[float]]:
    """For each severity: mean per channel, standard deviation, mean absolute change, mean step between neighbours."""
    rows = []
    for severity in range(1, 6):
        values = corrupt(clean, name, severity).astype(np.float64)
        steps = np.abs(np.diff(values, axis=2)).mean()
        figures = [*values.mean(axis=(0, 1, 2)), values.std(), np.abs(values - clean).mean(), steps]
        rows.append([round(float(figure), 3) for figure in figures])
    return rows


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("table", SETS)
def test_statistics_are_those_recorded(
    table: str, name: str, make_pictures: Callable[[int, int], np.ndarray], no_data: None
) -> None:
    recorded = json.loads(RECORD.read_text())[table][name]
    found = statistics(make_pictures(*SETS[table]), name)
    assert np.abs(np.array(found) - np.array(recorded)).max() <= TOLERANCE


def test_the_tolerance_tells_neighbouring_severities_apart() -> None:
    recorded = json.loads(RECORD.read_text())
    for table in SETS:
        for name in NAMES:
            rows = np.array(recorded[table][name])
            assert np.abs(np.diff(rows, axis=0)).max(axis=1).min() > TOLERANCE, (table, name)


if __name__ == "__main__":
    from conftest import pictures  # beside this file

    os.environ["EDGETTA_DATA"] = os.devnull
    record = {table: {name: statistics(pictures(*shape), name) for name in NAMES} for table, shape in SETS.items()}
    lines = json.dumps(record).replace('"cifar"', '\n"cifar"').replace('"imagenet"', '\n"imagenet"')
    RECORD.write_text(lines.replace(']], "', ']],\n "').replace("}}", "}\n}") + "\n")
