"""The command line: one verb per file, loaded when it is called, and one line for every error."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import click

from edgetta import __version__
from edgetta.errors import EdgettaError, MissingDependencyError
from edgetta.extras import installation
from edgetta.interruption import Terminated, termination_raises
from edgetta.memory.allocation_failure import is_allocation_failure
from edgetta.printable import printable

# Threads of torch that wait for one another spin for milliseconds by default. With as many of them as cores, any other
# process then makes a step ten times as long; spinning a little costs nothing. Read when torch is first imported.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# name: (module whose `command` is the verb, help). Static, so that `edgetta --help` imports neither torch nor a verb.
VERBS: dict[str, tuple[str, str]] = {
    "demo": ("edgetta.bench.demo_command", "Show all of it on real digits: train, export, adapt."),
    "prepare": ("edgetta.cli.prepare", "Get a trained model ready for the device."),
    "export": ("edgetta.cli.export", "Write a model as a bundle of frozen segments."),
    "build": ("edgetta.cli.build", "Make a bundle's TensorRT engines on this device."),
    "plan": ("edgetta.cli.plan", "Find what a memory budget allows."),
    "run": ("edgetta.cli.run", "Predict on a stream of frames and adapt to it."),
    "deploy": ("edgetta.cli.deploy", "Bring a bundle to a device over ssh and run it there."),
    "sign": ("edgetta.cli.sign", "Sign a bundle, or make a key to sign with."),
    "verify": ("edgetta.cli.verify", "Check that a bundle is whole, and who signed it."),
    "state": ("edgetta.cli.state", "Look at what was learnt, compare it, and go back."),
    "inspect": ("edgetta.cli.inspect", "Show what a bundle consists of, every file checked."),
    "doctor": ("edgetta.cli.doctor", "Examine this machine, and say what is missing."),
    "bench": ("edgetta.cli.bench", "Measure latency, memory and accuracy."),
    "curvature": ("edgetta.cli.curvature", "Estimate the Hessian spectrum of a model's loss."),
    "attack": ("edgetta.cli.attack", "Measure how robust a model is against attacks."),
    "rift": ("edgetta.cli.rift", "Make a robust model more accurate, its robustness kept."),
    "learning-rate": ("edgetta.cli.learning_rate", "Find the learning rate that each batch size bears."),
}

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 and the number of the signal, as shells have it."""

SIGNALLED = 128
"""And the number of a signal: the exit code after it. 143 after SIGTERM."""

INTERNAL_ERROR = 70
"""Exit code for a mistake of edgetta's own (EX_SOFTWARE of sysexits)."""


@dataclass
class Invocation:
    """What the options before the verb said; every verb finds it as `context.find_object(Invocation)`."""

    debug: bool = False


class ReaderGoneError(Exception):
    """Standard output is a pipe that nobody reads any more. Not an OSError: click ends the process on those."""


class VerbGroup(click.Group):
    """A group whose verbs are named in `VERBS` and imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        return load_verb(cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in VERBS and not name.startswith("-") and not ctx.resilient_parsing:
            near = difflib.get_close_matches(name, VERBS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"verbs are {', '.join(VERBS)}"
            raise click.UsageError(f"no verb {name!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(name, text) for name, (_, text) in VERBS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        verbs = [CompletionItem(name, help=text) for name, (_, text) in VERBS.items() if name.startswith(incomplete)]
        return verbs + click.Command.shell_complete(self, ctx, incomplete)

    def invoke(self, ctx: click.Context) -> None:
        """Run the verb. What it returns is for Python callers; only an explicit exit gives an exit code."""
        try:
            super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError as error:
            raise ReaderGoneError from error


def load_verb(name: str) -> click.Command:
    """Import a verb's module and return its `command`.

    Raises:
        MissingDependencyError: the installation has no such module.
    """
    module = VERBS[name][0]
    try:
        command = importlib.import_module(module).command
    except ModuleNotFoundError as error:
        if error.name == module:
            raise MissingDependencyError(
                f"the verb {name!r} is not part of this installation ({module} is missing); reinstall edgetta"
            ) from error
        raise
    assert isinstance(command, click.Command)
    return command


def _print_version(ctx: click.Context, option: click.Parameter, asked: bool) -> None:
    if asked and not ctx.resilient_parsing:
        click.echo(f"edgetta {__version__}")
        ctx.exit()


@click.group(
    cls=VerbGroup,
    invoke_without_command=True,
    subcommand_metavar="VERB [ARGUMENTS]...",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error (also: EDGETTA_DEBUG=1).")
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version and leave.",
)
@click.pass_context
def group(ctx: click.Context, debug: bool) -> None:
    """Continual test-time adaptation on edge devices, inside a memory budget.

    `edgetta VERB --help` explains a verb.
    """
    if debug:
        ctx.ensure_object(Invocation).debug = True
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
        ctx.exit(2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0: done, or the reader of the output has gone. 1: bad input. 2: wrong usage. 3: a missing dependency. 4: a bundle
    or state that failed its checks. 70: a mistake of edgetta's own. 75: a live source stayed away. 130: interrupted.
    143: terminated; 128 and its number for another signal.

    Args:
        arguments: without the program's name; by default those of the process.
    """
    invocation = Invocation(debug=os.environ.get("EDGETTA_DEBUG", "") not in ("", "0"))
    try:
        given = None if arguments is None else list(arguments)
        with termination_raises():
            result = group.main(given, prog_name="edgetta", standalone_mode=False, obj=invocation)
        return result if isinstance(result, int) else 0
    except (KeyboardInterrupt, click.Abort) as error:
        # Click turns the one into the other.
        ended = error if isinstance(error, Terminated) else error.__cause__
        if isinstance(ended, Terminated):
            return _fail(ended.told, SIGNALLED + ended.number, invocation)
        return _fail("interrupted", INTERRUPTED, invocation)
    except ReaderGoneError:
        # What is still in the buffer must not fail again when the interpreter closes standard output.
        with suppress(OSError, ValueError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0  # the reader has what it wanted: `edgetta doctor | head` is no failure
    except EdgettaError as error:
        return _fail(f"error: {error}", error.exit_code, invocation)
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx is not None else "edgetta"
        return _fail(f"error: {_sentence(error)} (see `{path} --help`)", error.exit_code, invocation)
    except click.ClickException as error:
        return _fail(f"error: {_sentence(error)}", error.exit_code, invocation)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and not (error.name or "edgetta").startswith("edgetta"):
            return _fail(f"error: {_missing(error)}", MissingDependencyError.exit_code, invocation)
        if is_allocation_failure(error):
            advice = "out of memory; use a smaller batch, or close other programs"
            return _fail(f"error: {advice}", EdgettaError.exit_code, invocation)
        traceback.print_exc()
        what = f"error: {type(error).__name__}: {error}. This is a mistake in edgetta"
        return _fail(f"{what}: please report it with the output of `edgetta doctor --json`", INTERNAL_ERROR)


def _fail(message: str, code: int, invocation: Invocation | None = None) -> int:
    """Say it in one line on standard error, below the traceback where that is wanted."""
    if invocation is not None and invocation.debug:
        traceback.print_exc()
    with suppress(OSError, ValueError):
        print(f"edgetta: {printable(' '.join(message.split()))}", file=sys.stderr, flush=True)
    return code


def _missing(error: ModuleNotFoundError) -> str:
    package = (error.name or "").split(".")[0]
    return f"this needs {package}, which is not installed: pip install {installation(package)}"


def _sentence(error: click.ClickException) -> str:
    return error.format_message().rstrip(". \n")
