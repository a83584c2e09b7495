"""`edgetta bench`: measurements, one sub-verb per kind, each loaded when it is called."""

from __future__ import annotations

import difflib
import importlib

import click

from edgetta.errors import MissingDependencyError

# name: (module whose `command` is the sub-verb, help). Static, so that `edgetta bench --help` imports none of them.
BENCHES: dict[str, tuple[str, str]] = {
    "device": ("edgetta.bench.device", "What a device does with a bundle: time, memory, energy, error."),
    "criticality": ("edgetta.bench.criticality", "Compare module robust criticality with the published algorithm."),
    "rift": ("edgetta.bench.rift", "Measure what RiFT gains on real images, beside its controls."),
    "rift-tta": ("edgetta.bench.rift_tta", "Attack robust networks before and through adaptation."),
    "exactness": ("edgetta.bench.exactness.command", "Compare derived gradients with autograd, network by network."),
    "export": ("edgetta.bench.export", "Every family of timm and torchvision: which become bundles, and exact ones?"),
    "memory": ("edgetta.bench.memory.command", "What each method takes, a fresh process for every row."),
    "plan": ("edgetta.bench.plan", "Compare planned with measured memory, budget by budget."),
    "learning-rate": ("edgetta.bench.learning_rate.command", "Is the law of learning rates right, and does it pay?"),
    "accuracy": ("edgetta.bench.accuracy.command", "Error of adapting methods on streams of corrupted images."),
    "int8": ("edgetta.bench.int8", "What an int8 backbone costs, and what meta-networks repair of it."),
    "fuzz": ("edgetta.bench.fuzzing.command", "Damaged bundles and states, read by the thousand within limits."),
    "faults": ("edgetta.bench.faults.command", "Kills and injected faults: what is lost, what recovers."),
    "latency": ("edgetta.bench.latency", "Time inference, prediction and adaptation steps, side by side."),
    "tensorrt-build": ("edgetta.bench.tensorrt_build", "Build the engines of whole networks, without running them."),
}

EXAMPLES = """\b
Example:
  edgetta bench latency --model wrn40_2 --batch 64 --json latency.json
"""


class BenchGroup(click.Group):
    """A group whose sub-verbs are named in `BENCHES` and imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(BENCHES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in BENCHES:
            return None
        module = BENCHES[cmd_name][0]
        try:
            command = importlib.import_module(module).command
        except ModuleNotFoundError as error:
            if error.name == module:
                raise MissingDependencyError(
                    f"the bench {cmd_name!r} is not part of this installation ({module} is missing); reinstall edgetta"
                ) from error
            raise
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in BENCHES and not name.startswith("-") and not ctx.resilient_parsing:
            near = difflib.get_close_matches(name, BENCHES, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"benches are {', '.join(BENCHES)}"
            raise click.UsageError(f"no bench {name!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Benches"):
            formatter.write_dl([(name, text) for name, (_, text) in BENCHES.items()])


@click.group(cls=BenchGroup, epilog=EXAMPLES, subcommand_metavar="BENCH [ARGUMENTS]...")
def command() -> None:
    """Measure on this machine, and write results with machine, versions and date beside them.

    Measure on a quiet machine: other programs show in every figure.
    """
