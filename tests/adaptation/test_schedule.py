"""When to learn."""

from __future__ import annotations

import pytest

from edgetta.adaptation.schedule import Spent, schedule
from edgetta.errors import UsageError

NOTHING = Spent()


def test_always_off_and_every_so_many() -> None:
    assert all(schedule("always")(n, True, NOTHING) for n in range(4))
    assert not any(schedule("off")(n, False, NOTHING) for n in range(4))
    assert [schedule("every 3")(n, False, NOTHING) for n in range(6)] == [True, False, False, True, False, False]


def test_on_drift_learns_until_the_stream_is_settled() -> None:
    assert schedule("on-drift")(5, False, NOTHING) and not schedule("on-drift")(5, True, NOTHING)


def test_budgeted_spends_its_share_of_the_time_on_updates() -> None:
    due, spent, updates = schedule("budgeted 20%"), Spent(), 0
    for step in range(400):
        updated = due(step, False, spent)
        updates += updated
        spent = spent.after(3.0 if updated else 1.0, 8, updated)
    assert spent.updating / spent.total == pytest.approx(0.2, abs=0.02)
    assert 0 < updates < 400


@pytest.mark.parametrize("wrong", ["never", "every 0", "every", "budgeted 0%", "budgeted 101%", "on drift"])
def test_an_unknown_schedule_is_refused(wrong: str) -> None:
    with pytest.raises(UsageError, match="unknown schedule"):
        schedule(wrong)
