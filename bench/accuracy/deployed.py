"""edgetta as its users get it, as a `Method`: a bundle that `edgetta export` wrote, on the default engine."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

import edgetta


class Deployed:
    """A loaded bundle with its own settings.

    when     "off": predicts without learning; None: as the bundle says
    """

    def __init__(self, bundle: Path, when: str | None = None) -> None:
        threads = torch.get_num_threads()
        self.runtime = edgetta.load(bundle, threads=threads, check=False)
        if when is not None:
            config = replace(self.runtime.config, when=when)
            self.runtime = edgetta.load(bundle, config=config, threads=threads, check=False)

    def __call__(self, images: Tensor) -> Tensor:
        return self.runtime(images)

    def reset(self) -> None:
        """Back to what was shipped."""
        self.runtime.reset()

    def kept(self) -> Callable[[], Deployed]:
        """A function that brings this method back into the state that it is in now."""
        folder = tempfile.TemporaryDirectory(prefix="edgetta-state-")
        path = Path(folder.name) / "state"
        self.runtime.save_state(path)

        def back() -> Deployed:
            assert folder  # lives as long as this function
            self.runtime.load_state(path)
            return self

        return back


def export(model: str, weights: Path, calibration: str, bundle: Path, input_size: str | None = None) -> Path:
    """Write a bundle with the default settings of `edgetta export`, and return its path."""
    from edgetta.cli.export import command

    arguments = [model, "--weights", str(weights), "--calibration", calibration, "-o", str(bundle)]
    arguments += ["--no-measure", "--quiet", *(() if input_size is None else ("--input-size", input_size))]
    command.main(arguments, standalone_mode=False)
    return bundle
