"""The package as others install it: wheel and editable, importable, light, typed."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
FOLDERS = ("edgetta.export", "edgetta.bench", "edgetta.devices")


def python(code: str, *options: str, site: Path | None = None) -> str:
    prefix = f"import sys; sys.path.insert(0, {str(site)!r}); " if site else ""
    done = subprocess.run([sys.executable, *options, "-c", prefix + code], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheel, unpacked as pip would."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("edgetta-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_wheel_holds_every_listed_package_and_every_module(site: Path) -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    for package in listed:
        assert (site / package.replace(".", "/") / "__init__.py").is_file(), package
    sources = {p.relative_to(ROOT) for folder in ("export", "bench", "devices") for p in (ROOT / folder).rglob("*.py")}
    sources |= {p.relative_to(ROOT / "edgetta") for p in (ROOT / "edgetta").rglob("*.py")}
    missing = [str(p) for p in sources if not (site / "edgetta" / p).is_file()]
    assert not missing, f"packages missing in pyproject.toml: {missing}"
    assert (site / "edgetta" / "py.typed").is_file()


def test_wheel_is_pure_python(site: Path) -> None:
    """One wheel serves x86-64 and Arm: no machine code, no platform in its tag, none in its dependencies."""
    (information,) = site.glob("edgetta-*.dist-info")
    lines = (information / "WHEEL").read_text().splitlines()
    assert "Tag: py3-none-any" in lines and "Root-Is-Purelib: true" in lines
    assert not [p for p in site.rglob("*") if p.suffix in (".so", ".pyd", ".dylib", ".c", ".pyx")]
    metadata = (information / "METADATA").read_text()
    assert "platform_machine" not in metadata and "sys_platform" not in metadata


def test_wheel_holds_what_devices_need(site: Path) -> None:
    folder = site / "edgetta" / "devices"
    profiles = {p.name for p in (ROOT / "devices" / "profiles").glob("*.toml")}
    assert {p.name for p in (folder / "profiles").iterdir()} == profiles
    assert {p.name for p in folder.glob("*.toml")} == {"jetpacks.toml", "sources.toml", "traps.toml"}
    assert (folder / "edgetta.service").is_file()
    assert "orin-nano-8gb" in python(
        "from edgetta.devices.profile import profiles; print(list(profiles()))", site=site
    )


@pytest.mark.parametrize("name", FOLDERS)
def test_importable_from_the_wheel(site: Path, name: str) -> None:
    file = python(f"import {name}; print({name}.__file__)", "-W", "ignore", site=site)
    assert Path(file).is_relative_to(site)


@pytest.mark.parametrize("name", FOLDERS)
def test_importable_from_the_editable_install(name: str) -> None:
    assert Path(python(f"import {name}; print({name}.__file__)")).resolve().is_relative_to(ROOT.resolve())


def test_import_is_light() -> None:
    heavy = "('torch', 'onnx', 'onnxruntime', 'timm', 'sklearn', 'matplotlib', 'scipy', 'numpy')"
    assert python(f"import edgetta, sys; print([m for m in {heavy} if m in sys.modules])") == "[]"


def test_runtime_needs_no_exporter() -> None:
    heavy = "('onnx', 'onnxscript', 'timm', 'sklearn', 'matplotlib', 'scipy', 'edgetta.export', 'edgetta.bench')"
    code = (
        f"import edgetta; edgetta.Runtime, edgetta.load; import sys; print([m for m in {heavy} if m in sys.modules])"
    )
    assert python(code) == "[]"


def test_help_imports_no_torch() -> None:
    code = (
        "import sys\nfrom edgetta.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('torch', 'numpy') if m in sys.modules])"
    )
    assert python(code).splitlines()[-1] == "[]"


def test_type_checker_resolves_the_folders(site: Path, tmp_path: Path) -> None:
    """A user's file is checked against the installed package: types are found, and a wrong one is reported."""
    user = tmp_path / "user.py"
    user.write_text(
        "import edgetta\nfrom edgetta.export.onnx_writer import OPSET\n"
        "from edgetta.sources.datasets import data_folder\n"
        "from edgetta.devices.report import Report\nnumber: int = OPSET\nwrong: str = OPSET\n"
        "names = (edgetta.load, data_folder, Report)\n"
    )
    command = [sys.executable, "-m", "mypy", "--no-incremental", "--ignore-missing-imports"]
    command += ["--no-site-packages", "--follow-imports=silent"]  # torch itself need not be checked
    done = subprocess.run(
        [*command, str(user)], capture_output=True, text=True, cwd=tmp_path, env={"MYPYPATH": str(site), "PATH": ""}
    )
    assert "user.py:6" in done.stdout and "Found 1 error" in done.stdout, done.stdout + done.stderr
