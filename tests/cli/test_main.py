"""The command line as a whole: what it imports, how it fails, and with which exit code."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import click
import pytest

import edgetta
from edgetta import cli
from edgetta.cli import VERBS, Invocation, main
from edgetta.errors import BundleError, EdgettaError, MissingDependencyError, UsageError
from tests.small_bundle import whole_bundle

HEAVY = ("torch", "numpy", "onnx", "onnxruntime", "rich", "PIL", "scipy", "matplotlib", "edgetta.sources")


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Make `edgetta trial` run a function."""

    def install(function: Callable[[], object]) -> None:
        module = types.ModuleType("trial_verb")
        module.command = click.command(function)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "trial_verb", module)
        monkeypatch.setitem(VERBS, "trial", ("trial_verb", "A verb for tests."))

    monkeypatch.delenv("EDGETTA_DEBUG", raising=False)
    return install


def edgetta_process(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        [sys.executable, "-m", "edgetta", *arguments], capture_output=True, text=True, check=False, **options
    )


def test_help_imports_no_verb_and_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "from edgetta.cli import main\n"
        "assert main(['--help']) == 0\n"
        "print('IMPORTED', *sorted(sys.modules), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    imported = set(done.stderr.split("IMPORTED", 1)[1].split())
    assert "edgetta.cli" in imported
    assert not imported & set(HEAVY)
    assert not {name for name in imported if name.startswith("edgetta.cli.")}
    for name in VERBS:
        assert f"\n  {name} " in done.stdout
    assert all(len(line) < 80 for line in done.stdout.splitlines())


def test_doctors_help_does_not_import_torch() -> None:
    program = "import sys\nfrom edgetta.cli import main\nmain(['doctor', '--help'])\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"edgetta {edgetta.__version__}\n"


def test_module_and_exit_code_of_the_process() -> None:
    done = edgetta_process("--version")
    assert (done.returncode, done.stdout) == (0, f"edgetta {edgetta.__version__}\n")
    done = edgetta_process("dcotor")
    assert done.returncode == 2
    assert done.stderr == "edgetta: error: no verb 'dcotor'; did you mean 'doctor'? (see `edgetta --help`)\n"


def test_no_verb_shows_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "Usage: edgetta [OPTIONS] VERB [ARGUMENTS]..." in capsys.readouterr().out


def test_unknown_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong, meant in (("demoo", "demo"), ("learning_rate", "learning-rate"), ("exprot", "export")):
        assert main([wrong]) == 2
        assert f"no verb '{wrong}'; did you mean '{meant}'?" in capsys.readouterr().err
    assert main(["zzz"]) == 2
    assert "verbs are demo, prepare, export" in capsys.readouterr().err


def test_wrong_options_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, path in ((["--colour"], "edgetta"), (["doctor", "--jsn"], "edgetta doctor")):
        assert main(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("edgetta: error: No such option") and line.endswith(f"(see `{path} --help`)")


@pytest.mark.parametrize(
    ("kind", "code"), [(EdgettaError, 1), (UsageError, 2), (MissingDependencyError, 3), (BundleError, 4)]
)
def test_errors_are_one_line_with_their_exit_code(
    verb: Callable[[Callable[[], object]], None],
    capsys: pytest.CaptureFixture[str],
    kind: type[EdgettaError],
    code: int,
) -> None:
    def fail() -> None:
        raise kind("the bundle x/ is damaged:\n  segments/00 differs; copy it again")

    verb(fail)
    assert main(["trial"]) == code
    printed = capsys.readouterr()
    assert printed.err == "edgetta: error: the bundle x/ is damaged: segments/00 differs; copy it again\n"
    assert printed.out == ""


def test_debug_shows_the_traceback(
    verb: Callable[[Callable[[], object]], None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail() -> None:
        raise EdgettaError("damaged")

    verb(fail)
    assert main(["--debug", "trial"]) == 1
    printed = capsys.readouterr().err
    assert "Traceback" in printed and printed.endswith("edgetta: error: damaged\n")
    for value, shown in (("1", True), ("0", False), ("", False)):
        monkeypatch.setenv("EDGETTA_DEBUG", value)
        assert main(["trial"]) == 1
        assert ("Traceback" in capsys.readouterr().err) is shown


def test_verbs_know_whether_to_debug(verb: Callable[[Callable[[], object]], None]) -> None:
    seen: list[bool] = []

    def look() -> None:
        invocation = click.get_current_context().find_object(Invocation)
        assert invocation is not None
        seen.append(invocation.debug)

    verb(look)
    assert main(["trial"]) == 0 and main(["--debug", "trial"]) == 0
    assert seen == [False, True]


def test_what_a_verb_returns_is_no_exit_code(verb: Callable[[Callable[[], object]], None]) -> None:
    verb(lambda: 7)
    assert main(["trial"]) == 0
    verb(lambda: click.get_current_context().exit(7))
    assert main(["trial"]) == 7


def test_interruption(verb: Callable[[Callable[[], object]], None], capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    verb(interrupted)
    assert main(["trial"]) == 130
    assert capsys.readouterr().err.strip() == "edgetta: interrupted"


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_real_interruption_cleans_up_and_ends_with_130() -> None:
    program = (
        "import os, signal, sys, types, click\n"
        "from edgetta.cli import VERBS, main\n"
        "def wait():\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        while True: signal.pause()\n"
        "    finally:\n"
        "        print('state saved')\n"
        "sys.modules['trial_verb'] = types.SimpleNamespace(command=click.command(wait))\n"
        "VERBS['trial'] = ('trial_verb', '')\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "sys.exit(main(['trial']))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 130
    assert done.stdout == "state saved\n" and done.stderr.strip() == "edgetta: interrupted"


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX pipes")
def test_reader_that_goes_away() -> None:
    program = (
        "import sys, types, click\n"
        "from edgetta.cli import VERBS, main\n"
        "def talk():\n"
        "    for i in range(100000): print('row', i)\n"
        "sys.modules['trial_verb'] = types.SimpleNamespace(command=click.command(talk))\n"
        "VERBS['trial'] = ('trial_verb', '')\n"
        "sys.exit(main(['trial']))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == b"row 0\n"
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=60) == 0, "who has what they wanted closes the pipe"


def test_mistakes_of_our_own_show_where(
    verb: Callable[[Callable[[], object]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> None:
        raise KeyError("weights")

    verb(broken)
    assert main(["trial"]) == 70
    printed = capsys.readouterr().err
    assert printed.count("Traceback") == 1 and "in broken" in printed
    assert "edgetta: error: KeyError: 'weights'. This is a mistake in edgetta: please report it" in printed


def test_packages_that_a_verb_needs(
    verb: Callable[[Callable[[], object]], None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)

    def needs_onnx() -> None:
        importlib.import_module("onnx")

    def needs_something_else() -> None:
        raise ModuleNotFoundError("No module named 'abc_def'", name="abc_def.ghi")

    def needs_ourselves() -> None:
        raise ModuleNotFoundError("No module named 'edgetta.lost'", name="edgetta.lost")

    verb(needs_onnx)
    assert main(["trial"]) == 3
    error = capsys.readouterr().err
    assert error == "edgetta: error: this needs onnx, which is not installed: pip install 'edgetta[export]'\n"
    verb(needs_something_else)
    assert main(["trial"]) == 3
    assert "needs abc_def, which is not installed: pip install abc_def\n" in capsys.readouterr().err
    verb(needs_ourselves)
    assert main(["trial"]) == 70, "a module of edgetta that is missing is a mistake of ours"


def test_a_verb_module_that_is_missing_or_does_not_import(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(VERBS, "lost", ("edgetta.cli.lost", "Not there."))
    assert main(["lost"]) == 3
    assert "the verb 'lost' is not part of this installation (edgetta.cli.lost is missing)" in capsys.readouterr().err
    (tmp_path / "needs_timm_verb.py").write_text("import timm_of_another_name\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(VERBS, "timm", ("needs_timm_verb", "Needs a package."))
    assert main(["timm"]) == 3
    assert "needs timm_of_another_name, which is not installed" in capsys.readouterr().err


def test_out_of_memory(verb: Callable[[Callable[[], object]], None], capsys: pytest.CaptureFixture[str]) -> None:
    def greedy() -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory")

    verb(greedy)
    assert main(["trial"]) == 1
    assert capsys.readouterr().err.startswith("edgetta: error: out of memory; use a smaller batch")


def test_every_verb_that_is_here_is_a_command_with_help(capsys: pytest.CaptureFixture[str]) -> None:
    for name, (module, summary) in VERBS.items():
        assert summary.endswith(".") and len(summary) <= 60
        if importlib.util.find_spec(module) is None:
            continue
        assert isinstance(cli.load_verb(name), click.Command)
        assert main([name, "--help"]) == 0
        assert f"Usage: edgetta {name}" in capsys.readouterr().out


def test_shell_completion_needs_no_verb() -> None:
    environment = {**os.environ, "_EDGETTA_COMPLETE": "bash_complete", "COMP_WORDS": "edgetta do", "COMP_CWORD": "1"}
    done = edgetta_process(env=environment)
    assert done.stdout.split() == ["plain,doctor"]


def test_help_is_quick_and_teaches() -> None:
    program = (
        "import sys\n"
        "from edgetta.cli import main\n"
        "for verb in (['run'], ['export'], ['prepare'], ['bench']):\n"
        "    assert main([*verb, '--help']) == 0\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for example in (
        "edgetta run bundle/ camera:0 --state learnt.safetensors",
        "edgetta export prepared/ -o bundle/",
        "edgetta prepare wrn40_2 --weights wrn.pt --data cifar10-jpeg -o prepared/",
        "edgetta bench latency --model wrn40_2",
    ):
        assert example in done.stdout


def test_a_reader_that_has_gone_is_no_failure() -> None:
    for arguments in (["doctor"], ["inspect", str(whole_bundle())]):
        process = subprocess.Popen(
            [sys.executable, "-m", "edgetta", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait(timeout=120) == 0


@pytest.mark.parametrize(("said", "wanted"), [(None, "1000"), ("7", "7")])
def test_threads_that_wait_spin_little_unless_told_otherwise(said: str | None, wanted: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    environment |= {} if said is None else {"GOMP_SPINCOUNT": said}
    script = "import os, edgetta.cli; print(os.environ['GOMP_SPINCOUNT'])"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert found.stdout.strip() == wanted
