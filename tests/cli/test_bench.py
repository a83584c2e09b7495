"""`edgetta bench`: a table of benches, each loaded when it is called."""

from __future__ import annotations

import sys
import types

import click
import pytest

from edgetta.cli import main
from edgetta.cli.bench import BENCHES

Captured = pytest.CaptureFixture[str]


def test_every_bench_is_named_and_none_is_loaded(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setitem(BENCHES, "trial", ("no_such_module", "A bench for tests."))
    assert main(["bench", "--help"]) == 0
    out = capsys.readouterr().out
    for name, (_, text) in BENCHES.items():
        assert f"{name} " in out and text in " ".join(out.split())
    assert main(["bench", "trial"]) == 3
    assert "the bench 'trial' is not part of this installation" in capsys.readouterr().err


def test_a_bench_is_called_with_its_own_options(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    module = types.ModuleType("trial_bench")

    @click.command()
    @click.option("--batch", type=int)
    def command(batch: int) -> None:
        seen.append(batch)

    module.command = command  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "trial_bench", module)
    monkeypatch.setitem(BENCHES, "trial", ("trial_bench", "A bench for tests."))
    assert main(["bench", "trial", "--batch", "7"]) == 0 and seen == [7]


def test_names_that_are_no_bench(capsys: Captured) -> None:
    assert main(["bench", "latancy"]) == 2
    assert "no bench 'latancy'; did you mean 'latency'?" in capsys.readouterr().err
    assert main(["bench", "zzz"]) == 2
    line = capsys.readouterr().err
    assert "no bench 'zzz'; benches are " in line and "latency" in line
