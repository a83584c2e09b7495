"""Help in two tiers: `--help` has the options of a first day, `--help-all` every one, with the settings' own defaults.

The defaults of settings that live in modules with torch are read when all help is asked for: `--help` stays quick.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import click

_ALL = "edgetta.help_all"


def two_tiers(*basic: str) -> type[click.Command]:
    """A class of commands whose `--help` shows the options with these parameter names alone."""
    return type("TwoTierCommand", (_TwoTiers,), {"basic": frozenset(basic)})


class SettingOption(click.Option):
    """An option that is None where the user said nothing, because a setting then decides.

    Args:
        setting: gives the setting's value; called when all help is shown, so it may import what is heavy.
    """

    def __init__(self, *arguments: Any, setting: Callable[[], Any], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._setting = setting

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        record = super().get_help_record(ctx)
        if record is None or not ctx.meta.get(_ALL):
            return record
        value = self._setting()
        return record if value is None else (record[0], f"{record[1]}  [default: {_spelled(value)}]")


class _TwoTiers(click.Command):
    basic: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        named = {parameter.name for parameter in self.params}
        assert self.basic <= named, f"no option {', '.join(sorted(self.basic - named))}"
        hidden = sum(isinstance(one, click.Option) and one.name not in self.basic for one in self.params)
        help_all = click.Option(
            ["--help-all"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_show_all,
            help=f"Show the other {hidden} options, too, and leave.",
        )
        self.params.append(help_all)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if ctx.meta.get(_ALL):
            super().format_options(ctx, formatter)
            return
        shown = [one for one in self.get_params(ctx) if one.name in {*self.basic, "help_all", "help"}]
        records = [record for one in shown if (record := one.get_help_record(ctx)) is not None]
        with formatter.section("Options"):
            formatter.write_dl(records)


def _show_all(ctx: click.Context, option: click.Parameter, asked: bool) -> None:
    if asked and not ctx.resilient_parsing:
        ctx.meta[_ALL] = True
        click.echo(ctx.get_help(), color=ctx.color)
        ctx.exit()


def _spelled(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(map(_spelled, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
