"""A tiny network as a Python file, as users name theirs: path/net.py:build; and images that it can learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CUTS = "stem,block1,block2"
COLOURS = ((200, 40, 40), (40, 200, 40), (40, 40, 200))
CLASSES = ("red", "green", "blue")

SOURCE = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.relu(self.norm(self.conv(x)))

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.stem, self.block1, self.block2 = Block(3, 6, 1), Block(6, 6, 1), Block(6, 8, 2)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x):
        return self.fc(self.block2(self.block1(self.stem(x))).mean((2, 3)))

def build(num_classes=3):
    torch.manual_seed(0)  # in place of trained weights: the same at each call
    return Net(num_classes)

def untrained(num_classes=3):
    return Net(num_classes)
"""


def write_model(folder: Path) -> str:
    """Write the file and return the MODEL that names it."""
    (folder / "net.py").write_text(SOURCE)
    return f"{folder / 'net.py'}:build"


def pictures(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(count, 8, 8, 3) noisy pictures of three colours, and which colour."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % len(COLOURS)
    noise = rng.normal(0, 40, (count, 8, 8, 3))
    return (np.array(COLOURS)[labels][:, None, None] + noise).clip(0, 255).astype(np.uint8), labels


def write_folder(folder: Path, count: int) -> Path:
    """The same as a folder with one sub-folder per class."""
    for number, (image, label) in enumerate(zip(*pictures(count), strict=True)):
        place = folder / CLASSES[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{number:03}.png")
    return folder
