"""The lines of Python that README shows run as they stand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

README = Path(__file__).parent.parent / "README.md"


def test_from_a_model_to_predictions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    layers = (
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
    )
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)).eval()
    names: dict[str, Any] = {"model": model, "images": torch.rand(32, 3, 8, 8)}
    monkeypatch.chdir(tmp_path)
    exec(code, names)
    assert names["logits"].shape == names["baseline"].shape == (32, 3)
    assert (tmp_path / "state.safetensors").is_file()
