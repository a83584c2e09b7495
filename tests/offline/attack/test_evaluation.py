"""What is measured of a model, and of two on the same inputs."""

from __future__ import annotations

import json

import torch

from edgetta.offline.attack import PGD, Threat, adversarial_images, classified_right, compare, evaluate
from tests.offline.attack.small_models import images, network, trained

ATTACK = PGD(Threat("linf", 0.04), 8)


def test_evaluation_of_one_model() -> None:
    model = trained(network()).train()
    x, y = images(60, seed=2)
    bytes_ = (x * 255).round().to(torch.uint8)
    dark = {"dark": (x * 0.5, y), "bright": (x * 0.5 + 0.5, y)}
    found = evaluate(model, bytes_, y, ATTACK, corrupted=dark, batch=16)
    assert model.training  # as it was
    model.eval()
    assert torch.equal(found.clean, model(bytes_.float() / 255).argmax(1) == y)
    assert found.robust is not None and bool((found.robust <= found.clean).all())
    assert 0 < int(found.robust.sum()) < int(found.clean.sum())
    assert torch.equal(found.corrupted["dark"], model(x * 0.5).argmax(1) == y)
    written = json.loads(json.dumps(found.to_json()))
    assert written["corrupted"]["images"] == 120 and written["robust"]["low"] < written["robust"]["accuracy"]
    assert set(written["corruptions"]) == {"dark", "bright"}
    assert evaluate(model, x, y).robust is None


def test_two_models_withstand_what_was_found_against_either() -> None:
    first, second = trained(network(seed=0)), trained(network(seed=1), steps=40)
    x, y = images(60, seed=3)
    told: list[tuple[int, int]] = []
    found = compare(first, second, x, y, ATTACK, batch=25, progress=lambda done, total: told.append((done, total)))
    points = [adversarial_images(model, x, y, ATTACK, batch=25) for model in (first, second)]
    for model, measured in ((first, found.first), (second, found.second)):
        expected = classified_right(model, x, y)
        for some in points:
            expected &= classified_right(model, some, y)
        assert measured.robust is not None and torch.equal(measured.robust, expected)
    loss = found.robust_loss()
    assert loss.value == (int(found.first.robust.sum()) - int(found.second.robust.sum())) / 60  # type: ignore[union-attr]
    assert loss.upper() > loss.value and found.clean_loss().count == 60
    assert told[-1] == (120, 120) and told == sorted(told)
    same = compare(first, first, x, y, ATTACK)
    assert same.robust_loss().value == 0
