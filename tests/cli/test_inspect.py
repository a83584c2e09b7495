"""`edgetta inspect` as a user sees it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from edgetta.cli import main
from edgetta.rate_law import RateLaw
from tests.adaptation.backbones import small_programs
from tests.small_bundle import copy_of_it, names, whole_bundle, write_small, zipped


def rows(text: str) -> dict[str, str]:
    """First word of each line -> the line, single-spaced."""
    lines = [" ".join(line.split()) for line in text.splitlines()]
    return {line.split()[0]: line for line in reversed(lines) if line}


def test_what_is_in_a_bundle(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(whole_bundle())]) == 0
    found = rows(capsys.readouterr().out)
    assert found["model"] == "model small"
    assert found["input"] == "input 3 x 16 x 16, RGB in [0, 1]"
    assert found["resize"] == "resize stretch to 16 x 16, bilinear, whatever the shape"
    assert found["normalisation"] == "normalisation in the model", "what a bundle does not say is not made up"
    assert found["classes"] == "classes 5: zero, one, two, three, four"
    assert "learning_rate 0.003" in found["adaptation"] and "when every 2" in found["adaptation"]
    assert found["provenance"] == "provenance weights: seeded"
    assert "not measured" in found["rate"]
    assert "13 layers; those of the backbone follow the stream" in found["BatchNorm"]
    assert "3 meta-networks, and 12 weights and biases inside the backbone" in found["adapting"]
    assert found["content"] == "content what it explains was measured on 400 source images"
    assert found["kept"].endswith("per image between forward and backward")
    assert {"predict", "measure", "forward", "backward", "recompute"} <= set(found)
    assert set(names(whole_bundle())) - {"manifest.json"} <= set(found)
    count = str(len(names(whole_bundle())) - 1)  # the manifest is not in its own list
    assert found[count].startswith(f"{count} files, ") and "size and SHA-256" in found[count]


def test_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = zipped(whole_bundle(), tmp_path / "small.zip", more={"notes": b"mine"})
    assert main(["inspect", str(path), "--json", "--test"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["path"] == str(path) and len(data["identity"]) == 64 and data["unlisted"] == ["notes"]
    assert data["bytes"] == sum(entry["bytes"] for entry in data["manifest"]["files"].values())
    assert data["manifest"]["classes"]["names"][0] == "zero"
    assert set(data["self_test"]) == {"torch", "onnxruntime"}
    assert data["self_test"]["onnxruntime"]["gradient_error"] < 1e-3


def test_self_test_rate_law_and_more(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    law = RateLaw("sgd", "measured", (1, 64), (1e-3, 8e-3), (5e-4, 6e-3), (2e-3, 1e-2))
    path = write_small(
        tmp_path / "small", small_programs(form="source"), rate_law=law, classes=None, provenance={}, content=None
    )
    (path / "[notes].txt").write_text("mine")
    assert main(["inspect", str(path), "--test"]) == 0
    out = capsys.readouterr().out
    found = rows(out)
    assert found["rate"] == "rate law sgd, measured"
    assert "0.001 (0.0005 to 0.002) at batch 1, noise-limited" in out and "0.008 (0.006 to 0.01) at batch 64" in out
    assert found["learning"].startswith("learning rate 0.003 at 64 images (as given; its rate law is not used)")
    assert found["classes"] == "classes 5, without names" and found["provenance"] == "provenance not given"
    assert "not measured: statistics stay near the source" in found["content"]
    assert "not part of the bundle, and not read: [notes].txt" in out, "brackets are no markup"
    assert "self-test on torch: passed" in out and "self-test on onnxruntime: passed" in out


def test_damage_is_one_line_and_exit_code_4(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = copy_of_it(tmp_path / "copy")
    raw = bytearray((folder / "content.safetensors").read_bytes())
    raw[-1] ^= 1
    (folder / "content.safetensors").write_bytes(bytes(raw))
    assert main(["inspect", str(folder)]) == 4
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith("edgetta: error: content.safetensors in bundle") and "copy the bundle again" in line
    assert printed.out == ""
    assert main(["inspect", str(tmp_path / "missing")]) == 4
    assert "does not exist" in capsys.readouterr().err


def test_nothing_is_said_about_batch_norm_where_there_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = "import torch\nfrom tests.export.small_networks import transformer\n\n"
    (tmp_path / "vit.py").write_text(source + "def build():\n    torch.manual_seed(0)\n    return transformer()\n")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3)).astype(np.uint8))
    out = str(tmp_path / "bundle")
    arguments = (f"{tmp_path / 'vit.py'}:build", "-o", out, "--input-size", "16", "--parts", "2", "--no-measure")
    assert main(["export", *arguments]) == 0
    assert main(["inspect", out]) == 0
    assert main(["run", out, str(tmp_path / "x.npy"), "--engine", "torch"]) == 0
    told = capsys.readouterr().out
    assert "batchnorm" not in told.lower().replace("batch norm", "batchnorm")
    counted = re.search(r"^classes +(class \d+: \d)", told, re.MULTILINE)
    assert counted is not None, "a class without a name is told to be one"
