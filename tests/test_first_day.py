"""Somebody's first day: a torchvision network, weights in a file, a folder of odd pictures, a video; and the mistakes
that people make on it. Predictions are right, or it is said why they are not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

import edgetta
from edgetta.bundle import read_bundle
from edgetta.cli import main
from edgetta.export import recipe as recipes
from edgetta.models.normalise import IMAGENET
from edgetta.models.torchvision_operators import import_with_operators

CLASSES = ("bars", "disc", "frame", "grid", "plain", "wedge")
SIDE = 32
SIZE = ("--input-size", str(SIDE))

Captured = pytest.CaptureFixture[str]


def shape(label: int, height: int, width: int, seed: int) -> Image.Image:
    """A shape in the middle of a picture, as large as its short side: its class, whatever the colours."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    radius = min(height, width) / 2
    v, u = (y - (height - 1) / 2) / radius, (x - (width - 1) / 2) / radius
    size = rng.uniform(0.6, 0.8)
    inside = {
        "bars": (np.abs(u) < 0.9) & (np.abs(v) < 0.9) & (np.floor(4 * v) % 2 == 0),
        "disc": u**2 + v**2 < size**2,
        "frame": (np.maximum(np.abs(u), np.abs(v)) < size) & (np.maximum(np.abs(u), np.abs(v)) > size - 0.25),
        "grid": (np.abs(u) < 0.9) & (np.abs(v) < 0.9) & ((np.floor(4 * v) + np.floor(4 * u)) % 2 == 0),
        "plain": np.zeros_like(u, bool),
        "wedge": (v < size) & (v > -size) & (np.abs(u) < (v + size) / 2),
    }[CLASSES[label]]
    light, dark = rng.integers(170, 256, 3), rng.integers(0, 80, 3)
    pixels = np.where(inside[..., None], light, dark) + rng.normal(0, 3, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def network() -> nn.Module:
    """torchvision's own, as its documentation builds it."""
    model: nn.Module = import_with_operators("torchvision").models.resnet18(num_classes=len(CLASSES))
    return model


def evaluated(pictures: list[Image.Image]) -> torch.Tensor:
    """torchvision's own transforms for evaluation."""
    transforms = import_with_operators("torchvision").transforms
    steps = [transforms.Resize(SIDE), transforms.CenterCrop(SIDE), transforms.ToTensor()]
    return torch.stack([transforms.Compose([*steps, transforms.Normalize(*IMAGENET)])(one) for one in pictures])


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights that were trained as torchvision's examples do it, with its normalisation."""
    torch.manual_seed(0)
    labels = torch.arange(240) % len(CLASSES)
    sides = (SIDE, 44, 60, 90)
    images = evaluated(
        [shape(int(label), sides[k % 4], sides[k // 4 % 4], 1000 + k) for k, label in enumerate(labels)]
    )
    model = network().train()
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for step in range(70):
        rows = torch.randperm(240, generator=torch.Generator().manual_seed(step))[:48]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
        optimizer.step()
    path = tmp_path_factory.mktemp("trained") / "shapes.safetensors"
    save_file(model.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder per class, pictures of the model's size."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(120):
        place = folder / CLASSES[number % len(CLASSES)]
        place.mkdir(exist_ok=True)
        shape(number % len(CLASSES), SIDE, SIDE, number).save(place / f"{number:03}.png")
    return folder


@pytest.fixture(scope="module")
def bundle(weights: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundle") / "bundle"
    options = ("--weights", weights, *SIZE, "--calibration", photos, "--no-measure", "-q")
    assert main(["export", "torchvision:resnet18", "-o", str(out), *map(str, options)]) == 0
    return out


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Export ends where the derivation would begin: what is checked before is the point."""

    def stop(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(recipes, "derive", stop)
    monkeypatch.delenv("EDGETTA_DEBUG", raising=False)
    yield


def export(weights: Path, photos: Path, tmp_path: Path, *options: object, size: tuple[str, ...] = SIZE) -> int:
    arguments = ("--weights", weights, *size, "--calibration", photos, "-o", tmp_path / "bundle", *options)
    return main(["export", "torchvision:resnet18", *map(str, arguments)])


def odd_pictures(folder: Path) -> list[tuple[Image.Image, int]]:
    """Pictures as they lie in folders of people, upright and in RGB as they must arrive, and their classes."""
    folder.mkdir()
    expected: list[tuple[Image.Image, int]] = []

    def save(name: str, label: int, picture: Image.Image, stored: Image.Image | None = None, **options: Any) -> None:
        (folder / CLASSES[label]).mkdir(exist_ok=True)
        path = folder / CLASSES[label] / name
        (stored or picture).save(path, **options)
        if path.suffix != ".png":
            with Image.open(path) as file:
                picture = file.convert("RGB").transpose(options.pop("turned")) if "turned" in options else picture
        expected.append((picture, label))

    save("wide.png", 1, shape(1, 96, 480, 1))
    save("high.png", 2, shape(2, 400, 70, 2))
    save("small.png", 3, shape(3, 40, 44, 3))
    save("large.png", 0, shape(0, 400, 520, 4))
    rgba = shape(5, 90, 120, 5).convert("RGBA")
    rgba.putalpha(128)
    save("alpha.png", 5, rgba.convert("RGB"), rgba)
    grey = shape(1, 64, 100, 6).convert("L")
    save("grey.png", 1, grey.convert("RGB"), grey)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = shape(5, 100, 150, 7)
    save("turned.png", 5, picture, picture.transpose(Image.Transpose.ROTATE_90), exif=exif)
    (folder / "plain").mkdir(exist_ok=True)
    (folder / "plain" / "broken.jpg").write_bytes(b"no picture")
    return expected


def test_a_folder_of_odd_pictures_is_predicted_as_torchvision_does(
    bundle: Path, weights: Path, tmp_path: Path, capsys: Captured
) -> None:
    expected = odd_pictures(tmp_path / "odd")
    model = network().eval()
    model.load_state_dict(load_file(weights))
    with torch.no_grad():
        logits = model(evaluated([picture for picture, _ in expected]))
    assert logits.argmax(1).tolist() == [label for _, label in expected], "the network itself is right"
    out, summary = tmp_path / "rows.jsonl", tmp_path / "run.json"
    options = ("-o", out, "--json", summary, "--when", "off", "--bn", "source", "--engine", "torch")
    assert main(["run", str(bundle), str(tmp_path / "odd"), *map(str, options)]) == 0
    told = capsys.readouterr().out
    assert re.search(r"^error +0.00 % \(0 of 7 labelled frames\)$", told, re.MULTILINE)
    assert re.search(r"^classes +disc 2, wedge 2, bars 1, frame 1, grid 1$", told, re.MULTILINE)
    assert "plain/broken.jpg: not an image" in told
    rows = {row["frame"]: row for row in map(json.loads, out.read_text().splitlines())}
    # The source network itself, on pictures that Python prepared, is torchvision's to the last digits.
    runtime = edgetta.load(bundle, "torch", check=False)
    found = runtime.source(edgetta.preprocess(runtime, [picture for picture, _ in expected]))
    np.testing.assert_allclose(found, logits.numpy(), rtol=1e-3, atol=1e-3)
    assert rows["disc/wide.png"]["class"] == "disc" and json.loads(summary.read_text())["skipped"] == 1


def test_a_video_is_predicted(bundle: Path, tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2", reason="videos need OpenCV, which is not installed")
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (160, 120))
    for number in range(12):
        writer.write(np.ascontiguousarray(np.asarray(shape(2 if number < 6 else 3, 120, 160, number))[..., ::-1]))
    writer.release()
    out = tmp_path / "rows.jsonl"
    assert main(["run", str(bundle), str(path), "-o", str(out), "--when", "off", "--bn", "source", "-q"]) == 0
    assert [json.loads(row)["class"] for row in out.read_text().splitlines()] == ["frame"] * 6 + ["grid"] * 6


def test_what_the_bundle_says_of_itself(bundle: Path, capsys: Captured) -> None:
    assert main(["inspect", str(bundle)]) == 0
    told = capsys.readouterr().out
    for line in (
        r"model +torchvision:resnet18",
        r"input +3 x 32 x 32, RGB in \[0, 1\]",
        r"resize +crop: short side to 32, bilinear, then the centre of 32 x 32",
        r"normalisation +mean 0.485, 0.456, 0.406, deviation 0.229, 0.224, 0.225, in the model",
        r"classes +6: bars, disc, frame, grid, plain, wedge",
    ):
        assert re.search(rf"^{line}$", told, re.MULTILINE), line
    opened = read_bundle(bundle)
    assert opened.classes == CLASSES, "named after the folders, because predictions agree with them"
    assert opened.provenance["weights"] == "shapes.safetensors"
    assert opened.provenance["source_accuracy"]["accuracy"] > 0.95


@pytest.mark.usefixtures("stopped")
def test_right_from_the_start(weights: Path, photos: Path, tmp_path: Path, capsys: Captured) -> None:
    assert export(weights, photos, tmp_path) == 130
    said = capsys.readouterr()
    found = re.search(r"^source accuracy on 120 calibration images: (\d+\.\d) %$", said.out, re.MULTILINE)
    assert found is not None and float(found[1]) > 95 and "warning" not in said.err


@pytest.mark.usefixtures("stopped")
def test_constants_on_the_scale_of_bytes_are_refused(
    weights: Path, photos: Path, tmp_path: Path, capsys: Captured
) -> None:
    constants = ("--mean", "123.7,116.3,103.5", "--std", "58.4,57.1,57.4")
    assert export(weights, photos, tmp_path, *constants) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "is on the scale of 0 to 255, and images here are in [0, 1]" in line
    assert "mean 0.4851, 0.4561, 0.4059, std 0.229, 0.2239, 0.2251 is the same for them" in line


@pytest.mark.usefixtures("stopped")
def test_a_forgotten_input_size_is_found(weights: Path, photos: Path, tmp_path: Path, capsys: Captured) -> None:
    few = tmp_path / "few"
    for number in range(36):
        place = few / CLASSES[number % len(CLASSES)]
        place.mkdir(parents=True, exist_ok=True)
        shape(number % len(CLASSES), SIDE, SIDE, number).save(place / f"{number:03}.png")
    assert export(weights, few, tmp_path, size=()) == 130
    said = capsys.readouterr()
    accuracy = re.search(r"source accuracy on 36 calibration images: (\d+\.\d) %", said.out)
    assert accuracy is not None and float(accuracy[1]) < 70
    assert "images are right with --input-size 32" in said.err


@pytest.mark.usefixtures("stopped")
def test_another_normalisation_is_found(weights: Path, photos: Path, tmp_path: Path, capsys: Captured) -> None:
    assert export(weights, photos, tmp_path, "--mean", "0,0,0", "--std", "0.0039,0.0039,0.0039") == 130
    said = capsys.readouterr()
    assert re.search(r"warning: (9\d|100)\.\d % instead of .* are right with --mean [\d.,]+ --std [\d.,]+", said.err)


@pytest.mark.usefixtures("stopped")
def test_class_names_in_another_order_are_found(weights: Path, photos: Path, tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "names.txt").write_text("\n".join(("disc", "bars", "frame", "plain", "wedge", "grid")))
    assert export(weights, photos, tmp_path, "--classes", tmp_path / "names.txt") == 130
    said = capsys.readouterr()
    assert "the classes are in another order" in said.err
    assert "with --classes bars,disc,frame,grid,plain,wedge" in said.err
