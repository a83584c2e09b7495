"""`edgetta.export` as a function: a model in memory becomes a bundle that predicts what it predicts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import edgetta
from edgetta.bundle import read_bundle
from edgetta.errors import UsageError
from edgetta.export.to_bundle import export
from tests.adaptation.pictures import pictures
from tests.export.small_networks import Network, conv_bn


def network() -> nn.Module:
    torch.manual_seed(0)
    blocks = {name: nn.Sequential(*conv_bn(6, 6), nn.ReLU(), *conv_bn(6, 6), nn.ReLU()) for name in "abc"}
    return Network(nn.Sequential(*conv_bn(3, 6), nn.ReLU()), 6, **blocks).eval()


def test_the_package_is_the_function(tmp_path: Path) -> None:
    model, images = network(), torch.rand(6, 3, 16, 16)
    names = ("ant", "bee", "cat", "dog", "eel")
    written = edgetta.export(model, images, tmp_path / "bundle", classes=names)  # type: ignore[operator]
    assert written == tmp_path / "bundle"
    bundle = read_bundle(written)
    assert (bundle.classes, bundle.name) == (names, "Network")
    runtime = edgetta.load(written, "torch")
    assert torch.allclose(torch.as_tensor(runtime.source(images)), model(images).detach(), atol=1e-5)


def test_parts_are_counted_or_named(tmp_path: Path) -> None:
    image = torch.rand(3, 16, 16)
    cuts = ("stem", "body.a", "body.b")
    export(network(), image, tmp_path / "named", parts=cuts, batch_norm="source")
    export(network(), image, tmp_path / "counted", parts=1, name="mine")
    assert read_bundle(tmp_path / "named").cuts == cuts
    counted = read_bundle(tmp_path / "counted")
    assert len(counted.cuts) == 2 and counted.name == "mine"


@pytest.mark.parametrize(
    ("example", "reason"),
    [
        (torch.rand(3, 16), "has shape"),
        (torch.full((2, 3, 16, 16), 255.0), r"not in \[0, 1\]"),
        (torch.zeros(2, 3, 16, 16, dtype=torch.uint8), r"not in \[0, 1\]"),
    ],
)
def test_examples_that_are_none(tmp_path: Path, example: torch.Tensor, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        export(network(), example, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_bundle_that_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "mine.txt").write_text("x")
    with pytest.raises(UsageError, match="exists already"):
        export(network(), torch.rand(3, 16, 16), tmp_path / "bundle")


def test_source_images_tell_what_content_explains(tmp_path: Path) -> None:
    images = torch.from_numpy(pictures(40))
    export(network(), images[:4], tmp_path / "one", source_images=images)
    export(network(), images[:4], tmp_path / "other", source_images=iter(images.split(16)))
    one, other = (read_bundle(tmp_path / name) for name in ("one", "other"))
    assert one.content is not None and other.content is not None
    assert one.programs.source.mean == pytest.approx(other.programs.source.mean, rel=1e-4, abs=1e-5)
