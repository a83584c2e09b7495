"""The errors of one network's derived gradients, part by part, and how large they may be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from edgetta.bench.exactness.reference import PartReference, randomise, reference, relative_error
from edgetta.bench.exactness.segments import (
    derive,
    gradient_in_float64,
    gradient_of,
    gradient_with_imposed,
    parameter_name,
    residuals_in_float64,
    segment,
)
from edgetta.export.batch_norm import Adapt, BatchNormPolicy
from edgetta.export.cut import CutModel, cut
from edgetta.export.recipe import DEFAULT_PARTS, Recipe, load
from edgetta.export.trace import trace
from edgetta.segments.contract import GradientMode, SegmentGraphs

FLOAT64, IMPOSED, OWN_MASKS, ROUNDED = 1e-10, 1e-5, 2e-3, 2e-2
"""Relative L2 errors allowed: derived graphs in float64; float32 from given residuals; float32 with the engine's own
masks, of which a few per ten million fall on the other side of zero; and with smooth activations, whose derivatives
are kept in eight bits.

One flipped element of a map of n changes the gradient by about the n-th part's root, more where it is large: above
`OWN_MASKS` in small maps and in parts of dozens of layers. There `Row.flip_error` gives the scale, and
`Row.given_error` shows that nothing but the flips is behind it."""
MAX_FLIPPED = 3, 1e-6
"""Mask elements that may differ from float64's: so many, and this share of all."""
_WORST_FLIP = 8  # times the usual effect of a flipped element

MOMENTUM = 0.3  # of running statistics under `ema`, so that neither the old nor the new ones count alone
POLICIES: tuple[BatchNormPolicy, ...] = ("source", "batch", "ema")
GRADIENTS: tuple[GradientMode, ...] = ("exact", "recompute")
ENGINES = ("torch", "onnxruntime")


@dataclass(frozen=True)
class Row:
    """Relative L2 errors against autograd of one part, "part1" ... "partK" or "classifier"."""

    network: str
    part: str
    policy: str
    gradient: str
    adapt: Adapt
    engine: str
    float64_error: float  # of grad_x, derived graphs in float64 on the torch engine
    bias_error: float | None  # of the worst bias gradient, in float64; None where they do not adapt
    output_error: float  # of y in float32
    imposed_error: float | None  # of grad_x in float32 from the residuals of float64; None for recompute
    given_error: float | None  # of grad_x in float32, given the residuals that the engine itself made; the same
    own_masks_error: float  # of grad_x in float32
    masks: int  # mask elements
    flipped: int  # of these, how many differ from float64's
    flip_error: float  # error that these usually make: root of the sum over maps of flipped / elements
    rounded: bool  # whether smooth activations kept their derivatives in eight bits

    def excess(self) -> str:
        """What exceeds its tolerance, "" where nothing does."""
        limits = {
            "float64_error": FLOAT64,
            "bias_error": FLOAT64,
            "output_error": IMPOSED,
            "imposed_error": IMPOSED,
            "given_error": IMPOSED,
            "own_masks_error": max(ROUNDED if self.rounded else OWN_MASKS, _WORST_FLIP * self.flip_error),
            "flipped": MAX_FLIPPED[0] + MAX_FLIPPED[1] * self.masks,
        }
        for name, limit in limits.items():
            error = getattr(self, name)
            if error is not None and not error <= limit:
                return (
                    f"{self.network} {self.part}, policy {self.policy}, {self.gradient}, {self.engine}: "
                    f"{name} is {error:.1e}, at most {limit:.1e} allowed"
                )
        return ""


def worst(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """As rows of the result file, parts taken together: the largest errors (three digits), sums of mask elements, and
    what exceeds its tolerance first ("excess", "" where nothing does)."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.network, row.policy, row.gradient, row.adapt, row.engine), []).append(row)
    found = []
    for members in groups.values():
        first = asdict(members[0])
        for name in [name for name in first if name.endswith("_error")]:
            errors = [value for row in members if (value := getattr(row, name)) is not None]
            first[name] = float(f"{max(errors):.2e}") if errors else None
        first |= {name: sum(getattr(row, name) for row in members) for name in ("masks", "flipped")}
        first["rounded"] = any(row.rounded for row in members)
        first["excess"] = next((row.excess() for row in members if row.excess()), "")
        first["part"] = len(members)
        found.append({"parts" if name == "part" else name: value for name, value in first.items()})
    return found


def measure(
    name: str,
    recipe: Recipe,
    policies: Sequence[BatchNormPolicy] = POLICIES,
    engines: Sequence[str] = ENGINES,
    batch: int = 4,
) -> Iterator[Row]:
    """The rows of one network with random weights and BatchNorms away from their start, on random images.

    Policies that need BatchNorms are left out where the network has none. Every policy is measured in both gradient
    modes; the last one also with adaptable biases.
    """
    model = load(recipe)
    network = randomise(model.module).eval()
    cuts = None if model.parts is None else model.parts.cuts(recipe.parts)
    pieces = cut(trace(network, model.input_shape), cuts, recipe.parts or DEFAULT_PARTS)
    images = torch.rand(batch, *model.input_shape, generator=torch.Generator().manual_seed(0))
    normalised = any(n.op == "BatchNormalization" for g in (pieces.stem, *pieces.parts) for n in g.nodes)
    chosen = [policy for policy in policies if normalised or policy == "source"]
    for policy in chosen:
        wanted = reference(network, pieces.names, images, policy, MOMENTUM, biases=policy == chosen[-1])
        yield from _of_policy(name, pieces, policy, "meta", wanted, engines)
        if policy == chosen[-1]:
            yield from _of_policy(name, pieces, policy, "bias", wanted, engines)


def _of_policy(
    name: str,
    pieces: CutModel,
    policy: BatchNormPolicy,
    adapt: Adapt,
    wanted: Sequence[PartReference],
    engines: Sequence[str],
) -> Iterator[Row]:
    exact, single = (derive(pieces, policy, adapt, dtype) for dtype in (torch.float64, torch.float32))
    titles = [*(f"part{k}" for k in range(1, len(wanted))), "classifier"]
    for title, part64, part32, part in zip(titles, exact, single, wanted, strict=True):
        residuals = residuals_in_float64(part64, part.x, MOMENTUM)
        masks = {r.value.name: residuals[r.value.name] for r in part32.residuals if r.kind == "mask"}
        x, grad_y = part.x.float(), part.grad_y.float()
        flipped: dict[str, dict[str, int]] = {}  # by engine; recomputed masks are those of `exact`
        for gradient in GRADIENTS[:1] if adapt == "bias" else GRADIENTS:
            float64_error, bias_error = _in_float64(part64, part, gradient)
            for engine in engines:
                imposed = given = None
                found = gradient_of(segment(part32, engine, gradient, threads=0), x, grad_y, MOMENTUM)
                if gradient == "exact":
                    flipped[engine] = {
                        mask: int((found.residuals[mask] != value).sum()) for mask, value in masks.items()
                    }
                    grad_x, _ = gradient_with_imposed(part32, engine, residuals, part.grad_y)
                    imposed = relative_error(grad_x, part.grad_x)
                    given = relative_error(found.grad_x, gradient_in_float64(part64, found.residuals, grad_y))
                shares = [count / masks[mask].numel() for mask, count in flipped[engine].items()]
                yield Row(
                    network=name,
                    part=title,
                    policy=policy,
                    gradient=gradient,
                    adapt=adapt,
                    engine=engine,
                    float64_error=float64_error,
                    bias_error=bias_error,
                    output_error=relative_error(found.y, part.y),
                    imposed_error=imposed,
                    given_error=given,
                    own_masks_error=relative_error(found.grad_x, part.grad_x),
                    masks=sum(mask.numel() for mask in masks.values()),
                    flipped=sum(flipped[engine].values()),
                    flip_error=sum(shares) ** 0.5,
                    rounded=gradient == "exact" and any(r.kind == "code" for r in part32.residuals),
                )


def _in_float64(graphs: SegmentGraphs, part: PartReference, gradient: GradientMode) -> tuple[float, float | None]:
    """Errors of grad_x and of the worst bias gradient."""
    made = segment(graphs, "torch", gradient, torch.float64, pack=False)
    found = gradient_of(made, part.x, part.grad_y, MOMENTUM)
    errors = [
        relative_error(value, part.grad_biases[parameter_name(name)].reshape(value.shape))
        for name, value in found.grad_biases.items()
    ]
    return relative_error(found.grad_x, part.grad_x), max(errors, default=None)
