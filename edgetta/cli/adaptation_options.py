"""One option per setting of `AdaptConfig`, under the setting's own name: how the stream is adapted to."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import Field, fields, replace
from typing import Any, TypeVar

import click

from edgetta.adaptation.config import AdaptConfig

_Function = TypeVar("_Function", bound=Callable[..., Any])
_SPELLED = {"batch_norm": "--bn"}
OPTIONS: dict[str, Field[Any]] = {setting.name: setting for setting in fields(AdaptConfig)}
"""The settings by name."""


def adaptation_options(function: _Function, but: Collection[str] = ()) -> _Function:
    """Add the options to a click command, but those that it has itself. Each is None where the user said nothing."""
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
    spelled = _SPELLED.get(name, f"--{name.replace('_', '-')}")
    text = (
        f"{setting.metadata['help']} Default: {_plain(default)}." if default is not None else setting.metadata["help"]
    )
    return click.option(spelled, name, type=_kind(metavar, default), metavar=metavar, help=text)


def _kind(metavar: str, default: Any) -> Any:
    if isinstance(default, bool):
        return bool
    if "|" in metavar:
        return click.Choice(metavar.split("|"))
    return float if default is None else type(default)


def _plain(default: Any) -> str:
    return (
        str(default).lower()
        if isinstance(default, bool)
        else f"{default:g}"
        if isinstance(default, float)
        else str(default)
    )
