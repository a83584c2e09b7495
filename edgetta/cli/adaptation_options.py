"""One option per setting of `AdaptConfig`, under the setting's own name: how the stream is adapted to."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import Field, fields, replace
from functools import partial
from typing import Any, TypeVar

import click

from edgetta.adaptation.config import AdaptConfig
from edgetta.cli.help_tiers import SettingOption

_Function = TypeVar("_Function", bound=Callable[..., Any])
_SPELLED = {"batch_norm": "--bn"}
OPTIONS: dict[str, Field[Any]] = {setting.name: setting for setting in fields(AdaptConfig)}
"""The settings by name."""


def adaptation_options(function: _Function, but: Collection[str] = ()) -> _Function:
    """Add the options to a click command, but for some settings. Each is None where the user said nothing."""
    for name, setting in reversed(OPTIONS.items()):
        if name not in but:
            function = _option(name, setting)(function)
    return function


def adapt_config(base: AdaptConfig, values: Mapping[str, Any]) -> AdaptConfig:
    """`base` with the options that the user gave. `values` are those of the command.

    Raises:
        UsageError: a value out of its range.
    """
    return replace(base, **{name: values[name] for name in OPTIONS if values.get(name) is not None})


def _option(name: str, setting: Field[Any]) -> Callable[[_Function], _Function]:
    metavar, default = setting.metadata["metavar"], setting.default
    return click.option(
        _SPELLED.get(name, f"--{name.replace('_', '-')}"),
        name,
        cls=SettingOption,
        setting=partial(_default, name),
        type=_kind(metavar, default),
        metavar=metavar,
        help=setting.metadata["help"],
    )


def _default(name: str) -> Any:
    """What holds where nobody says anything: the setting's own default; a bundle may say otherwise."""
    from edgetta.adaptation.step_rate import DEFAULT_RATE

    return DEFAULT_RATE if name == "learning_rate" else OPTIONS[name].default


def _kind(metavar: str, default: Any) -> Any:
    if isinstance(default, bool):
        return bool
    if "|" in metavar:
        return click.Choice(metavar.split("|"))
    return float if default is None else type(default)
