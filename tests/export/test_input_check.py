"""Wrong preprocessing, one example after the other: each is noticed, and what is said is right."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

from edgetta.export.input_check import InputCheck, check_input
from edgetta.models import Model
from edgetta.models.normalise import IDENTITY, IMAGENET, Constants, with_normalisation

COLOURS = torch.tensor(
    [[0.9, 0.2, 0.2], [0.2, 0.9, 0.2], [0.2, 0.2, 0.9], [0.9, 0.9, 0.1], [0.5, 0.5, 0.5], [0.1, 0.1, 0.1]]
)
NAMES = ("red", "green", "blue", "yellow", "grey", "black")


class ByColour(nn.Module):
    """Knows six colours as they look after the normalisation that it was trained with."""

    def __init__(self, trained: Constants) -> None:
        super().__init__()
        mean, std = (torch.tensor(values) for values in trained)
        self.known = nn.Parameter((COLOURS - mean) / std)

    def forward(self, x: Tensor) -> Tensor:
        return -((x.mean((2, 3))[:, None] - self.known) ** 2).sum(2)


class ByStripe(nn.Module):
    """Knows stripes that repeat after 2, 4 and 8 pixels."""

    def forward(self, x: Tensor) -> Tensor:
        waves = x.mean(1) - x.mean((1, 2, 3))[:, None, None]
        return torch.stack([-(waves[..., lag:] * waves[..., :-lag]).mean((1, 2)) for lag in (1, 2, 4)], 1)


def coloured(count: int = 360) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(6, (count,), generator=generator)
    images = COLOURS[labels][..., None, None] + 0.1 * torch.randn(count, 3, 8, 8, generator=generator)
    return images.clamp(0, 1), labels


def model(trained: Constants = IMAGENET, given: Constants = IMAGENET, **fields: object) -> Model:
    return Model(with_normalisation(ByColour(trained), *given).eval(), "colours", (3, 8, 8), 6, **fields)  # type: ignore[arg-type]


def only_finding(check: InputCheck) -> str:
    assert len(check.findings) == 1 and not check.sound, check.findings
    assert "\n" not in check.findings[0]
    return check.findings[0]


def test_right_preprocessing_is_left_alone() -> None:
    images, labels = coloured()
    check = check_input(model(), images, labels, NAMES)
    assert check.sound and not check.findings
    assert check.told() == "source accuracy on 360 calibration images: 100.0 %"
    assert all(abs(mean) < 1 for mean in check.mean) and all(0.5 < deviation < 2 for deviation in check.deviation)
    as_bytes = check_input(model(), (images * 255).round().to(torch.uint8), labels, NAMES)
    assert as_bytes.accuracy == check.accuracy


def test_at_most_512_images_are_judged() -> None:
    assert check_input(model(), *coloured(900), NAMES).told().startswith("source accuracy on 512 calibration images")


def test_shuffled_class_names_and_their_right_order() -> None:
    images, labels = coloured()
    # The names say that output 0 is green: folders then count in another order than the outputs.
    given = ("green", "blue", "red", "yellow", "grey", "black")
    counted = torch.tensor([given.index(NAMES[label]) for label in labels.tolist()])
    check = check_input(model(), images, counted, given)
    assert check.accuracy is not None and 0.4 < check.accuracy < 0.6
    line = only_finding(check)
    assert "the classes are in another order: 100.0 % right instead of" in line
    assert line.endswith("with --classes red,green,blue,yellow,grey,black")


@pytest.mark.parametrize(
    ("trained", "remedy"),
    [
        (IMAGENET, "with --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225"),
        (((0.0,) * 3, (1 / 255,) * 3), "with --mean 0,0,0 --std 0.0039,0.0039,0.0039"),
    ],
)
def test_a_normalisation_that_was_left_out(trained: Constants, remedy: str) -> None:
    check = check_input(model(trained, IDENTITY), *coloured(), NAMES)
    assert check.accuracy is not None and check.accuracy < 0.9
    said = [line for line in check.findings if line.endswith(remedy)]
    assert len(said) == 1 and re.match(r"(9\d|100)\.\d % instead of \d\d\.\d % of 128 images are right", said[0])


def test_blue_before_red() -> None:
    class Reversed(ByColour):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.flip(1))

    swapped = Model(with_normalisation(Reversed(IDENTITY), *IDENTITY).eval(), "bgr", (3, 8, 8), 6)
    assert "with blue as the first channel (BGR)" in only_finding(check_input(swapped, *coloured(), NAMES))


def test_a_size_that_the_network_was_not_trained_at() -> None:
    labels = torch.arange(120) % 3
    columns = torch.arange(32)
    images = torch.stack([((columns // 2 ** int(k)) % 2).float().expand(3, 32, 32) for k in labels])
    images = (0.2 + 0.6 * images + 0.05 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))).clamp(
        0, 1
    )
    right = Model(ByStripe(), "stripes", (3, 32, 32), 3)
    assert check_input(right, images, labels).sound
    enlarged = nn.functional.interpolate(images, (96, 96), mode="bilinear")
    wrong = Model(ByStripe(), "stripes", (3, 96, 96), 3, size_origin="as published")
    check = check_input(wrong, enlarged, labels, original=(32, 32))
    assert check.findings[0].endswith("of 120 images are right with --input-size 32")


def test_near_chance_says_what_is_predicted() -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([0.0, 0, 0, 1, 0, 0]).expand(len(x), 6)

    images, labels = coloured()
    line = only_finding(check_input(Model(Constant(), "constant", (3, 8, 8), 6), images, labels, NAMES))
    assert "near chance" in line and "360 of 360 are class 'yellow'" in line
    assert "check the weights, --input-size, --mean and --std, and the order of --classes" in line


def test_without_labels_the_normalisation_is_judged_by_the_images() -> None:
    images, _ = coloured()
    check = check_input(model(given=((0.0,) * 3, (1 / 255,) * 3)), images)
    assert check.accuracy is None and check.told() == ""
    assert "after the normalisation calibration images have mean" in only_finding(check)
    assert "--mean 0.4" in only_finding(check), "the images' own constants are said"
    assert not check_input(model(), images).findings
    assert not check_input(model(IDENTITY, IDENTITY), images).findings, "the model may normalise itself"
    night = 0.25 * images
    assert not check_input(model(), night).findings


def test_without_labels_enlarged_images_are_told_where_nobody_gave_the_size() -> None:
    images, _ = coloured()
    published = model(size_origin="as published")
    line = only_finding(check_input(published, images, original=(4, 4)))
    assert "calibration images are 4 x 4 and are enlarged to 8 x 8" in line and "--input-size 4" in line
    assert not check_input(published, images, original=(7, 7)).findings
    assert not check_input(published, images, original=(40, 60)).findings
    assert not check_input(model(), images, original=(4, 4)).findings, "the user gave the size"


def test_images_without_a_label_and_labels_beyond_the_classes() -> None:
    images, labels = coloured()
    labels[::2] = -1
    check = check_input(model(), images, labels, NAMES)
    assert check.images == 180 and check.sound
    beyond = check_input(model(), images, torch.where(labels == 5, 6, labels), NAMES)
    assert beyond.findings[0].startswith("calibration images have the label 6, and the network 6 classes")


def test_few_images_and_a_mediocre_network_raise_no_alarm() -> None:
    images, labels = coloured()
    assert check_input(model(), images[:12], labels[:12], NAMES).sound
    half = labels.clone()
    half[::2] = (half[::2] + torch.randint(1, 6, half[::2].shape, generator=torch.Generator().manual_seed(1))) % 6
    check = check_input(model(), images, half, NAMES)
    assert check.accuracy == pytest.approx(0.5) and check.sound
