"""When to adapt."""

from __future__ import annotations

import pytest

from edgetta.errors import UsageError
from edgetta.segmented.adapter import AdaptConfig, Adapter
from edgetta.segmented.schedule import Budgeted, schedule
from tests.adaptation.test_adapter import network, stream


@pytest.mark.parametrize(
    ("when", "settled", "expected"),
    [
        ("always", True, [1, 1, 1, 1]),
        ("off", False, [0, 0, 0, 0]),
        ("every 3", True, [1, 0, 0, 1]),
        ("on-drift", True, [0, 0, 0, 0]),
        ("on-drift", False, [1, 1, 1, 1]),
    ],
)
def test_named_schedules(when: str, settled: bool, expected: list[int]) -> None:
    made = schedule(when)
    assert [int(made.due(step, settled)) for step in range(4)] == expected


@pytest.mark.parametrize("when", ["", "sometimes", "every 0", "every x", "budgeted", "budgeted 0%", "budgeted 101%"])
def test_others_are_refused_with_those_that_there_are(when: str) -> None:
    with pytest.raises(UsageError, match=r"unknown schedule .*; use 'always', .* or 'budgeted P%'"):
        AdaptConfig(when=when)


@pytest.mark.parametrize(("when", "share"), [("budgeted 20%", 0.2), ("budgeted 2.5 %", 0.025), ("budgeted 100%", 1.0)])
def test_updates_take_their_share_of_the_time(when: str, share: float) -> None:
    """Steps that update take three seconds, others one: two seconds are the update's."""
    made = schedule(when)
    assert isinstance(made, Budgeted)
    spent = total = 0
    for step in range(1000):
        due = made.due(step, True)
        made.record(3.0 if due else 1.0, 8, due)
        spent, total = spent + 2 * due, total + (3 if due else 1)
    # Until the first step without an update, all of an update's step counts as the update's.
    assert share - 0.02 < spent / total < share + 0.01 or (share == 1.0 and spent / total > 0.66)


def test_what_is_saved_is_spent_later() -> None:
    made = Budgeted(0.2)
    for _ in range(50):
        made.record(1.0, 64, False)
    updates = 0
    while made.due(0, True) and updates < 50:
        made.record(3.0, 64, True)
        updates += 1
    assert 5 < updates < 50


def test_the_adapter_keeps_to_it() -> None:
    adapter = Adapter(network(), AdaptConfig(when="budgeted 5%"))
    adapted = [adapter.step(stream()).adapted for _ in range(12)]
    assert adapted[0] and 1 <= adapter.updates < 6
    assert isinstance(adapter.schedule, Budgeted) and adapter.schedule.total > 0
