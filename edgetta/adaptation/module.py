"""`edgetta.adapt`: a torch module that adapts on every forward, without any export. For research."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from edgetta.adaptation.adapter import Adapter, StepResult
from edgetta.adaptation.config import AdaptConfig, BatchNorm
from edgetta.adaptation.state import restored_state
from edgetta.adaptation.step_plan import KEEP, StepPlan
from edgetta.engines.torch import TorchEngine
from edgetta.errors import UsageError

if TYPE_CHECKING:
    from edgetta.offline.network import Network


class AdaptedModule(nn.Module):
    """A drop-in classifier: `module(images)` returns logits (N, classes) and adapts.

    `last` is the `StepResult` of the latest forward, in numpy; `adapter.state` is all that changes, and `reset()` goes
    back to its start. `state_dict()` holds it, as extra state: plain tensors, read without unpickling objects.
    """

    def __init__(
        self, network: Network, config: AdaptConfig, plan: StepPlan = KEEP, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__()
        self.network = network
        self.config = config
        self.plan = plan
        self.device = torch.device(device)
        self.adapter = Adapter(TorchEngine(network.programs, device=self.device), config, network.content)
        self.last: StepResult | None = None

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return self.network.programs.input_shape

    def forward(self, images: Tensor) -> Tensor:
        """Raises `UsageError` for images of another shape than (N, *input_shape), or that are no floats."""
        if images.dim() != 4 or tuple(images.shape[1:]) != self.input_shape:
            raise UsageError(
                f"images have shape {tuple(images.shape)}; the model was derived for (N, "
                f"{', '.join(map(str, self.input_shape))}): give `input_shape` to `adapt`, or resize the images"
            )
        if not images.is_floating_point():
            raise UsageError(f"images are {images.dtype}; give floats in [0, 1], which bytes become by / 255")
        self.last = self.adapter.step(images.detach().cpu().float().numpy(), self.plan)
        return torch.from_numpy(self.last.logits).to(images.device)

    def get_extra_state(self) -> dict[str, Tensor]:
        """All that was learnt, by name: parameters, momentum, statistics, the window, counters."""
        return {name: torch.tensor(array) for name, array in self.adapter.state.arrays().items()}

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        """Put back what `get_extra_state` returned; raises `ValueError` where it is another network's."""
        arrays = {name: tensor.detach().cpu().numpy() for name, tensor in state.items()}
        self.adapter.state = restored_state(arrays, self.adapter.state, self.adapter.normaliser)

    def reset(self) -> None:
        """Forget everything learnt: weights, statistics, momentum and the window."""
        self.adapter.state = self.adapter.begin()
        self.last = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AdaptedModule:
        """What `to`, `cuda` and `cpu` do: the programs move; they stay in float32."""
        super()._apply(fn, recurse)
        device = fn(torch.empty(0, device=self.device)).device
        if device != self.device:
            state, self.device = self.adapter.state, device
            engine = TorchEngine(self.network.programs, device=device)
            self.adapter = Adapter(engine, self.config, self.network.content)
            self.adapter.state = state
        return self


def adapt(
    model: nn.Module,
    parts: Sequence[str] | int = 4,
    *,
    input_shape: tuple[int, int, int] = (3, 32, 32),
    source_images: Tensor | Iterable[Tensor] | None = None,
    config: AdaptConfig | None = None,
    batch_norm: BatchNorm | None = None,
    plan: StepPlan = KEEP,
    device: torch.device | str = "cpu",
    seed: int = 0,
    **options: Any,
) -> AdaptedModule:
    """Wrap `model` (eval mode, images (N, C, H, W) in [0, 1] -> logits) so that it adapts to what it sees.

    parts          module names after which the model is cut (the stem's end first), or how many parts to make
    source_images  images (N, C, H, W), or batches of them, for the source statistics of the meta-networks, and for
                   what content explains of the network's moments; synthetic ones serve for the first when there are
                   none, and nothing for the second: then statistics follow the stream less readily
    batch_norm     in place of the configured one; "source" also folds the BatchNorms of the frozen parts
    plan           what a step may use of memory
    options        go to `edgetta.export.derive.derive` (kernel, initialisation, adapt)
    Raises `TraceError` or `UsageError` naming what stands in the way.
    """
    from dataclasses import replace

    from edgetta.export.content import measure_content
    from edgetta.export.derive import derive
    from edgetta.offline.network import Network
    from edgetta.offline.source_statistics import batches_of, with_source_statistics

    cuts, count = (None, parts) if isinstance(parts, int) else (tuple(parts), 4)
    if count < 1:
        raise UsageError(f"parts must be at least 1, not {count}")
    if batch_norm is not None and batch_norm not in get_args(BatchNorm):
        raise UsageError(f"unknown BatchNorm policy {batch_norm!r}; choose one of {', '.join(get_args(BatchNorm))}")
    config = config or AdaptConfig()
    if batch_norm is not None:
        config = replace(config, batch_norm=batch_norm)
    form: Literal["adaptive", "source"] = "source" if batch_norm == "source" else "adaptive"
    network = Network(derive(model, input_shape, cuts, count, form, seed=seed, **options).programs)
    batches = None
    if source_images is not None:
        batches = list(batches_of(source_images, 64) if isinstance(source_images, Tensor) else source_images)
    network = with_source_statistics(network, batches)
    if batches is not None and sum(map(len, batches)) > 1:
        network = replace(network, content=measure_content(network.programs, batches))
    return AdaptedModule(network, config, plan, device)
