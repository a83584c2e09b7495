"""The result of an examination: one `Check` per thing that was looked at, and the `Report` that holds them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["ok", "absent", "warning", "problem"]


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what was looked at, a word or two.
        status: "ok"; "absent" where it is not here and nothing is wrong with that; "warning" where edgetta runs, but
            slower or without something; "problem" where it does not.
        value: what was found, for reading.
        remedy: what to do; "" where there is nothing to do.
        facts: what was found, for programs: JSON values only.
    """

    name: str
    status: Status
    value: str
    remedy: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """All checks, in the order of reading."""

    checks: tuple[Check, ...]

    @property
    def usable(self) -> bool:
        """Whether edgetta can run here: no check found a problem."""
        return all(check.status != "problem" for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        rows = [
            {
                "name": check.name,
                "status": check.status,
                "value": check.value,
                "remedy": check.remedy,
                "facts": check.facts,
            }
            for check in self.checks
        ]
        return {"usable": self.usable, "checks": rows}


def problems(checks: Sequence[Check]) -> list[str]:
    """Names of the checks that found a problem."""
    return [check.name for check in checks if check.status == "problem"]
