"""One row, measured in a process of its own.

Every sample counts in every method's objective (margins are wide open), so that a step goes all the way through random
weights. The kept bytes of a stock method are what autograd saves, each storage once; what is alive is by how much the
process grows while the graph of one forward is held.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from edgetta.adaptation.step_plan import KEEP
from edgetta.bench.memory.cases import OWN, Case
from edgetta.memory.fresh_process import in_fresh_process
from edgetta.memory.keep import new_images
from edgetta.memory.meter import alive_bytes
from edgetta.memory.peak import high_water
from edgetta.memory.step_peak import STEPS, StepCase, measure_calls, measure_inference, process_bytes

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgetta.adaptation.meta_network import MetaSpec

AUGMENTED = "cotta"
"""Predicts with 32 augmentations, one after the other: one of them is run, and timed for the rest."""


def measure(case: Case, bundle: str, inference: dict[str, Any] | None, threads: int = 0) -> dict[str, Any]:
    """The row of a case.

    bundle      the model's, with weights as seed 0 draws them
    inference   the row of `case.inference`; None for that itself
    Raises `MeasurementError` where the process does not come to its end.
    """
    found = _measured(case, bundle, threads)
    own = inference or {"peak_bytes": found["peak_bytes"], "step_seconds": found["seconds"]}
    return {
        **case.to_json(),
        "kept_bytes": found["kept_bytes"],
        "alive_bytes": found["alive_bytes"],
        "peak_bytes": found["peak_bytes"],
        "process_bytes": _process(case, bundle, threads),
        "inference_peak_bytes": own["peak_bytes"],
        "analytic_bytes": _analytic(case),
        "step_seconds": found["seconds"],
        "inference_seconds": own["step_seconds"],
    }


def _measured(case: Case, bundle: str, threads: int) -> dict[str, Any]:
    if case.method == "inference" and case.engine != "torch":
        return dict(vars(measure_inference(_step_case(case, bundle, threads))))
    if case.method == OWN:
        own = _step_case(case, bundle, threads)
        return dict(in_fresh_process("edgetta.memory.step_peak:step_here", **asdict(own)))
    return dict(in_fresh_process(f"{__name__}:stock_here", **_stock(case, threads)))


def _process(case: Case, bundle: str, threads: int) -> int:
    """The most that a whole process has resident: without a budget freed memory is kept, else given back."""
    own = _step_case(case, bundle, threads)
    if case.method == OWN:
        return process_bytes(own, give_back=case.plan != KEEP)
    if case.method == "inference" and case.engine != "torch":
        return int(in_fresh_process(f"{__name__}:inference_process_here", give_back=False, **asdict(own)))
    return int(in_fresh_process(f"{__name__}:stock_process_here", give_back=False, **_stock(case, threads)))


def _step_case(case: Case, bundle: str, threads: int) -> StepCase:
    return StepCase(bundle, case.batch, case.engine, case.keep, case.learn, case.slice, case.predict, threads)


def _stock(case: Case, threads: int) -> dict[str, Any]:
    """The arguments of a stock method's process; only EcoTTA needs cuts and meta-networks."""
    cuts, metas = _cut(case.model) if case.method == "ecotta-stock" else ((), ())
    return {
        "case": case.to_json(),
        "threads": threads,
        "cuts": list(cuts),
        "metas": [asdict(spec) for spec in metas],
    }


def inference_process_here(**arguments: Any) -> int:
    """The most that this process has resident after predictions on an engine."""
    from edgetta.bundle import open_engine, read_bundle

    case = StepCase(**arguments)
    engine = open_engine(read_bundle(case.bundle), case.engine, case.threads)
    programs = engine.programs
    images = new_images(case.batch, programs.input_shape)
    for _ in range(STEPS):
        engine.predict(images, programs.shipped, programs.source)
    return high_water()


def stock_process_here(**arguments: Any) -> int:
    """The most that this process has resident after steps of a method on stock torch."""
    method, images = _ready(**arguments)
    for _ in range(STEPS):
        method(images)
    return high_water()


def stock_here(**arguments: Any) -> dict[str, Any]:
    """A step of a method on stock torch, in this process."""
    from edgetta.bench.baselines import CottaConfig

    method, images = _ready(**arguments)
    found = measure_calls(lambda: method(images))
    if arguments["case"]["method"] == AUGMENTED:
        found["seconds"] += (CottaConfig().augmentations - 1) * _augmented_seconds(method, images)
    if hasattr(method, "saved_bytes"):
        found["kept_bytes"] = method.saved_bytes(images)
        found["alive_bytes"] = alive_bytes(lambda: method.forward(images))
    return found


def _ready(
    case: dict[str, Any], threads: int = 0, cuts: Sequence[str] = (), metas: Sequence[dict[str, Any]] = ()
) -> tuple[Any, Tensor]:
    """A stock method and the images of its step."""
    import torch

    from edgetta.export.recipe import Recipe, load

    if threads:
        torch.set_num_threads(threads)
    row = Case(**case)
    model = load(Recipe(row.model, seed=0))
    images = torch.rand((row.batch, *model.input_shape), generator=torch.Generator().manual_seed(0))
    return _method(row.method, model.module, images, cuts, metas), images


def _method(name: str, module: nn.Module, images: Tensor, cuts: Sequence[str], metas: Sequence[dict[str, Any]]) -> Any:
    from edgetta.bench import baselines

    if name == "inference":
        return baselines.Source(module)
    if name == "bn":
        return baselines.BatchNormStatistics(module)
    if name == "tent":
        return baselines.Tent(module)
    if name == "eata":
        config = baselines.EataConfig(entropy_margin=1.0, similarity_margin=2.0)  # no cosine reaches 2
        return baselines.Eata(module, [images], config)
    if name == "cotta":
        return baselines.Cotta(module, baselines.CottaConfig(augmentations=1))
    from edgetta.adaptation.meta_network import MetaNetwork, MetaSpec

    made = [MetaNetwork(MetaSpec(**spec)) for spec in metas]
    from edgetta.adaptation.config import AdaptConfig

    return baselines.EcottaStock(module, cuts, made, AdaptConfig(entropy_margin=1.0))


@functools.cache
def _cut(model: str) -> tuple[tuple[str, ...], tuple[MetaSpec, ...]]:
    """Cuts and meta-networks of a model, as exported."""
    from edgetta.export.recipe import Recipe, derive_recipe

    adaptable = derive_recipe(Recipe(model, adapt="affine", seed=0)).adaptable
    return adaptable.cuts, adaptable.metas


def _augmented_seconds(method: Any, images: Tensor) -> float:
    """Of one augmentation and the teacher's prediction for it."""
    import torch

    from edgetta.bench.baselines.cotta import augmented

    generator = torch.Generator().manual_seed(0)
    begun = time.perf_counter()
    with torch.no_grad():
        method.teacher(augmented(images, generator))
    return time.perf_counter() - begun


def _analytic(row: Case) -> int | None:
    """The count of the literature; None for methods that it does not have."""
    from edgetta.export.recipe import Recipe, load
    from edgetta.memory.analytic import analytic_bytes

    names = {"tent": "tent", "eata": "eata", "cotta": "cotta", "ecotta-stock": "ecotta", OWN: "ecotta"}
    if row.method not in names:
        return None
    kind: Any = names[row.method]
    cuts, metas = _cut(row.model) if kind == "ecotta" else ((), ())
    model = load(Recipe(row.model, seed=0))
    return analytic_bytes(kind, model.module, model.input_shape, row.batch, cuts, metas)
