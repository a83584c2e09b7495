"""What pictures go through before they are the network's input, said the same way by every verb."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgetta.export.input_check import InputCheck
    from edgetta.models import Model


def preprocessing_of(model: Model) -> dict[str, Any]:
    """What a bundle's manifest says of it: the resizing, and the mean and deviation inside the model."""
    from edgetta.models.normalise import normalisation_of

    mean, std = normalisation_of(model.module)
    return {**model.resize.to_json(), "mean": list(mean), "std": list(std)}


def input_facts(
    preprocessing: Mapping[str, Any], input_shape: tuple[int, int, int], said: str = ""
) -> list[tuple[str, str]]:
    """Lines for people: size, resizing, normalisation.

    Args:
        preprocessing: of the manifest.
        input_shape: (C, H, W).
        said: where the size comes from.
    """
    from edgetta.sources.resize import Resize

    channels, height, width = input_shape
    kind = {1: "grey", 3: "RGB"}.get(channels, f"{channels} channels")
    origin = f" ({said})" if said else ""
    resize = Resize.from_json(preprocessing, (height, width))
    return [
        ("input", f"{channels} x {height} x {width}, {kind} in [0, 1]{origin}"),
        ("resize", resize.told()),
        ("normalisation", _normalisation(preprocessing)),
    ]


def _normalisation(preprocessing: Mapping[str, Any]) -> str:
    mean, std = preprocessing.get("mean"), preprocessing.get("std")
    if not isinstance(mean, Sequence) or not isinstance(std, Sequence):
        return str(preprocessing.get("normalisation", "not known"))
    if set(mean) == {0.0} and set(std) == {1.0}:
        return "none is known; the model may do its own"
    return f"mean {_listed(mean)}, deviation {_listed(std)}, in the model"


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{round(value, 4):g}" for value in values)


def tell(check: InputCheck, show: bool) -> None:
    """Print what calibration images say of the input; what is probably wrong is said in any case."""
    from edgetta.cli.tables import print_line

    if show and check.accuracy is not None:
        print_line(check.told())
    for finding in check.findings:
        print_line(f"warning: {finding}", style="yellow", stderr=True)
