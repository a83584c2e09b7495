"""Nothing that comes from elsewhere steers a terminal."""

from __future__ import annotations

import json

import pytest

from edgetta.cli import main
from edgetta.cli.tables import print_facts, print_line, print_table
from edgetta.printable import printable
from tests.small_bundle import copy_of_it, edit_manifest

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202ecod.exe\r"


def test_escapes_are_shown() -> None:
    assert printable("größe 猫") == "größe 猫"
    assert printable(EVIL) == "\\x1b]0;owned\\x07\\x1b[2J\\x9b31m\\u202ecod.exe\\r"
    assert printable("\udcff") == "\\udcff"
    assert printable("São\u00a0Paulo\n") == "São\u00a0Paulo\\n"


def test_whatever_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    print_facts([(EVIL, f"a\n{EVIL}")])
    print_table((EVIL, "b"), [(EVIL, f"x\n{EVIL}")])
    print_line(EVIL, stderr=True)
    printed = capsys.readouterr()
    for text in (printed.out, printed.err):
        assert "owned" in text and all(line.isprintable() for line in text.splitlines())


def test_names_in_a_bundle(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    bundle = copy_of_it(tmp_path / "bundle")

    def rename(manifest: dict) -> None:  # type: ignore[type-arg]
        manifest.update(name=EVIL, provenance={EVIL: EVIL})
        manifest["classes"]["names"] = [f"{EVIL}{k}" for k in range(5)]

    edit_manifest(bundle, rename)
    assert main(["inspect", str(bundle)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("owned") >= 4 and all(line.isprintable() for line in printed.splitlines())
    assert main(["inspect", str(bundle), "--json"]) == 0
    printed = capsys.readouterr().out
    assert all(line.isprintable() for line in printed.splitlines())
    assert json.loads(printed)["manifest"]["name"] == EVIL
    assert main(["inspect", str(tmp_path / EVIL)]) == 4
    assert capsys.readouterr().err.rstrip("\n").isprintable()
