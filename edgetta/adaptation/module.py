"""`edgetta.adapt`: a torch module that adapts on every forward, without any export. For research."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from edgetta.adaptation.model import Gradient, build, check_choices
from edgetta.adaptation.network import AdaptiveNetwork, BatchNorm
from edgetta.adaptation.step_memory import FULL, StepMemory
from edgetta.errors import UsageError
from edgetta.segmented.adapter import AdaptConfig, Adapter, StepResult
from edgetta.segments.contract import GradientMode, SegmentGraphs
from edgetta.segments.torch_engine import TorchSegment


class AdaptedModule(nn.Module):
    """A drop-in classifier: `module(images)` returns logits (N, classes) and adapts.

    `last` is the `StepResult` of the latest forward; `reset()` goes back to the start. `state_dict()` holds everything
    learnt but momentum and the window, what lies in frozen segments as extra state.
    """

    def __init__(self, network: AdaptiveNetwork, config: AdaptConfig, input_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.metas = network.metas
        self.network = network
        self.config = config
        self.input_shape = input_shape
        self.adapter = Adapter(network, config)
        self.last: StepResult | None = None
        self._start = {name: tensor.clone() for name, tensor in network.state_dict().items()}

    def forward(self, images: Tensor) -> Tensor:
        """Raises `UsageError` for images of another shape than (N, *input_shape), or that are no floats."""
        if images.dim() != 4 or tuple(images.shape[1:]) != self.input_shape:
            raise UsageError(
                f"images have shape {tuple(images.shape)}; the model was derived for (N, "
                f"{', '.join(map(str, self.input_shape))}): give `input_shape` to `adapt`, or resize the images"
            )
        if not images.is_floating_point():
            raise UsageError(f"images are {images.dtype}; give floats in [0, 1], which bytes become by / 255")
        self.last = self.adapter.step(images.detach().float())
        return self.last.logits

    def get_extra_state(self) -> dict[str, Tensor]:
        """Running statistics and adapted biases of the frozen segments."""
        return {name: t.clone() for name, t in self.network.state_dict().items() if not name.startswith("metas.")}

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        """Put back what `get_extra_state` returned; raises `ValueError` where it is another network's."""
        metas = {name: t for name, t in self.network.state_dict().items() if name.startswith("metas.")}
        self.network.load_state_dict({**metas, **state})

    def reset(self) -> None:
        """Forget everything learnt: weights, statistics, momentum and the window."""
        self.network.load_state_dict(self._start)
        self.adapter = Adapter(self.network, self.config)


def adapt(
    model: nn.Module,
    parts: Sequence[str] | int = 4,
    *,
    input_shape: tuple[int, int, int] = (3, 32, 32),
    source_images: Tensor | Iterable[Tensor] | None = None,
    config: AdaptConfig | None = None,
    gradient: Gradient = "auto",
    batch_norm: BatchNorm = "auto",
    memory: StepMemory = FULL,
    device: torch.device | str = "cpu",
    seed: int = 0,
    **options: Any,
) -> AdaptedModule:
    """Wrap `model` (eval mode, images (N, C, H, W) in [0, 1] -> logits) so that it adapts to what it sees.

    parts          module names after which the model is cut (the stem's end first), or how many parts to make
    source_images  images (N, C, H, W), or batches of them, for the source statistics of the meta-networks; synthetic
                   ones serve when there are none
    memory         what a step keeps between forward and backward
    options        go to `edgetta.export.derive.derive` (kernel, initialisation, adapt)
    Raises `TraceError` or `UsageError` naming what stands in the way.
    """
    from edgetta.export.derive import derive
    from edgetta.offline.source_statistics import batches_of, set_source_statistics

    cuts, count = (None, parts) if isinstance(parts, int) else (tuple(parts), 4)
    if count < 1:
        raise UsageError(f"parts must be at least 1, not {count}")
    check_choices(gradient, batch_norm)
    form: Literal["adaptive", "source"] = "source" if batch_norm == "source" else "adaptive"
    derived = derive(model, input_shape, cuts, count, form, **options)

    def make_segment(name: str, graphs: SegmentGraphs, mode: GradientMode) -> TorchSegment:
        return TorchSegment(graphs, mode, device)

    network = build(derived, make_segment, gradient, batch_norm, seed, memory)
    network.metas.to(device)
    batches = batches_of(source_images, 64) if isinstance(source_images, Tensor) else source_images
    set_source_statistics(network, batches, input_shape)
    return AdaptedModule(network, config or AdaptConfig(), input_shape)
