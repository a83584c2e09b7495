"""Extras: each package has one, messages name no other, and what is missing is said before work begins."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edgetta import extras
from edgetta.cli.settings import read_toml
from edgetta.errors import MissingDependencyError
from edgetta.extras import EXTRAS, installation, require

ROOT = Path(__file__).parent.parent
DISTRIBUTIONS = {"cv2": "opencv-python-headless", "sklearn": "scikit-learn", "torchvision": "timm"}


def test_extras_bring_what_they_are_named_for() -> None:
    known = read_toml(ROOT / "pyproject.toml")["project"]["optional-dependencies"]
    for package, extra in EXTRAS.items():
        wanted = DISTRIBUTIONS.get(package, package)
        assert any(re.match(rf"{wanted}\b", requirement) for requirement in known[extra]), package


def test_messages_and_documents_name_one_extra_for_a_package() -> None:
    known = read_toml(ROOT / "pyproject.toml")["project"]["optional-dependencies"]
    files = [path for folder in ("edgetta", "bench", "export", "devices") for path in (ROOT / folder).rglob("*.py")]
    for path in [*files, *ROOT.glob("*.md"), *ROOT.glob("devices/*.md")]:
        text = path.read_text(encoding="utf-8")
        for line in (line for line in text.splitlines() if "edgetta[" in line):
            named = {one for group in re.findall(r"edgetta\[([a-z,-]+)\]", line) for one in group.split(",")}
            assert named <= set(known), f"{path}: {line}"
            for package, extra in EXTRAS.items():
                if len(named) == 1 and re.search(rf"\b{package}\b", line) and package != "onnxruntime":
                    assert named == {extra}, f"{path}: {line}"


def test_what_is_missing_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    require("click", "everything")
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError) as error:
        require("scipy", "this")
    assert str(error.value) == "this needs scipy, which is not installed: pip install 'edgetta[offline]'"
    assert installation("unheard") == "unheard"
