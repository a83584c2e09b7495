"""Folded MobileNet weights become a network with BatchNorm that computes the same."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from edgetta.errors import EdgettaError
from edgetta.models import load_model
from edgetta.models.mobilenet import V1

NAME, WIDTH = "mobilenet_v1_1.0_224", 0.25


def _folded() -> tuple[dict[str, np.ndarray], list[str]]:
    """A folded MobileNet V1 of a quarter of the width, as the published files hold one."""
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    lines: list[str] = []
    channels = 3

    def operation(kind: str, outputs: int, kernel: int, stride: int, act: str) -> None:
        nonlocal channels
        index, inputs = len(lines), 1 if kind == "dw" else channels
        scale = 1.5 / math.sqrt(inputs * kernel * kernel)
        arrays[f"w{index:02d}"] = rng.normal(0, scale, (outputs, inputs, kernel, kernel)).astype(np.float32)
        arrays[f"b{index:02d}"] = rng.normal(0, 0.3, outputs).astype(np.float32)
        if act != "none":
            arrays[f"src_mean{index:02d}"] = rng.normal(0, 1, outputs).astype(np.float32)
            arrays[f"src_var{index:02d}"] = rng.uniform(0.1, 2, outputs).astype(np.float32)
        lines.append(f"{index} {kind} in={index} out={index + 1} stride={stride} act={act}")
        channels = outputs

    operation("conv", 8, 3, 2, "relu6")
    for plane, stride in V1:
        operation("dw", channels, 3, stride, "relu6")
        operation("conv", max(8, plane // 4), 1, 1, "relu6")
    lines.append(f"{len(lines)} AVERAGE_POOL_2D in=27 out=28")
    operation("conv", 11, 1, 1, "none")
    return arrays, lines


def _write(path: Path, arrays: dict[str, np.ndarray], lines: list[str]) -> Path:
    np.savez(path, **arrays, graph=np.array(lines))  # type: ignore[arg-type]
    return path


def _same(x: Tensor, weight: Tensor, bias: Tensor, stride: int, groups: int) -> Tensor:
    total = max((math.ceil(x.shape[2] / stride) - 1) * stride + weight.shape[2] - x.shape[2], 0)
    pads = (total // 2, total - total // 2) * 2
    return F.conv2d(F.pad(x, pads), weight, bias, stride, groups=groups)


def test_the_unfolded_network_computes_the_folded_graph(tmp_path: Path) -> None:
    arrays, lines = _folded()
    model = load_model(NAME, weights=_write(tmp_path / "m.npz", arrays, lines), width=WIDTH, num_classes=11)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    x = (images * 255 - 128) / 128
    for line in lines:
        index = int(line.split()[0])
        if "POOL" in line:
            x = x.mean((2, 3), keepdim=True)
            continue
        weight, bias = (torch.from_numpy(arrays[f"{kind}{index:02d}"]) for kind in "wb")
        stride = int(line.split("stride=")[1].split()[0])
        x = _same(x, weight, bias, stride, weight.shape[0] if " dw " in line else 1)
        x = x.clamp(0, 6) if "relu6" in line else x
    with torch.no_grad():
        assert torch.allclose(model.module(images), x.flatten(1), rtol=1e-3, atol=1e-3)


def test_the_statistics_put_back_are_those_of_the_source(tmp_path: Path) -> None:
    arrays, lines = _folded()
    module = load_model(NAME, weights=_write(tmp_path / "m.npz", arrays, lines), width=WIDTH, num_classes=11).module
    norm = module.get_submodule("stem.bn")
    assert torch.allclose(norm.running_mean + torch.from_numpy(arrays["b00"]), torch.from_numpy(arrays["src_mean00"]))
    assert torch.equal(norm.running_var, torch.from_numpy(arrays["src_var00"]))


def _stride(lines: list[str]) -> None:
    lines[0] = lines[0].replace("stride=2", "stride=1")


def _shortcut(lines: list[str]) -> None:
    lines.insert(3, "99 add in=1 in2=2 out=3")


def _shorter(lines: list[str]) -> None:
    del lines[5]


@pytest.mark.parametrize("change", [_stride, _shortcut, _shorter])
def test_another_graph_is_refused(tmp_path: Path, change: object) -> None:
    arrays, lines = _folded()
    change(lines)  # type: ignore[operator]
    with pytest.raises(EdgettaError, match=r"m\.npz: the file's graph"):
        load_model(NAME, weights=_write(tmp_path / "m.npz", arrays, lines), width=WIDTH, num_classes=11)


def test_an_absent_array_is_named(tmp_path: Path) -> None:
    arrays, lines = _folded()
    del arrays["src_var04"]
    with pytest.raises(EdgettaError, match="src_var04"):
        load_model(NAME, weights=_write(tmp_path / "m.npz", arrays, lines), width=WIDTH, num_classes=11)


def test_its_own_state_dictionary_loads_too(tmp_path: Path) -> None:
    state = load_model(NAME, width=WIDTH).module.state_dict()
    torch.save(state, tmp_path / "m.pt")
    loaded = load_model(NAME, weights=tmp_path / "m.pt", width=WIDTH).module.state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in state)
