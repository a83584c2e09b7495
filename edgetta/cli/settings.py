"""Settings from a TOML file: `--config FILE` gives the options of a verb other defaults, under the options' own names.

    batch = 64                 # top-level keys: for the verb that is run

    [run]                      # a table per verb, which wins over the top level
    engine = "onnxruntime"

    [bench.latency]            # a verb of a group
    repetitions = 20

What is written on the command line wins over both.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from edgetta.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_Function = TypeVar("_Function", bound=Callable[..., Any])

MAX_FILE_BYTES = 2**20


def config_option(function: _Function) -> _Function:
    """Add `--config FILE` to a click command, below `@click.command()` and beside its options.

    The command itself sees nothing of it: its options and arguments arrive with the values of the file as defaults.
    """
    option = click.option(
        "--config",
        metavar="FILE",
        type=click.Path(path_type=Path),
        is_eager=True,
        expose_value=False,
        callback=_apply,
        help="Take defaults for these options from a TOML file: its top level, or its table named like the verb.",
    )
    return option(function)


def _apply(ctx: click.Context, option: click.Parameter, path: Path | None) -> None:
    if path is not None:
        defaults = settings_for(ctx, path, read_toml(path))
        ctx.default_map = {**(ctx.default_map or {}), **defaults}


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        UsageError: the file is missing, unreadable, or no TOML; the message names the line.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UsageError(f"cannot read the settings {path}: {error.strerror or error}; check the path") from error
    if len(content) > MAX_FILE_BYTES:
        raise UsageError(f"{path} is larger than {MAX_FILE_BYTES:,} bytes: is it the right file?")
    try:
        return tomllib.loads(content.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path} is no TOML file: {error}; correct it") from error


def settings_for(ctx: click.Context, path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults that a settings file has for the command of `ctx`, by parameter name, each checked.

    Raises:
        UsageError: an unknown key or table, or a value of the wrong type; the message names the nearest key.
    """
    parameters = {name: parameter for parameter in ctx.command.params for name in _names(parameter)}
    names = [_names(parameter)[0] for parameter in ctx.command.params if _names(parameter)]
    where = str(path)
    found: dict[str, Any] = {}

    def take(table: Mapping[str, Any], label: str, tables: Iterable[str]) -> None:
        """Add the values of one table; tables in it are allowed where they are named in `tables`."""
        for key, value in table.items():
            if isinstance(value, Mapping):
                if key not in tables:
                    raise UsageError(f"{where}: no verb or table {_quoted(label, key)}{_nearest(key, tables)}")
                continue
            parameter = parameters.get(key)
            if parameter is None or parameter.name is None:
                raise UsageError(
                    f"{where}: {ctx.command_path} has no option {_quoted(label, key)}{_nearest(key, names)}"
                )
            found[parameter.name] = _checked(ctx, parameter, value, f"{where}: {_quoted(label, key)}")

    table, label = content, ""
    groups = _groups(ctx)
    # What stands beside the tables of a group's verbs holds for the verb that is run, too.
    for group in groups:
        verbs = group.command.list_commands(group) if isinstance(group.command, click.Group) else []
        take(table, label, verbs)
        verb = _below(group, ctx)
        if not isinstance(table.get(verb), Mapping):
            return found
        table, label = table[verb], f"{label}{verb}."
    take(table, label, ())
    return found


def _groups(ctx: click.Context) -> list[click.Context]:
    """The contexts of the groups above a command, outermost first."""
    chain: list[click.Context] = []
    while ctx.parent is not None:
        ctx = ctx.parent
        chain.insert(0, ctx)
    return chain


def _below(group: click.Context, ctx: click.Context) -> str:
    """The name of the verb of `group` that leads to the command of `ctx`."""
    while ctx.parent is not None and ctx.parent is not group:
        ctx = ctx.parent
    return ctx.info_name or ""


def _names(parameter: click.Parameter) -> list[str]:
    """Every name under which a parameter may stand in a file: as on the command line, or with underscores."""
    if not parameter.expose_value or parameter.name is None:
        return []
    long = [name[2:] for name in parameter.opts if name.startswith("--")]
    spelled = long or [parameter.name]
    return list(dict.fromkeys([*spelled, *(name.replace("-", "_") for name in spelled), parameter.name]))


def _checked(ctx: click.Context, parameter: click.Parameter, value: Any, where: str) -> Any:
    """The value as the command line would have had it, after a trial conversion.

    Raises:
        UsageError: the parameter does not take such a value; the message says where it stands.
    """
    several = (isinstance(parameter, click.Option) and parameter.multiple) or parameter.nargs != 1
    if isinstance(parameter.type, click.types.BoolParamType):
        if not isinstance(value, bool):
            raise UsageError(f"{where} is on or off: write true or false, not {value!r}")
    elif isinstance(value, list):
        if any(isinstance(entry, (list, Mapping, bool)) for entry in value):
            raise UsageError(f"{where} takes a list of plain values")
        entries = [str(entry) for entry in value]
        # An option that takes "a,b" on the command line may have a list in the file.
        value = entries if several else ",".join(entries)
    elif isinstance(value, bool):
        raise UsageError(f"{where} takes a value, not {str(value).lower()}")
    else:
        value = [str(value)] if several else str(value)
    try:
        parameter.type_cast_value(ctx, value)
    except click.BadParameter as error:
        raise UsageError(f"{where}: {error.message.rstrip('.')}") from error
    return value


def _quoted(label: str, key: str) -> str:
    return repr(f"{label}{key}")


def _nearest(key: str, names: Iterable[str]) -> str:
    names = list(names)
    near = difflib.get_close_matches(
        key.replace("_", "-"), [name.replace("_", "-") for name in names], n=1, cutoff=0.5
    )
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; there are {', '.join(names)}" if names else ""
