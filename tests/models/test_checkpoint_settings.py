"""What checkpoints of training scripts say of their input, and that it is followed."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from edgetta.models import load_model
from edgetta.models.checkpoint_settings import CheckpointSettings, read_settings
from edgetta.models.normalise import HALF, normalisation_of
from edgetta.sources.resize import Resize


@pytest.mark.parametrize(
    ("checkpoint", "expected"),
    [
        ({}, CheckpointSettings()),
        (
            {"args": Namespace(val_crop_size=64, val_resize_size=73, interpolation="bilinear", train_crop_size=48)},
            CheckpointSettings((64, 64), 73, "bilinear"),
        ),
        (
            {"args": Namespace(img_size=None, input_size=[3, 96, 128], crop_pct=0.9, interpolation="bicubic")},
            CheckpointSettings((96, 128), 106, "bicubic"),
        ),
        (
            {"hparams": {"image_size": (48, 48), "mean": [0.5, 0.5, 0.5], "std": (0.5, 0.5, 0.5)}},
            CheckpointSettings((48, 48), constants=HALF),
        ),
        (
            {"config": {"img_size": "large", "crop_pct": "most", "interpolation": "random", "mean": 3, "std": [1.0]}},
            None,
        ),
        ({"config": {"img_size": True}, "args": ["--img-size", "64"]}, None),
        ({"args": Namespace(img_size=2, val_resize_size=100)}, None),
        ({"args": Namespace(img_size=64, val_resize_size=32)}, CheckpointSettings((64, 64))),
    ],
)
def test_what_is_said(checkpoint: dict[str, Any], expected: CheckpointSettings | None) -> None:
    assert read_settings(checkpoint) == (expected or CheckpointSettings())


def test_a_checkpoint_settles_size_resizing_and_normalisation_unless_the_user_does(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    said = Namespace(val_crop_size=40, val_resize_size=48, interpolation="bicubic", mean=[0.5] * 3, std=[0.5] * 3)
    torch.save({"model": load_model("resnet20", width=0.25).module.state_dict(), "args": said, "epoch": 3}, path)
    model = load_model("resnet20", weights=path, width=0.25)
    assert model.input_shape == (3, 40, 40) and model.size_origin == "of the checkpoint's arguments"
    assert model.resize == Resize((40, 40), "crop", 48, "bicubic")
    assert normalisation_of(model.module) == HALF
    given = load_model(
        "resnet20",
        weights=path,
        width=0.25,
        input_shape=(3, 32, 32),
        resize="pad",
        interpolation="nearest",
        fill=(1, 2, 3),
    )
    assert given.input_shape == (3, 32, 32) and given.size_origin == "given"
    assert given.resize == Resize((32, 32), "pad", None, "nearest", (1, 2, 3))
