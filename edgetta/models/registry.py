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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetta.errors import EdgettaError, UsageError
from edgetta.models.architectures import ARCHITECTURES, Architecture, architecture
from edgetta.models.checkpoint_settings import CheckpointSettings
from edgetta.models.model import Model
from edgetta.models.normalise import with_normalisation
from edgetta.models.probe import answer, probe
from edgetta.models.weights import Weights, classes_of, put_weights, read_weights, without_prefixes
from edgetta.models.wrappers import answering_logits
from edgetta.sources.resize import Interpolation, Policy, Resize

LIBRARIES = ("timm:", "torchvision:")
_SMALL = 64
"""Up to this side, a network for 32x32 images is what one wants."""
_LARGE = 160
"""Inputs from this side on are cut out of larger pictures, as published."""


def load_model(
    spec: str,
    *,
    weights: str | Path | None = None,
    num_classes: int | None = None,
    width: float | None = None,
    input_shape: tuple[int, int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    resize: Policy | None = None,
    short_side: int | None = None,
    interpolation: Interpolation | None = None,
    fill: tuple[int, int, int] | None = None,
    **options: Any,
) -> Model:
    """Build the model that `spec` names, load its weights, and return it in evaluation mode.

    `weights`: `.safetensors`, `.npz` or a checkpoint; without it the weights are random (seed torch before).
    `num_classes`: default what the weights file says, else the published number. `width`: every channel count times
    this (built-in networks only). `input_shape`: channels, height, width; default what the checkpoint's training
    arguments say, else the published one. `mean`, `std`: input normalisation per channel, for images in [0, 1];
    default what the weights file says, else what the network was published with. `resize`, `short_side`,
    `interpolation`, `fill`: how pictures become the input (`edgetta.sources.resize.Resize`); default as published.
    `options` go to the library or function that builds the model.

    Raises UsageError for an unknown name or option, MissingDependencyError for a library that is not there,
    EdgettaError for weights that do not fit and for what the model's own source raises.
    """
    if (mean is None) != (std is None):
        raise UsageError("normalisation needs both mean and std, one number of each per channel")
    if num_classes is not None and num_classes < 2:
        raise UsageError(f"a classifier has at least 2 classes, not {num_classes}")
    if input_shape is not None and (len(input_shape) != 3 or min(input_shape) < 1):
        raise UsageError(f"input_shape is channels, height, width, not {tuple(input_shape)}")
    constants = None if mean is None or std is None else (mean, std)
    settings = _Settings(weights, num_classes, input_shape, constants, (resize, short_side, interpolation, fill))
    if spec.startswith(LIBRARIES) or spec.endswith((".pt2", ".py")) or ".py:" in spec:
        if width is not None:
            raise UsageError(f"width narrows built-in networks only, not {spec}")
        return _foreign(spec, settings, options)
    if options:
        raise UsageError(f"{spec} takes no option {', '.join(sorted(options))}")
    return _built_in(spec, settings, width)


@dataclass(frozen=True)
class _Settings:
    weights: str | Path | None
    num_classes: int | None
    input_shape: tuple[int, int, int] | None
    constants: tuple[Sequence[float], Sequence[float]] | None  # mean and std
    resize: tuple[Policy | None, int | None, Interpolation | None, tuple[int, int, int] | None]

    def shape_of(
        self, loaded: Weights | None, known: tuple[int, int, int] | None, said: str
    ) -> tuple[tuple[int, int, int] | None, str]:
        """(channels, height, width) and who says so: the user, the checkpoint, or the network's own source."""
        if self.input_shape is not None:
            return self.input_shape, "given"
        if loaded is not None and loaded.settings.input_size is not None:
            return (3 if known is None else known[0], *loaded.settings.input_size), "of the checkpoint's arguments"
        return known, said

    def resize_to(self, size: tuple[int, int], loaded: Weights | None, published: Resize | None) -> Resize:
        """How pictures become the input: as asked, as the checkpoint says, as published at the published size."""
        published = published or Resize(size)
        said = CheckpointSettings() if loaded is None else loaded.settings
        policy, short_side, interpolation, fill = self.resize
        if policy is None:
            policy = "crop" if said.short_side is not None else published.policy
        if short_side is None and policy != "pad":
            if said.short_side is not None and said.input_size == size:
                short_side = said.short_side
            elif policy == published.policy and published.size == size:
                # At another size nobody says how much of the picture was cut off: all of the short side stays.
                short_side = published.short_side
        return Resize(
            size,
            policy,
            short_side,
            interpolation or said.interpolation or published.interpolation,  # type: ignore[arg-type]
            published.fill if fill is None else fill,
        )

    @property
    def source(self) -> str | None:
        return None if self.weights is None else str(self.weights)


def _built_in(spec: str, settings: _Settings, width: float | None) -> Model:
    known = architecture(spec)
    if width is not None and not 0 < width <= 16:
        raise UsageError(f"width multiplies every channel count: between 0 and 16, not {width}")
    loaded = None if settings.weights is None else read_weights(settings.weights)
    _check_size(spec, loaded)
    classes = settings.num_classes or _classes_in(known, loaded) or known.num_classes
    network = known.build(num_classes=classes, width=known.width * (1.0 if width is None else width))
    published = None
    if loaded is not None:
        loaded = without_prefixes(loaded, network.state_dict())
        published = put_weights(network, Weights(loaded.source, known.spelling(network, loaded)))
    said = None if loaded is None else loaded.settings.constants
    network = with_normalisation(network, *(settings.constants or published or said or known.normalisation))
    shape, size_origin = settings.shape_of(loaded, known.input_shape, "as published")
    assert shape is not None
    if shape != known.input_shape:
        probe(network.eval(), spec, shape)
    return Model(
        network.eval(),
        spec,
        shape,
        classes,
        known.parts,
        settings.source,
        origin=settings.source,
        size_origin=size_origin,
        to_size=settings.resize_to(shape[1:], loaded, _published_resize(known)),
        notes=(_for_small_images(spec),) if _large_namesake(spec) and min(shape[1:]) > _SMALL else (),
    )


def _large_namesake(spec: str) -> str | None:
    """What the ImageNet network of the same name is called, where a built-in one is for 32x32 images."""
    other = f"{spec}_imagenet"
    return other if other in ARCHITECTURES else None


def _for_small_images(spec: str) -> str:
    return (
        f"{spec} is the network for 32x32 images, whose first stage keeps that size; the one for 224x224 is "
        f"{_large_namesake(spec)}, torchvision:{spec} or timm:{spec}"
    )


def _check_size(spec: str, loaded: Weights | None) -> None:
    """Raise `EdgettaError` where the weights are those of the ImageNet network of the same name: its stem is 7x7."""
    stems = [] if loaded is None else [t for n, t in loaded.tensors.items() if n.endswith("conv1.weight")]
    if loaded is not None and _large_namesake(spec) and any(tuple(stem.shape[2:]) == (7, 7) for stem in stems):
        raise EdgettaError(f"weights {loaded.source} are those of another network: {_for_small_images(spec)}")


def _published_resize(known: Architecture) -> Resize | None:
    """Networks for large pictures are evaluated on centres, seven eighths of the short side; small pictures whole."""
    size = known.input_shape[1:]
    return Resize(size, "crop", min(size) * 8 // 7) if min(size) >= _LARGE else None


def _foreign(spec: str, settings: _Settings, options: dict[str, Any]) -> Model:
    from edgetta.models.foreign import build

    # The file comes first: building may take long.
    loaded = None if settings.weights is None else read_weights(settings.weights)
    built = build(spec, settings.num_classes, options)
    published = None
    if loaded is not None:
        loaded = without_prefixes(loaded, built.module.state_dict())
        classes = None if settings.num_classes or not spec.startswith(LIBRARIES) else classes_of(loaded, built.module)
        if classes is not None:
            built = build(spec, classes, options)
        published = put_weights(built.module, loaded)
    network = built.module
    trained = None if loaded is None else loaded.settings.constants
    constants = settings.constants or published or trained or built.constants
    if constants is not None:
        network = with_normalisation(network, *constants)
    shape, size_origin = settings.shape_of(loaded, built.input_shape, built.size_origin)
    if shape is None:
        raise UsageError(
            f"{spec} does not say what images it takes: give input_shape as channels, height, width "
            "(--input-size 3x224x224)"
        )
    said = answer(network.eval(), spec, shape)
    classes, notes = int(said.shape[1]), built.notes
    if settings.num_classes not in (None, classes):
        raise UsageError(f"{spec} answers with {classes} classes, not {settings.num_classes}")
    if answering_logits(network, said):
        notes = (*notes, f"{spec} answers with probabilities; their logarithms are taken as logits")
    return Model(
        network,
        spec,
        shape,
        classes,
        built.parts,
        settings.source,
        notes,
        origin=settings.source or built.origin,
        remedy=built.remedy,
        size_origin=size_origin,
        to_size=settings.resize_to(shape[1:], loaded, built.resize),
    )


def _classes_in(known: Architecture, loaded: Weights | None) -> int | None:
    """The number of classes of a weights file: the rows of its classifier."""
    endings = tuple(f"{name}.weight" for name in (known.classifier, "fc", "linear"))
    for name, value in () if loaded is None else loaded.tensors.items():
        if value.ndim == 2 and (name in endings or name.endswith(tuple(f".{e}" for e in endings))):
            return int(value.shape[0])
    return None
