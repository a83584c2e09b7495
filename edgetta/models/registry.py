"""One name for every model: built-in networks, timm, torchvision, a function in a file, or an exported program.

| name | what |
|---|---|
| `wrn40_2`, `resnet20`, ... | a network of the papers, built here (`model_names()` lists them) |
| `timm:NAME`, `torchvision:NAME` | a network of those libraries |
| `path/file.py:function` | what that function returns. THIS RUNS THE FILE'S CODE: only name files that you trust |
| `path/model.pt2` | a program written by `torch.export.save` |
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgetta.errors import UsageError
from edgetta.models.architectures import Architecture, architecture
from edgetta.models.model import Model
from edgetta.models.normalise import with_normalisation
from edgetta.models.weights import Weights, put_weights, read_weights, without_prefixes


def load_model(
    spec: str,
    *,
    weights: str | Path | None = None,
    num_classes: int | None = None,
    width: float | None = None,
    input_shape: tuple[int, int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    **options: Any,
) -> Model:
    """Build the model that `spec` names, load its weights, and return it in evaluation mode.

    `weights`: `.safetensors`, `.npz` or a checkpoint; without it the weights are random (seed torch before).
    `num_classes`: default what the weights file says, else the published number. `width`: every channel count times
    this (built-in networks only). `input_shape`: channels, height, width. `mean`, `std`: input normalisation per
    channel, for images in [0, 1]; default what the weights file says, else what the network was published with.
    `options` go to the library or function that builds the model.

    Raises UsageError for an unknown name or option, EdgettaError for weights that do not fit.
    """
    if (mean is None) != (std is None):
        raise UsageError("normalisation needs both mean and std, one number of each per channel")
    known = architecture(spec)
    if options:
        raise UsageError(f"{spec} takes no option {', '.join(sorted(options))}")
    loaded = None if weights is None else read_weights(weights)
    classes = num_classes or _classes_in(known, loaded) or known.num_classes
    network = known.build(num_classes=classes, width=known.width * (1.0 if width is None else width))
    constants = known.normalisation
    if loaded is not None:
        loaded = without_prefixes(loaded, network.state_dict())
        spelled = Weights(loaded.source, known.spelling(network, loaded))
        constants = put_weights(network, spelled) or constants
    network = with_normalisation(network, *(constants if mean is None or std is None else (mean, std)))
    source = None if weights is None else str(weights)
    return Model(network.eval(), spec, input_shape or known.input_shape, classes, known.parts, source)


def _classes_in(known: Architecture, loaded: Weights | None) -> int | None:
    """The number of classes of a weights file: the rows of its classifier."""
    endings = tuple(f"{name}.weight" for name in (known.classifier, "fc", "linear"))
    for name, value in () if loaded is None else loaded.tensors.items():
        if value.ndim == 2 and (name in endings or name.endswith(tuple(f".{e}" for e in endings))):
            return int(value.shape[0])
    return None
