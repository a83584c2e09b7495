"""What content explains: the regression, its bounds, and how it travels."""

from __future__ import annotations

import numpy as np
import pytest

from edgetta.adaptation.content import MAX_CODE, ContentModel, fit_content, group_classes

CLASSES, CHANNELS = 4, 6


def source(count: int = 600, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities, means, variances, signals of images whose class moves every channel's mean."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    probabilities = np.full((count, CLASSES), 0.02)
    probabilities[np.arange(count), labels] = 1 - 0.02 * (CLASSES - 1)
    of_class = np.random.default_rng(7).standard_normal((CLASSES, CHANNELS))
    means = of_class[labels] + 0.1 * rng.standard_normal((count, CHANNELS))
    variances = np.exp(0.1 * rng.standard_normal((count, CHANNELS)))
    return probabilities, means, variances, rng.standard_normal((count, 8))


def test_the_usual_content_explains_the_usual_moments() -> None:
    probabilities, means, variances, signals = source()
    model = fit_content(probabilities, means, variances, signals)
    mean, variance = model.explained(model.usual)
    np.testing.assert_allclose(mean, means.mean(0), atol=1e-9)
    np.testing.assert_allclose(variance, variances.mean(0) + means.var(0), rtol=1e-6)


def test_one_class_explains_its_own_moments_and_leaves_the_noise() -> None:
    probabilities, means, variances, signals = source(4000)
    model = fit_content(probabilities, means, variances, signals)
    one = probabilities.argmax(1) == 2
    mean, _ = model.explained(model.code(probabilities[one]).mean(0))
    np.testing.assert_allclose(mean, means[one].mean(0), atol=0.05)
    np.testing.assert_allclose(model.noise_mean, 0.01, rtol=0.3)
    np.testing.assert_allclose(model.noise_variance, 0.01, rtol=1.0)


def test_it_travels_in_half_precision() -> None:
    model = fit_content(*source())
    again = ContentModel.from_arrays(model.arrays(), CHANNELS, CLASSES)
    code = np.array([0.7, 0.1, 0.1, 0.1])
    for a, b in zip(model.explained(code), again.explained(code), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-3)
    assert again.images == 600 and model.arrays()["mean"].dtype == np.float16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("usual"), "not whole"),
        (lambda a: a.update(mean=a["mean"][:, :-1]), "another network"),
        (lambda a: a.update(groups=a["groups"][:-1]), "3 classes, the network of 4"),
        (lambda a: a["noise_mean"].__setitem__(0, np.nan), "not finite"),
        (lambda a: a["noise_mean"].__setitem__(0, -1), "negative variance"),
        (lambda a: a["groups"].__setitem__(0, 9), "code of another size"),
    ],
)
def test_a_model_of_another_network_or_damaged_is_refused(change, message: str) -> None:  # type: ignore[no-untyped-def]
    arrays = fit_content(*source()).arrays()
    change(arrays)
    with pytest.raises(ValueError, match=message):
        ContentModel.from_arrays(arrays, CHANNELS, CLASSES)


def test_too_few_images_or_such_that_are_not_finite_are_refused() -> None:
    probabilities, means, variances, signals = source(10)
    with pytest.raises(ValueError, match="not 1"):
        fit_content(probabilities[:1], means[:1], variances[:1], signals[:1])
    means[3, 2] = np.inf
    with pytest.raises(ValueError, match="not finite"):
        fit_content(probabilities, means, variances, signals)


def test_few_images_explain_less() -> None:
    probabilities, means, variances, signals = source(40)
    few = fit_content(probabilities, means, variances, signals)
    many = fit_content(*source(4000))
    one = np.eye(CLASSES)[1]
    usual_few, usual_many = few.explained(few.usual)[0], many.explained(many.usual)[0]
    assert np.abs(few.explained(one)[0] - usual_few).sum() < np.abs(many.explained(one)[0] - usual_many).sum()


def test_many_classes_share_groups_of_what_is_confused() -> None:
    rng = np.random.default_rng(0)
    classes = 3 * MAX_CODE
    probabilities = np.full((2000, classes), 1e-6)
    for row, label in zip(probabilities, rng.integers(0, classes, 2000), strict=True):
        family = label % MAX_CODE
        row[family::MAX_CODE] = 0.15
        row[label] = 0.7
    groups = group_classes(probabilities / probabilities.sum(1, keepdims=True))
    assert groups.shape == (classes,) and groups.max() < MAX_CODE
    assert np.bincount(groups).max() <= 3
    alike = np.mean([len(set(groups[f::MAX_CODE])) == 1 for f in range(MAX_CODE)])
    assert alike > 0.7
    assert np.array_equal(group_classes(np.ones((5, 10))), np.arange(10))
