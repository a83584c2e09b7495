"""The loss surface whose curvature is measured: a model, a loss, the parameters that move, and a BatchNorm policy."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from edgetta.errors import UsageError
from edgetta.offline.curvature.errors import NotFiniteError

BatchNormPolicy = Literal["source", "batch"]
Loss = Callable[[Any, Any], Tensor]
ParameterChoice = str | Sequence[str | nn.Parameter]


class LossSurface:
    """A loss as a function of some parameters of a model, evaluated without leaving a trace on the model.

    Every module runs in evaluation mode (no dropout) except BatchNorm under the "batch" policy. Modes are put back
    exactly, buffers are never written (the pass works on copies), and the parameters' `requires_grad` flags and `grad`
    fields are not touched. The surface always sees the current values of the parameters, so one surface serves a whole
    training run. Autocast and TF32 are switched off inside: noise of 1e-3 in the products ruins small eigenvalues.

    Args:
        model: called as `model(inputs)`, or `model(*inputs)` where the inputs are a tuple.
        loss: `loss(outputs, targets)` returns a scalar: the mean over the samples of the batch. Targets are None for
            data without labels.
        parameters: "all"; "trainable" (those with `requires_grad`); the name of a module or of a parameter; or a list
            of names and parameters.
        batch_norm: "source": the stored statistics; "batch": those of the current batch, differentiated through. The
            loss of a batch is then not a mean of losses of samples.
        separable: False for a loss that is no mean over samples (one that drops samples, for instance): batches are
            then never split.

    Raises:
        UsageError: a name is unknown, nothing is chosen, a parameter is not float32 or float64, or a BatchNorm
            without stored statistics under the "source" policy.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        *,
        parameters: ParameterChoice = "all",
        batch_norm: BatchNormPolicy = "source",
        separable: bool = True,
    ) -> None:
        self.model = model
        self.loss = loss
        self.batch_norm = batch_norm
        self.separable = separable
        self.parameters = select_parameters(model, parameters)
        self.normalisations = _normalisations(model, batch_norm)
        self.splittable = separable and not (batch_norm == "batch" and self.normalisations)
        first = next(iter(self.parameters.values()))
        for name, parameter in self.parameters.items():
            if parameter.dtype not in (torch.float32, torch.float64):
                raise UsageError(f"parameter {name} is {parameter.dtype}; curvature needs float32: call model.float()")
            if parameter.dtype != first.dtype or parameter.device != first.device:
                raise UsageError(
                    f"parameter {name} is {parameter.dtype} on {parameter.device}, others {first.dtype} on "
                    f"{first.device}; give all chosen parameters one type and one device"
                )
        self.dtype, self.device = first.dtype, first.device
        self.dimension = sum(parameter.numel() for parameter in self.parameters.values())

    def on(self, model: nn.Module) -> LossSurface:
        """The same surface over another model of the same structure, such as a copy."""
        return LossSurface(
            model, self.loss, parameters=list(self.parameters), batch_norm=self.batch_norm, separable=self.separable
        )

    def leaves(self) -> tuple[Tensor, ...]:
        """The chosen parameters as fresh leaves of a graph; they share memory with the model."""
        return tuple(parameter.detach().requires_grad_(True) for parameter in self.parameters.values())

    def outputs(self, leaves: Sequence[Tensor], inputs: Any) -> Any:
        """`model(inputs)` with the chosen parameters replaced by `leaves`; only inside `evaluation()`."""
        state: dict[str, Tensor] = {name: value.detach() for name, value in self.model.named_parameters()}
        state.update({name: value.detach().clone() for name, value in self.model.named_buffers()})
        state.update(zip(self.parameters, leaves, strict=True))
        return functional_call(self.model, state, inputs if isinstance(inputs, tuple) else (inputs,))

    def value(self, outputs: Any, targets: Any) -> Tensor:
        """The checked scalar loss of a batch.

        Raises:
            UsageError: the loss is no scalar.
            NotFiniteError: the loss is NaN or infinite.
        """
        loss = self.loss(outputs, targets)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            what = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise UsageError(f"the loss returned {what} instead of a scalar tensor; take the mean over the batch")
        if not torch.isfinite(loss):
            raise NotFiniteError(
                f"the loss is {loss.item()}: curvature means nothing there; check the data and its normalisation, or "
                "take a checkpoint from before training diverged"
            )
        return loss.reshape(())

    def flatten(self, parts: Sequence[Tensor | None]) -> Tensor:
        """One vector [P] from one tensor per parameter; None counts as zeros."""
        pieces = [
            parameter.new_zeros(parameter.numel()) if part is None else part.flatten()
            for part, parameter in zip(parts, self.parameters.values(), strict=True)
        ]
        return torch.cat(pieces).detach()

    def unflatten(self, vector: Tensor) -> tuple[Tensor, ...]:
        """Views of a vector [P], one per parameter, in its shape."""
        sizes = [parameter.numel() for parameter in self.parameters.values()]
        return tuple(
            part.view(parameter.shape)
            for part, parameter in zip(vector.split(sizes), self.parameters.values(), strict=True)
        )

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Modes set by the policy, gradients on, exact arithmetic; all put back on the way out."""
        modes = [(module, module.training) for module in self.model.modules()]
        tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        with ExitStack() as stack:
            stack.enter_context(torch.enable_grad())
            stack.enter_context(torch.autocast(self.device.type, enabled=False))
            stack.enter_context(_attention_that_can_be_differentiated_twice())
            try:
                torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
                for module, _ in modes:
                    module.training = False
                if self.batch_norm == "batch":
                    for module in self.normalisations:
                        module.training = True
                yield
            finally:
                for module, mode in modes:
                    module.training = mode
                torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32

    def digest(self) -> str:
        """A short fingerprint of the model's state, the chosen parameters and the policy."""
        digest = hashlib.sha256(f"{self.batch_norm} {list(self.parameters)}".encode())
        for name, value in self.model.state_dict().items():
            if isinstance(value, Tensor):
                digest.update(name.encode())
                digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]


def select_parameters(model: nn.Module, choice: ParameterChoice) -> dict[str, nn.Parameter]:
    """The parameters of `model` that `choice` names (see `LossSurface`), in the model's order.

    Raises:
        UsageError: a name is unknown, a parameter is not the model's, or nothing is chosen.
    """
    named = dict(model.named_parameters())
    if choice == "all":
        chosen = set(named)
    elif choice == "trainable":
        chosen = {name for name, parameter in named.items() if parameter.requires_grad}
    else:
        chosen = set()
        for item in [choice] if isinstance(choice, str) else choice:
            chosen |= _matching(model, named, item)
    if not chosen:
        raise UsageError(f"no parameter is chosen by {choice!r}; the model has {len(named)}: name some of them")
    return {name: parameter for name, parameter in named.items() if name in chosen}


def _matching(model: nn.Module, named: dict[str, nn.Parameter], item: str | nn.Parameter) -> set[str]:
    if isinstance(item, nn.Parameter):
        found = {name for name, parameter in named.items() if parameter is item}
        if not found:
            raise UsageError(f"a parameter of shape {tuple(item.shape)} in the list is not one of the model's")
        return found
    if item in named:
        return {item}
    modules = dict(model.named_modules())
    if item and item in modules:
        own = {id(parameter) for parameter in modules[item].parameters()}
        found = {name for name, parameter in named.items() if id(parameter) in own}
        if not found:
            raise UsageError(f"module {item!r} has no parameters; choose another one")
        return found
    some = ", ".join(name for name, _ in model.named_children()) or ", ".join(list(named)[:5])
    raise UsageError(f"the model has no module or parameter named {item!r}; its first level is: {some}")


def _normalisations(model: nn.Module, policy: str) -> list[nn.Module]:
    if policy not in ("source", "batch"):
        raise UsageError(f"BatchNorm policy {policy!r} is unknown; choose 'source' or 'batch'")
    found: list[nn.Module] = []
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            if policy == "source" and module.running_mean is None:
                raise UsageError(
                    f"BatchNorm {name!r} stores no statistics, so the 'source' policy cannot be used; choose 'batch'"
                )
            found.append(module)
    return found


def _attention_that_can_be_differentiated_twice() -> Any:
    """The fused attention kernels have no second derivative; the plain one has."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel(SDPBackend.MATH)


def to_device(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Move tensors, also inside tuples, lists and dicts; floating-point ones take the surface's type.

    Raises:
        UsageError: a batch holds something else.
    """
    if isinstance(value, Tensor):
        return value.to(device, dtype if value.is_floating_point() else None, non_blocking=True)
    if isinstance(value, (tuple, list)):
        return type(value)(to_device(item, device, dtype) for item in value)
    if isinstance(value, dict):
        return {key: to_device(item, device, dtype) for key, item in value.items()}
    if value is None:
        return None
    raise UsageError(f"a batch holds {type(value).__name__}; only tensors, tuples, lists and dicts are read")
