"""Core-set environments on Arm: Debian's Python for arm64 under QEMU's user emulation, with Arm wheels of the index.

Nothing of the machine changes: Debian's packages are fetched with settings of their own and unpacked into a folder.
The emulator runs one program; tests that start another cannot be emulated, and the core set has none.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.versions.environments import Environment

EMULATOR = "qemu-aarch64-static"
SOURCES = Path("/etc/apt/sources.list.d/debian.sources")
KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
DEBIAN = ("python3", "libgomp1", "libstdc++6", "zlib1g")
GLIBC = 36  # of Debian 12, the older of the two
NEEDED = (
    *("pytest", "pluggy", "iniconfig", "packaging", "pygments", "markdown-it-py", "mdurl"),
    *("flatbuffers", "protobuf<6", "coloredlogs", "humanfriendly", "sympy", "mpmath", "ml_dtypes"),
    *("networkx", "jinja2", "markupsafe", "fsspec", "typing_extensions", "setuptools<80"),
)
"""What the packages need. Named, because pip would judge conditions on the machine by the one that it runs on."""


def prepare(environment: Environment, wheel: Path, folder: Path) -> list[str]:
    """Unpack Debian's Python and the Arm wheels into `folder`; the command that is its Python.

    Raises RuntimeError where there is no emulator, no Debian mirror, or a version cannot be installed.
    """
    emulator = shutil.which(EMULATOR)
    if emulator is None:
        raise RuntimeError("there is no emulator here: install qemu-user-static")
    root, site = folder / "root", folder / "site"
    python = root / "usr" / "bin" / f"python{environment.python}"
    if not python.exists():
        _debian(environment.debian, folder, root)
    platforms = [f"manylinux_2_{minor}_aarch64" for minor in range(17, GLIBC + 1)] + ["manylinux2014_aarch64"]
    install = ["pip", "install", "--quiet", "--disable-pip-version-check", "--upgrade", "--target", str(site)]
    install += ["--no-deps", "--only-binary", ":all:", "--python-version", environment.python]
    install += [word for platform in platforms for word in ("--platform", platform)]
    for packages in ((*environment.packages, *NEEDED), (str(wheel),)):
        done = subprocess.run(["python3", "-m", *install, *packages], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"cannot be installed: {done.stderr.strip().splitlines()[-1]}")
    return ["env", f"PYTHONPATH={site}", emulator, "-L", str(root), str(python)]


def _debian(release: str, folder: Path, root: Path) -> None:
    """Fetch Debian's Python of that release, and what it needs, for arm64."""
    if not SOURCES.is_file() or shutil.which("apt-get") is None:
        raise RuntimeError("Debian's packages are fetched with apt-get, which is not here")
    mirror = next(line.split()[1] for line in SOURCES.read_text().splitlines() if line.startswith("URIs:"))
    for name in ("state/lists/partial", "cache/archives/partial", "root"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "status").touch()
    (folder / "sources.list").write_text(f"deb [arch=arm64 signed-by={KEYS}] {mirror} {release} main\n")
    settings = {
        **{"APT::Architecture": "arm64", "APT::Architectures::": "arm64", "APT::Install-Recommends": "0"},
        **{"APT::Sandbox::User": "root", "Debug::NoLocking": "1", "Dir::Etc::sourceparts": "/nonexistent"},
        **{"Dir::Etc::sourcelist": folder / "sources.list", "Dir::State": folder / "state"},
        **{"Dir::State::status": folder / "status", "Dir::Cache": folder / "cache"},
    }
    apt = ["apt-get", "-qq", *(word for name, value in settings.items() for word in ("-o", f"{name}={value}"))]
    for command in (["update"], ["install", "-y", "--download-only", *DEBIAN]):
        done = subprocess.run([*apt, *command], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"Debian's packages cannot be fetched: {done.stderr.strip().splitlines()[-1]}")
    for package in sorted((folder / "cache" / "archives").glob("*.deb")):
        subprocess.run(["dpkg", "-x", str(package), str(root)], check=True)
    for name in ("bin", "lib", "sbin"):  # where a release has them as links, no package holds the link
        if not (root / name).exists():
            (root / name).symlink_to(f"usr/{name}")
