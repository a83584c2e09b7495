"""Each network against its published layout: names, parameter counts, and the arithmetic of its blocks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgetta.errors import UsageError
from edgetta.models import load_model, model_names
from edgetta.models.preresnet import PreResNet
from edgetta.models.resnet_cifar import ResNetCifar
from edgetta.models.wide_resnet import WideResNet

# Parameters of the published networks with 10 classes (ImageNet: 1000, MobileNets: 1001).
PARAMETERS = {
    "wrn40_2": 2_243_546,
    "wrn28_10": 36_479_194,
    "wrn34_10": 46_160_474,
    "resnet20": 269_722,
    "resnet44": 658_586,
    "resnet56": 853_018,
    "resnet110": 1_727_962,
    "resnet18": 11_173_962,
    "resnet34": 21_282_122,
    "resnet50": 23_520_842,
    "resnet18_imagenet": 11_689_512,
    "resnet34_imagenet": 21_797_672,
    "resnet50_imagenet": 25_557_032,
    "vgg16_bn": 14_728_266,
}
# Names as the published checkpoints have them, one of every kind of layer.
NAMES = {
    "wrn40_2": "conv1.weight block1.layer.0.bn1.running_mean block1.layer.0.convShortcut.weight "
    "block1.layer.5.conv2.weight block3.layer.0.conv1.weight bn1.weight fc.bias",
    "resnet18": "conv1.weight bn1.running_var layer1.0.conv1.weight layer2.0.shortcut.0.weight "
    "layer2.0.shortcut.1.running_mean layer4.1.bn2.bias linear.weight",
    "resnet50": "conv1.weight layer1.0.shortcut.0.weight layer3.5.conv3.weight layer3.5.bn3.weight linear.bias",
    "resnet20": "conv1.weight bn1.weight layer1.0.conv1.weight layer3.2.bn2.running_var linear.weight",
    "resnext29": "conv_1_3x3.weight bn_1.weight stage_1.0.conv_reduce.weight stage_1.0.bn_reduce.weight "
    "stage_2.1.conv_conv.weight stage_2.1.bn.weight stage_3.2.conv_expand.weight stage_3.2.bn_expand.bias "
    "stage_1.0.downsample.0.weight stage_1.0.downsample.1.weight classifier.weight",
    "preresnet20": "conv1.weight layer1.0.bn1.weight layer1.0.conv1.weight layer2.0.downsample.0.weight bn.bias",
    "preresnet110": "layer1.0.downsample.0.weight layer3.11.bn3.weight layer3.11.conv3.weight bn.weight fc.weight",
    "vgg16_bn": "features.0.weight features.0.bias features.1.running_mean features.40.weight classifier.weight",
    "vgg16_bn_hidden": "features.40.weight classifier.1.weight classifier.4.weight classifier.6.bias",
    "resnet50_imagenet": "conv1.weight bn1.weight layer1.0.downsample.1.running_var layer4.2.conv3.weight fc.weight",
    "adv_resnet2b": "conv1.bias layer1.0.conv1.bias layer1.0.shortcut.0.bias layer1.1.conv2.bias linear1.bias",
}


@pytest.mark.parametrize("name", sorted(NAMES))
def test_state_dictionary_has_the_published_names(name: str) -> None:
    state = (
        load_model(name).module.state_dict()
        if name in PARAMETERS
        else load_model(name, width=0.25).module.state_dict()
    )
    assert set(NAMES[name].split()) <= set(state)
    assert not [entry for entry in state if "normalise" in entry]


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_parameter_count_is_the_published_one(name: str) -> None:
    with torch.device("meta"):
        network = _unbuilt(name)
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("wrn40_2", 2.24),
        ("wrn28_10", 36.5),
        ("resnext29", 6.8),
        ("resnet50_imagenet", 25.6),
        ("mobilenet_v2_1.0_224", 3.5),
    ],
)
def test_parameter_count_as_the_papers_print_it(name: str, millions: float) -> None:
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in _unbuilt(name).parameters())
    assert count / 1e6 == pytest.approx(millions, rel=0.01)


@pytest.mark.parametrize("name", model_names())
def test_a_narrow_network_runs_and_is_narrow(name: str) -> None:
    torch.manual_seed(0)
    narrow = load_model(name, width=0.125, num_classes=7)
    side = min(narrow.input_shape[1], 64)
    with torch.no_grad():
        logits = narrow.module(torch.rand(2, 3, side, side))
    assert logits.shape == (2, 7) and torch.isfinite(logits).all()
    assert not narrow.module.training
    with torch.device("meta"):
        full = sum(parameter.numel() for parameter in _unbuilt(name).parameters())
    assert sum(parameter.numel() for parameter in narrow.module.parameters()) < full / 2


def test_wide_resnet_computes_what_the_paper_says() -> None:
    network = _trained_looking(WideResNet(10, 2, width=0.25))
    state, images = network.state_dict(), torch.rand(3, 3, 32, 32)

    def block(x: Tensor, at: str, stride: int) -> Tensor:
        active = F.relu(_norm(x, state, f"{at}.bn1"))
        out = F.conv2d(active, state[f"{at}.conv1.weight"], stride=stride, padding=1)
        out = F.conv2d(F.relu(_norm(out, state, f"{at}.bn2")), state[f"{at}.conv2.weight"], padding=1)
        shortcut = state.get(f"{at}.convShortcut.weight")
        return out + (x if shortcut is None else F.conv2d(active, shortcut, stride=stride))

    x = F.conv2d(images, state["conv1.weight"], padding=1)
    for index, stride in ((1, 1), (2, 2), (3, 2)):
        x = block(x, f"block{index}.layer.0", stride)
    x = F.avg_pool2d(F.relu(_norm(x, state, "bn1")), 8).flatten(1)
    assert torch.allclose(network(images), F.linear(x, state["fc.weight"], state["fc.bias"]), atol=1e-5)


def test_preactivation_bottleneck_computes_what_the_paper_says() -> None:
    network = _trained_looking(PreResNet(47, width=0.25))
    state, images = network.state_dict(), torch.rand(2, 3, 32, 32)
    x = F.conv2d(images, state["conv1.weight"], padding=1)
    for stage in (1, 2, 3):
        for index in range(5):
            at, stride = f"layer{stage}.{index}", 2 if stage > 1 and index == 0 else 1
            out = F.conv2d(F.relu(_norm(x, state, f"{at}.bn1")), state[f"{at}.conv1.weight"])
            out = F.conv2d(
                F.relu(_norm(out, state, f"{at}.bn2")), state[f"{at}.conv2.weight"], stride=stride, padding=1
            )
            out = F.conv2d(F.relu(_norm(out, state, f"{at}.bn3")), state[f"{at}.conv3.weight"])
            shortcut = state.get(f"{at}.downsample.0.weight")
            x = out + (x if shortcut is None else F.conv2d(x, shortcut, stride=stride))
    x = F.avg_pool2d(F.relu(_norm(x, state, "bn")), 8).flatten(1)
    assert torch.allclose(network(images), F.linear(x, state["fc.weight"], state["fc.bias"]), atol=1e-4)


def test_resnext_computes_what_the_paper_says() -> None:
    network = _trained_looking(load_model("resnext29", width=0.125, mean=(0,) * 3, std=(1,) * 3).module)
    state, images = network.state_dict(), torch.rand(2, 3, 32, 32)
    x = F.relu(_norm(F.conv2d(images, state["conv_1_3x3.weight"], padding=1), state, "bn_1"))
    for stage in (1, 2, 3):
        for index in range(3):
            at, stride = f"stage_{stage}.{index}", 2 if stage > 1 and index == 0 else 1
            out = F.relu(_norm(F.conv2d(x, state[f"{at}.conv_reduce.weight"]), state, f"{at}.bn_reduce"))
            out = F.conv2d(out, state[f"{at}.conv_conv.weight"], stride=stride, padding=1, groups=4)
            out = F.conv2d(F.relu(_norm(out, state, f"{at}.bn")), state[f"{at}.conv_expand.weight"])
            if f"{at}.downsample.0.weight" in state:
                x = _norm(F.conv2d(x, state[f"{at}.downsample.0.weight"], stride=stride), state, f"{at}.downsample.1")
            x = F.relu(x + _norm(out, state, f"{at}.bn_expand"))
    x = F.avg_pool2d(x, 8).flatten(1)
    assert torch.allclose(
        network(images), F.linear(x, state["classifier.weight"], state["classifier.bias"]), atol=1e-4
    )


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_imagenet_resnet_is_torchvisions(name: str) -> None:
    models = pytest.importorskip("torchvision").models
    torch.manual_seed(0)
    theirs = _trained_looking(models.get_model(name, weights=None, num_classes=5))
    ours = load_model(f"{name}_imagenet", num_classes=5, mean=(0,) * 3, std=(1,) * 3).module
    ours.load_state_dict(theirs.state_dict())
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(ours(images), theirs(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("build", "depth"), [(ResNetCifar, 21), (PreResNet, 45), (PreResNet, 21)])
def test_an_impossible_depth_is_refused(build: type[nn.Module], depth: int) -> None:
    with pytest.raises(UsageError, match="depth"):
        build(depth)


def test_an_impossible_wide_depth_is_refused() -> None:
    with pytest.raises(UsageError, match="6n \\+ 4"):
        WideResNet(39, 2)


@pytest.mark.parametrize("name", ["vgg16_bn", "mobilenet_v1_0.5_160"])
def test_exports_with_any_batch_size(name: str) -> None:
    _check_export(name)


@pytest.mark.full
@pytest.mark.parametrize("name", model_names())
def test_every_network_exports_with_any_batch_size(name: str) -> None:
    _check_export(name)


def _check_export(name: str) -> None:
    torch.manual_seed(0)
    model = load_model(name, width=0.25)
    side = min(model.input_shape[1], 64)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model.module, (torch.rand(2, 3, side, side),), dynamic_shapes=({0: batch},))
    images = torch.rand(5, 3, side, side)
    with torch.no_grad():
        assert torch.allclose(program.module()(images), model.module(images), atol=1e-5)


def _unbuilt(name: str) -> nn.Module:
    from edgetta.models.architectures import architecture

    known = architecture(name)
    return known.build(num_classes=known.num_classes, width=known.width)


def _trained_looking(network: nn.Module) -> nn.Module:
    """BatchNorm with statistics, weights and biases of its own, so that a forgotten one shows."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                assert tensor is not None
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    return network.eval().requires_grad_(False)


def _norm(x: Tensor, state: dict[str, Tensor], at: str) -> Tensor:
    mean, var = state[f"{at}.running_mean"], state[f"{at}.running_var"]
    return F.batch_norm(x, mean, var, state[f"{at}.weight"], state[f"{at}.bias"])
