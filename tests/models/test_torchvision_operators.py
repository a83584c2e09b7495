"""torchvision imports, runs and exports beside a torch for which it was not compiled."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from edgetta.errors import MissingDependencyError
from edgetta.models.torchvision_operators import SCHEMAS, define_missing_operators, import_with_operators

# In an interpreter of its own: what an import leaves behind cannot be undone in this one.
FAILED_THEN_MENDED = """
import torch
try:
    import torchvision
    compiled = True
except RuntimeError as error:
    assert "operator torchvision::" in str(error), error
    compiled = False
from edgetta.models.torchvision_operators import define_missing_operators, import_with_operators
network = import_with_operators("torchvision").models.get_model("resnet18", num_classes=3).eval()
program = torch.export.export(network, (torch.rand(2, 3, 32, 32),))
assert program.module()(torch.rand(2, 3, 32, 32)).shape == (2, 3)
assert import_with_operators("timm").create_model("resnet18", num_classes=4).num_classes == 4
assert define_missing_operators() == ()
print("schema", torch.ops.torchvision.nms.default._schema)
"""


def test_an_import_that_failed_is_mended_and_its_models_export() -> None:
    for package in ("torchvision", "timm"):
        pytest.importorskip(package)
    command = [sys.executable, "-W", "ignore", "-c", FAILED_THEN_MENDED]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "schema torchvision::nms" + SCHEMAS["nms"]


def test_defining_before_the_first_import_works_too() -> None:
    """The tests' set-up has done so."""
    assert pytest.importorskip("torchvision").models.list_models()
    assert define_missing_operators() == ()


def test_an_absent_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"timm is not installed: pip install 'edgetta\[models\]'"):
        import_with_operators("timm")
    assert define_missing_operators() == ()


def test_another_failure_is_reported_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise RuntimeError("libcuda is from another century")

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(MissingDependencyError, match="another century"):
        import_with_operators("torchvision")
