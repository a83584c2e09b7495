"""The options that say what an attacker may do: the same for every verb that attacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgetta.errors import UsageError

if TYPE_CHECKING:
    from edgetta.offline.attack import Attack, Threat

_Function = TypeVar("_Function", bound=Callable[..., Any])


def threat_options(function: _Function) -> _Function:
    """Add the options of the threat to a click command."""
    options = [
        click.option(
            "--norm",
            type=click.Choice(["linf", "l2"]),
            default="linf",
            show_default=True,
            help="How far an image may be moved: each pixel by epsilon (linf), or all together (l2).",
        ),
        click.option(
            "--epsilon",
            metavar="X",
            default="8/255",
            show_default=True,
            help="Size of the attack for pixels in [0, 1]; a fraction may be written.",
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def threat_from(values: Mapping[str, Any]) -> Threat:
    """The threat that the options describe.

    Raises:
        UsageError: an epsilon that is no positive number.
    """
    from edgetta.offline.attack import Threat

    return Threat(values["norm"], number("--epsilon", values["epsilon"]))


def attack_from(values: Mapping[str, Any]) -> Attack:
    """The attack that `--attack`, `--steps`, `--restarts` and the threat describe.

    Raises:
        UsageError: a combination that does not exist.
    """
    from edgetta.offline.attack import APGD, PGD, AutoAttack

    threat, kind, steps = threat_from(values), values["attack"], values["steps"]
    if kind == "autoattack":
        if steps is not None or values["restarts"] is not None:
            raise UsageError("AutoAttack has nothing to tune: leave --steps and --restarts out")
        return AutoAttack(threat)
    restarts = values["restarts"] or 1
    if kind == "pgd":
        return PGD(threat, steps or 20, restarts=restarts)
    return APGD(threat, steps or 100, restarts, "dlr" if kind == "apgd-dlr" else "ce")


def number(option: str, text: str) -> float:
    """A positive number, perhaps written as a fraction.

    Raises:
        UsageError: anything else.
    """
    try:
        found = float(Fraction(text.replace(" ", "")))
    except (ValueError, ZeroDivisionError) as error:
        raise UsageError(f"{option} {text} is no number; write 0.03 or 8/255") from error
    if not found > 0:
        raise UsageError(f"{option} {text} must be above 0")
    return found
