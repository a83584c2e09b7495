"""Models of timm and torchvision, and models that a function in a file builds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edgetta.errors import EdgettaError, UsageError
from edgetta.export.trace import trace
from edgetta.models import load_model
from edgetta.models.normalise import IDENTITY, IMAGENET, normalisation_of
from edgetta.segments.torch_engine import Program
from edgetta.sources.resize import Resize

FILE = """
import torch
from torch import nn
from sibling import CHANNELS

def build(num_classes=4, depth=1):
    layers = [nn.Conv2d(3, CHANNELS, 3, padding=1), nn.ReLU()]
    for _ in range(depth - 1):
        layers += [nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, num_classes))

def number():
    return 7

def broken():
    return 1 / 0

def features():
    return nn.Conv2d(3, 4, 3)

def pair():
    class Pair(nn.Module):
        def forward(self, x):
            return {"logits": x}
    return Pair()

def half():
    return build().half()

def parallel():
    return nn.DataParallel(build())

def compiled():
    return torch.compile(build())

def one():
    return build(num_classes=1)

def softmax():
    return nn.Sequential(build(), nn.Softmax(1))

NOT_CALLABLE = 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "sibling.py").write_text("CHANNELS = 5\n")
    (tmp_path / "nets.py").write_text(FILE)
    return tmp_path / "nets.py"


def test_a_function_in_a_file(file: Path) -> None:
    model = load_model(f"{file}:build", input_shape=(3, 8, 8), num_classes=6, depth=2)
    assert (model.num_classes, model.input_shape, model.parts) == (6, (3, 8, 8), None)
    assert model.name == f"{file}:build"
    assert not model.module.training
    assert [name for name, _ in model.module.named_children()][:4] == ["0", "1", "2", "3"]
    assert normalisation_of(model.module) == IDENTITY


def test_its_weights_and_normalisation(file: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = load_model(f"{file}:build", input_shape=(3, 8, 8)).module
    torch.save(source.state_dict(), tmp_path / "w.pt")
    model = load_model(
        f"{file}:build", input_shape=(3, 8, 8), weights=tmp_path / "w.pt", mean=(0.5,) * 3, std=(0.25,) * 3
    )
    assert model.weights == str(tmp_path / "w.pt")
    images = torch.rand(2, 3, 8, 8)
    assert torch.allclose(model.module(images), source((images - 0.5) / 0.25), atol=1e-6)


def test_a_function_may_return_a_model(file: Path) -> None:
    file.write_text(
        "from edgetta.models import load_model\ndef tiny():\n    return load_model('resnet20', width=0.25)\n"
    )
    model = load_model(f"{file}:tiny")
    assert model.input_shape == (3, 32, 32) and model.parts is not None and model.num_classes == 10


@pytest.mark.parametrize(
    ("name", "settings", "kind", "message"),
    [
        ("build", {}, UsageError, "give input_shape"),
        ("build", {"input_shape": (3, 8, 8), "layers": 2}, UsageError, "cannot be called with layers"),
        ("build", {"input_shape": (1, 8, 8)}, EdgettaError, "does not run on images of shape"),
        ("absent", {}, UsageError, "has no function 'absent'"),
        ("NOT_CALLABLE", {}, UsageError, "has no function"),
        ("number", {}, EdgettaError, "returned a int, not a torch.nn.Module"),
        ("broken", {}, EdgettaError, "ZeroDivisionError"),
        ("features", {"input_shape": (3, 8, 8)}, EdgettaError, "not logits"),
        ("pair", {"input_shape": (3, 8, 8)}, EdgettaError, "returns a dict"),
        ("one", {"input_shape": (3, 8, 8)}, EdgettaError, "returns one number per image.*at least 2 classes"),
    ],
)
def test_what_goes_wrong_in_a_file_is_said(
    file: Path, name: str, settings: dict[str, object], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        load_model(f"{file}:{name}", **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["parallel", "compiled"])
def test_wrappers_of_training_are_taken_off(file: Path, name: str) -> None:
    names = set(load_model(f"{file}:{name}", input_shape=(3, 8, 8)).module.state_dict())
    assert names == set(load_model(f"{file}:build", input_shape=(3, 8, 8)).module.state_dict())


def test_half_precision_is_taken_as_float32_and_said(file: Path) -> None:
    model = load_model(f"{file}:half", input_shape=(3, 8, 8))
    assert {tensor.dtype for tensor in model.module.parameters()} == {torch.float32}
    assert model.notes == (f"{file}:half is in float16; it is taken as float32",)
    assert load_model(f"{file}:build", input_shape=(3, 8, 8)).notes == ()


def test_probabilities_are_taken_as_logits_and_said(file: Path) -> None:
    model = load_model(f"{file}:softmax", input_shape=(3, 8, 8))
    (note,) = model.notes
    assert note.endswith("answers with probabilities; their logarithms are taken as logits")
    x = torch.rand(3, 3, 8, 8)
    logits, inner = model.module(x), model.module[0](x)  # type: ignore[index]
    assert torch.allclose(logits.softmax(1), inner.softmax(1), atol=1e-6)
    graph = trace(model.module, (3, 8, 8)).graph
    assert "Softmax" not in {node.op for node in graph.nodes}
    assert torch.allclose(Program(graph).run({"x": x})[0], inner, atol=1e-5)


def test_a_file_that_imports_torchvision_runs_where_its_operators_are_missing(tmp_path: Path) -> None:
    """The file's first import fails as torchvision's does beside a torch without them, and not once they are there."""
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n"
        "if not hasattr(torch, 'seen'):\n"
        "    torch.seen = True\n"
        "    raise RuntimeError('operator torchvision::nms does not exist')\n"
        "del torch.seen\n"
        "def build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3))\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgetta.models.torchvision_operators.define_missing_operators", lambda: ("nms",))
        assert load_model(f"{tmp_path}/net.py:build", input_shape=(3, 2, 2)).num_classes == 3


@pytest.mark.parametrize("spec", ["torchvision:resnet18", "torchvision:squeezenet1_1", "timm:resnet18"])
def test_classes_come_from_the_checkpoint(spec: str, tmp_path: Path) -> None:
    pytest.importorskip(spec.partition(":")[0])
    trained = load_model(spec, num_classes=6, input_shape=(3, 64, 64)).module.state_dict()
    torch.save({"model": {f"module.{name}": value for name, value in trained.items()}}, tmp_path / "w.pt")
    model = load_model(spec, weights=tmp_path / "w.pt", input_shape=(3, 64, 64))
    assert model.num_classes == 6
    assert all(torch.equal(value, trained[name]) for name, value in model.module.state_dict().items())
    with pytest.raises(EdgettaError, match="of another shape"):
        load_model(spec, weights=tmp_path / "w.pt", num_classes=7, input_shape=(3, 64, 64))


def test_a_file_must_exist_run_and_name_a_function(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        load_model(f"{tmp_path}/nowhere.py:build")
    (tmp_path / "bad.py").write_text("import nothing_of_that_name\n")
    with pytest.raises(EdgettaError, match=r"bad\.py failed to run: ModuleNotFoundError"):
        load_model(f"{tmp_path}/bad.py:build")
    for spec in (f"{tmp_path}/bad.py", f"{tmp_path}/bad.py:"):
        with pytest.raises(UsageError, match=r"bad\.py:function"):
            load_model(spec)


def test_timm_by_name() -> None:
    pytest.importorskip("timm")
    torch.manual_seed(0)
    model = load_model("timm:resnet18", num_classes=7, input_shape=(3, 64, 64))
    assert (model.num_classes, model.input_shape) == (7, (3, 64, 64))
    assert normalisation_of(model.module) == (pytest.approx(IMAGENET[0]), pytest.approx(IMAGENET[1]))
    assert "layer1.0.conv1.weight" in model.module.state_dict()
    assert "layer1.0" in dict(model.module.named_modules())


def test_timm_normalisation_is_the_models_own() -> None:
    """Not ImageNet's for a ViT: a known trap of published test-time adaptation code."""
    pytest.importorskip("timm")
    model = load_model("timm:vit_tiny_patch16_224", input_shape=(3, 32, 32), img_size=32, num_classes=4)
    assert normalisation_of(model.module) == ((0.5,) * 3, (0.5,) * 3)


def test_torchvision_by_name() -> None:
    pytest.importorskip("torchvision")
    model = load_model("torchvision:resnet18", num_classes=5)
    assert (model.num_classes, model.input_shape) == (5, (3, 224, 224))
    assert normalisation_of(model.module)[0] == pytest.approx(IMAGENET[0])


@pytest.mark.parametrize(
    ("spec", "settings", "message"),
    [
        ("timm:resnt18", {}, "did you mean timm:resnet18"),
        ("torchvision:resnt18", {}, "did you mean torchvision:resnet18"),
        ("torchvision:fcn_resnet50", {}, "has no model"),
        ("timm:resnet18", {"bananas": 3}, "bananas"),
        ("timm:vit_tiny_patch16_224", {"input_shape": (3, 32, 32)}, "does not run on images of shape"),
    ],
)
def test_libraries_mistakes_are_said(spec: str, settings: dict[str, object], message: str) -> None:
    pytest.importorskip(spec.partition(":")[0])
    with pytest.raises(EdgettaError, match=message):
        load_model(spec, **settings)  # type: ignore[arg-type]


def test_pictures_become_the_input_as_the_libraries_evaluate() -> None:
    pytest.importorskip("timm", exc_type=ImportError)
    shuffle = load_model("torchvision:shufflenet_v2_x0_5")
    assert shuffle.resize == Resize((224, 224), "crop", 256, "bilinear") and shuffle.size_origin == "as published"
    assert shuffle.origin is None and "pretrained=true" in shuffle.remedy
    small = load_model("torchvision:shufflenet_v2_x0_5", input_shape=(3, 64, 64))
    assert small.resize == Resize((64, 64), "crop"), "at another size nobody says how much is cut off"
    bicubic = load_model("timm:resnet10t")  # published at 176, evaluated with crop_pct 0.875
    assert bicubic.resize == Resize((176, 176), "crop", 201, "bicubic")
    stretched = load_model("timm:resnet10t", resize="stretch", interpolation="bilinear")
    assert stretched.resize == Resize((176, 176))


def test_a_pretrained_network_with_a_new_classifier_is_not_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm", exc_type=ImportError)
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False, **options: create(name, **options))
    assert load_model("timm:resnet10t", pretrained=True).origin == "timm's resnet10t.c3_in1k"
    headless = load_model("timm:resnet10t", num_classes=6, pretrained=True)
    assert headless.origin is None
    assert "published weights have 1000 classes, so that a classifier of 6 is untrained" in headless.remedy
