"""Which extra of edgetta brings which package, and a look whether they are here, before minutes of work."""

from __future__ import annotations

from importlib.util import find_spec

from edgetta.errors import MissingDependencyError

# import name: the extra of edgetta that brings it. One name each: messages and documents use no other.
EXTRAS = {
    "cryptography": "sign",
    "cv2": "serve",
    "matplotlib": "offline",
    "onnx": "export",
    "onnxruntime": "onnxruntime",
    "pyautoattack": "attack",
    "scipy": "offline",
    "sklearn": "bench",
    "timm": "models",
    "torchvision": "models",
}


def installation(package: str) -> str:
    """What to install for a package, as pip takes it."""
    return f"'edgetta[{EXTRAS[package]}]'" if package in EXTRAS else package


def require(package: str, what: str) -> None:
    """Raises MissingDependencyError where `package` is not installed; `what` says who needs it."""
    if find_spec(package) is None:
        raise MissingDependencyError(
            f"{what} needs {package}, which is not installed: pip install {installation(package)}"
        )
