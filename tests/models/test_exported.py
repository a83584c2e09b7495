"""Exported programs: the same logits, the same module names, and no code of a stranger's."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from edgetta.errors import EdgettaError, UsageError
from edgetta.models import load_model


class Small(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.relu = nn.ReLU()
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(4, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.drop(self.relu(self.bn(self.conv(x))))
        return self.head(x.mean((2, 3)))


def _export(path: Path, network: nn.Module, *, dynamic: bool = True, batch: int = 2) -> Path:
    shapes = ({0: torch.export.Dim("batch", min=1, max=64)},) if dynamic else None
    program = torch.export.export(network, (torch.rand(batch, 3, 8, 8),), dynamic_shapes=shapes)
    torch.export.save(program, path)
    return path


@pytest.fixture(scope="module")
def small() -> Small:
    torch.manual_seed(0)
    return Small().eval()


@pytest.fixture(scope="module")
def program(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _export(tmp_path_factory.mktemp("exported") / "small.pt2", small)


def test_the_program_computes_the_same_under_the_same_names(small: Small, program: Path) -> None:
    model = load_model(str(program))
    assert (model.input_shape, model.num_classes, model.name) == ((3, 8, 8), 6, str(program))
    images = torch.rand(5, 3, 8, 8)
    assert torch.allclose(model.module(images), small(images), atol=1e-6)
    assert set(small.state_dict()) <= set(model.module.state_dict())
    assert {"conv", "bn", "relu", "head"} <= {name for name, _ in model.module.named_modules()}
    assert not any(module.training for module in model.module.modules())


def test_it_exports_again_with_its_module_names(program: Path) -> None:
    network = load_model(str(program)).module
    batch = torch.export.Dim("batch", min=1, max=64)
    again = torch.export.export(network, (torch.rand(2, 3, 8, 8),), dynamic_shapes=({0: batch},))
    paths = {path for node in again.graph.nodes for path, _ in (node.meta.get("nn_module_stack") or {}).values()}
    assert {"conv", "bn", "relu", "head"} <= paths


def test_it_takes_weights_and_a_normalisation(small: Small, program: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    other = Small().eval()
    torch.save({"state_dict": other.state_dict()}, tmp_path / "w.pth")
    model = load_model(str(program), weights=tmp_path / "w.pth", mean=(0.5,) * 3, std=(0.5,) * 3)
    images = torch.rand(3, 3, 8, 8)
    assert torch.allclose(model.module(images), other((images - 0.5) / 0.5), atol=1e-5)


def test_a_built_in_network_survives_the_journey(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = load_model("resnet20", width=0.25)
    shapes = ({0: torch.export.Dim("batch", min=1, max=64)},)
    exported = torch.export.export(source.module, (torch.rand(2, 3, 32, 32),), dynamic_shapes=shapes)
    torch.export.save(exported, tmp_path / "r.pt2")
    images = torch.rand(3, 3, 32, 32)
    assert torch.allclose(load_model(str(tmp_path / "r.pt2")).module(images), source.module(images), atol=1e-5)


def test_a_fixed_batch_size_says_how_to_export(small: Small, tmp_path: Path) -> None:
    path = _export(tmp_path / "fixed.pt2", small, dynamic=False, batch=4)
    with pytest.raises(EdgettaError, match=r"exactly 4; export it with dynamic_shapes"):
        load_model(str(path))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_training_mode_says_so(tmp_path: Path, dropout: float) -> None:
    network = Small(dropout)
    if dropout:
        network.bn.eval()
    with pytest.raises(EdgettaError, match="training mode"):
        load_model(str(_export(tmp_path / "training.pt2", network)))


def test_options_mean_nothing_to_a_program(program: Path) -> None:
    with pytest.raises(UsageError, match="takes no option num_classes"):
        load_model(str(program), num_classes=3)


def test_absent_and_damaged_files_are_named(program: Path, tmp_path: Path) -> None:
    with pytest.raises(EdgettaError, match=r"nowhere\.pt2: no such file"):
        load_model(str(tmp_path / "nowhere.pt2"))
    for content in (b"", b"nothing", program.read_bytes()[:-200]):
        (tmp_path / "cut.pt2").write_bytes(content)
        with pytest.raises(EdgettaError, match=r"cut\.pt2"):
            load_model(str(tmp_path / "cut.pt2"))


class _Payload:
    """Unpickled, it would make a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def _operator(entries: dict[str, bytes], made: Path) -> None:
    def rewrite(graph: dict[str, Any]) -> None:
        call = {"name": "", "kind": 1, "arg": {"as_string": str(made)}}
        graph["nodes"][0] |= {"target": "torch.os.mkdir", "inputs": [call]}

    _model(entries, rewrite)


def _operator_argument(entries: dict[str, bytes], made: Path) -> None:
    def rewrite(graph: dict[str, Any]) -> None:
        graph["nodes"][0]["inputs"].append({"name": "", "kind": 1, "arg": {"as_operator": "torch.os.mkdir"}})

    _model(entries, rewrite)


def _expression(entries: dict[str, bytes], made: Path) -> None:
    def rewrite(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                k: f"__import__('os').mkdir({str(made)!r})" if k == "expr_str" else rewrite(v)
                for k, v in value.items()
            }
        return [rewrite(item) for item in value] if isinstance(value, list) else value

    _model(entries, lambda graph: graph.update(rewrite(graph)))


def _pickled_inputs(entries: dict[str, bytes], made: Path) -> None:
    buffer = io.BytesIO()
    torch.save(((torch.zeros(2, 3, 8, 8), _Payload(made)), {}), buffer)
    entries[next(name for name in entries if "sample_inputs" in name)] = buffer.getvalue()


def _pickled_weight(entries: dict[str, bytes], made: Path) -> None:
    buffer = io.BytesIO()
    torch.save(_Payload(made), buffer)
    entries[next(name for name in entries if name.endswith("weight_0"))] = buffer.getvalue()
    config = next(name for name in entries if name.endswith("weights_config.json"))
    content = json.loads(entries[config])
    next(iter(content["config"].values()))["use_pickle"] = True
    entries[config] = json.dumps(content).encode()


def _opaque_object(entries: dict[str, bytes], made: Path) -> None:
    import pickle

    config = next(name for name in entries if name.endswith("constants_config.json"))
    content = json.loads(entries[config])
    content["config"]["x"] = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    entries[config] = json.dumps(content).encode()
    entries[config.rpartition("/")[0] + "/opaque_obj_0"] = pickle.dumps(_Payload(made))


def _compiled(entries: dict[str, bytes], made: Path) -> None:
    root = next(iter(entries)).partition("/")[0]
    entries[f"{root}/data/aotinductor/model/model.so"] = b"\x7fELF"


def _model(entries: dict[str, bytes], change: Callable[[dict[str, Any]], None]) -> None:
    name = next(name for name in entries if "/models/" in name)
    content = json.loads(entries[name])
    change(content["graph_module"]["graph"])
    entries[name] = json.dumps(content).encode()


ATTACKS = [_operator, _operator_argument, _expression, _pickled_inputs, _pickled_weight, _opaque_object, _compiled]


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_hostile_program_is_refused_and_does_not_run(
    program: Path, tmp_path: Path, attack: Callable[[dict[str, bytes], Path], None]
) -> None:
    made = tmp_path / "made"
    with zipfile.ZipFile(program) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    attack(entries, made)
    with zipfile.ZipFile(tmp_path / "hostile.pt2", "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    with pytest.raises(EdgettaError, match="is refused"):
        load_model(str(tmp_path / "hostile.pt2"))
    assert not made.exists()


def test_an_old_torch_reads_no_programs(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.5.1")
    with pytest.raises(EdgettaError, match="safely"):
        load_model(str(program))


def test_two_entries_of_one_name_are_refused(program: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(program) as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(tmp_path / "twice.pt2", "w") as archive:
        for name, content in [*entries, entries[0]]:
            archive.writestr(name, content)
    with pytest.raises(EdgettaError, match="two entries of one name"):
        load_model(str(tmp_path / "twice.pt2"))


def test_compressed_entries_are_refused(program: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(program) as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(tmp_path / "bomb.pt2", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    with pytest.raises(EdgettaError, match="is compressed"):
        load_model(str(tmp_path / "bomb.pt2"))
