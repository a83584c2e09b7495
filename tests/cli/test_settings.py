"""Settings from a TOML file: precedence, names, types, and messages that name the file and the nearest key."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from edgetta.cli import VERBS, main
from edgetta.cli.settings import config_option

Seen = list[dict[str, Any]]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Verbs `trial` and `measure latency`; what they were called with."""
    calls: Seen = []

    @click.command()
    @click.argument("bundle", type=click.Path(path_type=Path))
    @click.argument("source", required=False)
    @click.option("--batch", type=click.IntRange(1), default=16)
    @click.option("--learning-rate", type=float, default=None)
    @click.option("--engine", "engine_names", default="torch")
    @click.option("--gradient", type=click.Choice(["exact", "local"]), default="exact")
    @click.option("--resize/--no-resize", default=True)
    @click.option("--overwrite", is_flag=True)
    @click.option("--tag", multiple=True)
    @click.option("--size", nargs=2, type=int, default=(32, 32))
    @config_option
    def trial(**values: Any) -> None:
        calls.append(values)

    @click.group()
    def measure() -> None:
        pass

    @measure.command()
    @click.option("--batch", type=int, default=1)
    @click.option("--repetitions", type=int, default=5)
    @config_option
    def latency(**values: Any) -> None:
        calls.append(values)

    for name, command in (("trial", trial), ("measure", measure)):
        module = types.ModuleType(f"{name}_verb")
        module.command = command  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, f"{name}_verb", module)
        monkeypatch.setitem(VERBS, name, (f"{name}_verb", "A verb for tests."))
    return calls


@pytest.fixture
def config(tmp_path: Path) -> Callable[[str], str]:
    def write(text: str) -> str:
        (tmp_path / "settings.toml").write_text(text, encoding="utf-8")
        return str(tmp_path / "settings.toml")

    return write


def refused(capsys: pytest.CaptureFixture[str], path: str, *arguments: str) -> str:
    assert main([*(arguments or ("trial", "b")), "--config", path]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("edgetta: error: ")
    return line


def test_values_reach_the_verb(seen: Seen, config: Callable[[str], str]) -> None:
    path = config(
        """
        batch = 64
        bundle = "my bundle"
        source = "frames/*.png"
        learning-rate = 1e-3
        engine = ["torch", "onnxruntime"]
        gradient = "local"
        resize = false
        overwrite = true
        tag = ["x", "y"]
        size = [224, 320]
        """
    )
    assert main(["trial", "--config", path]) == 0
    assert seen == [
        {
            "bundle": Path("my bundle"),
            "source": "frames/*.png",
            "batch": 64,
            "learning_rate": 0.001,
            "engine_names": "torch,onnxruntime",
            "gradient": "local",
            "resize": False,
            "overwrite": True,
            "tag": ("x", "y"),
            "size": (224, 320),
        }
    ]


def test_the_command_line_wins_over_the_table_and_the_table_over_the_top(
    seen: Seen, config: Callable[[str], str]
) -> None:
    path = config("batch = 2\nlearning_rate = 0.5\ngradient = 'local'\n[trial]\nbatch = 3\nlearning_rate = 0.25")
    for arguments in (["--batch", "4", "--config", path], ["--config", path, "--batch", "4"]):
        assert main(["trial", "b", *arguments]) == 0
        call = seen.pop()
        assert (call["batch"], call["learning_rate"], call["gradient"]) == (4, 0.25, "local")
        assert (call["bundle"], call["engine_names"]) == (Path("b"), "torch")
    assert main(["trial", "c", "--config", path]) == 0
    assert (seen[-1]["bundle"], seen[-1]["batch"]) == (Path("c"), 3)


def test_without_a_file_nothing_changes(seen: Seen) -> None:
    assert main(["trial", "b"]) == 0
    assert "config" not in seen[0] and seen[0]["batch"] == 16 and seen[0]["source"] is None


def test_tables_of_other_verbs_are_left_alone(seen: Seen, config: Callable[[str], str]) -> None:
    path = config(
        "[doctor]\njson = true\n[measure]\nbatch = 7\n[measure.latency]\nrepetitions = 9\n[trial]\nbatch = 3"
    )
    assert main(["trial", "b", "--config", path]) == 0
    assert main(["measure", "latency", "--config", path]) == 0
    assert seen[0]["batch"] == 3
    assert seen[1] == {"batch": 7, "repetitions": 9}


def test_names_with_underscores_and_of_the_parameter(seen: Seen, config: Callable[[str], str]) -> None:
    for name in ("learning-rate", "learning_rate"):
        assert main(["trial", "b", "--config", config(f"{name} = 0.5")]) == 0
        assert seen.pop()["learning_rate"] == 0.5
    assert main(["trial", "b", "--config", config("engine_names = 'x'")]) == 0
    assert seen.pop()["engine_names"] == "x"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bacth = 2", "edgetta trial has no option 'bacth'; did you mean 'batch'?"),
        ("[trial]\nlearning_rat = 1", "no option 'trial.learning_rat'; did you mean 'learning-rate'?"),
        ("zzz = 2", "no option 'zzz'; there are bundle, source, batch, learning-rate, engine, gradient, resize"),
        ("[trail]\nbatch = 2", "no verb or table 'trail'; did you mean 'trial'?"),
        ("[trial.inner]\nbatch = 2", "no verb or table 'trial.inner'"),
        ("config = 'x'", "no option 'config'"),
        ("batch = 'many'", "'batch': 'many' is not a valid integer"),
        ("batch = 1.5", "'batch': '1.5' is not a valid integer"),
        ("batch = 0", "'batch': 0 is not in the range x>=1"),
        ("batch = true", "'batch' takes a value, not true"),
        ("[trial]\ngradient = 'exakt'", "'trial.gradient': 'exakt' is not one of 'exact', 'local'"),
        ("resize = 'yes'", "'resize' is on or off: write true or false, not 'yes'"),
        ("overwrite = 1", "'overwrite' is on or off"),
        ("no-resize = true", "no option 'no-resize'; did you mean 'resize'?"),
        ("tag = [[1]]", "'tag' takes a list of plain values"),
        ("size = [1, 2, 3]", "'size': Takes 2 values but 3 were given"),
        ("batch = 1\nbatch == 2", "is no TOML file: Invalid value (at line 2, column 8)"),
        ("batch = 1\nbatch = 2", "is no TOML file: Cannot overwrite a value"),
    ],
)
def test_mistakes(
    seen: Seen, config: Callable[[str], str], capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    line = refused(capsys, config(text))
    assert message in line and "settings.toml" in line
    assert seen == []


def test_files_that_are_none(
    seen: Seen, tmp_path: Path, config: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "No such file" in refused(capsys, str(tmp_path / "missing.toml"))
    assert "cannot read the settings" in refused(capsys, str(tmp_path))
    path = config("")
    Path(path).write_bytes(b"batch = '\xff'")
    assert "is no TOML file" in refused(capsys, path)
    Path(path).write_bytes(b"#" * (2**20 + 1))
    assert "larger than" in refused(capsys, path)
    assert seen == []


def test_a_missing_argument_is_still_missed(
    seen: Seen, config: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "Missing argument 'BUNDLE'" in refused(capsys, config("batch = 2"), "trial")
