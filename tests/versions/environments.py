"""The environments in which the core set runs: what devices have, and the ends of what edgetta declares."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Environment:
    """One set of versions on one kind of machine."""

    name: str
    stands_for: str
    python: str  # major.minor
    packages: tuple[str, ...]  # pinned, beside what they need
    machine: str = "x86_64"
    debian: str = ""  # emulated: the release whose Python it is


LOWEST = ("safetensors==0.4.0", "click==8.1.0", "rich==13.0.0", "pillow==9.3.0", "filelock==3.8.0")
MIDDLE = ("safetensors==0.4.5", "click==8.1.8", "rich==13.9.4", "pillow==10.4.0", "filelock==3.16.1")
HIGHEST = ("safetensors==0.8.0", "click==8.5.1", "rich==15.0.0", "pillow==13.0.0", "filelock==4.3.1")

ENVIRONMENTS = (
    Environment(
        "lowest",
        "the lowest declared, as JetPack 6 has them; without torch",
        "3.10",
        ("numpy==1.26.0", "onnxruntime==1.18.0", "tomli==2.0.1", *LOWEST),
    ),
    Environment(
        "lowest, exporting",
        "the lowest that exports, with the torch that can be had",
        "3.11",
        ("torch==2.13.0", "numpy==1.26.0", "onnxruntime==1.18.0", "onnx==1.16.0", *LOWEST),
    ),
    Environment(
        "middle",
        "JetPack 7's Python; without torch",
        "3.12",
        ("numpy==1.26.4", "onnxruntime==1.20.1", *MIDDLE),
    ),
    Environment(
        "highest, exporting",
        "the newest of everything beside the torch of development",
        "3.11",
        ("torch==2.13.0", "numpy==2.4.6", "onnxruntime==1.32.0", "onnx==1.23.2", *HIGHEST),
    ),
    Environment(
        "highest",
        "the newest of everything; without torch",
        "3.13",
        ("numpy==2.4.6", "onnxruntime==1.32.0", *HIGHEST),
    ),
    Environment(
        "Arm, lowest",
        "the lowest declared on Arm, torch among them: JetPack 6 but for its Python; Raspberry Pi OS 12's Python",
        "3.11",
        ("torch==2.3.0", "numpy==1.26.4", "onnxruntime==1.18.0", *LOWEST),
        "aarch64",
        "bookworm",
    ),
    Environment(
        "Arm, highest",
        "Raspberry Pi OS 13's Python, the newest torch and ONNX Runtime of JetPack 6, the newest of all else",
        "3.13",
        ("torch==2.8.0", "numpy==2.4.6", "onnxruntime==1.20.1", "onnx==1.23.2", *HIGHEST),
        "aarch64",
        "trixie",
    ),
)

NOT_HERE = {
    "torch below 2.13 on x86-64": "the index has it with CUDA alone, gigabytes of it; on Arm it is small, and is run",
    "Python 3.10 and 3.12 on Arm": "Debian has 3.11 and 3.13; JetPack's own comes with JetPack",
    "onnxruntime 1.32 on Arm": "its import ends the emulator (QEMU 7.2) with a segmentation fault",
    "TensorRT": "comes with JetPack, never from an index",
}
"""What could not be had where the file was written, and why."""
