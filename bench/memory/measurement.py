"""One row, measured in a process of its own.

Every sample counts in every method's objective (margins are wide open), so that a step goes all the way through random
weights. The kept bytes of a stock method are what autograd saves, each storage once; what is alive is by how much the
process grows while the graph of one forward is held.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from edgetta.bench.memory.cases import OWN, Case
from edgetta.memory.fresh_process import in_fresh_process
from edgetta.memory.step_peak import StepCase, measure_calls, measure_inference

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgetta.bundle import Bundle

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
        "inference_peak_bytes": own["peak_bytes"],
        "analytic_bytes": found["analytic_bytes"],
        "step_seconds": found["seconds"],
        "inference_seconds": own["step_seconds"],
    }


def _measured(case: Case, bundle: str, threads: int) -> dict[str, Any]:
    if case.method == "inference" and case.engine != "torch":
        found = measure_inference(StepCase(bundle, case.batch, case.engine, threads=threads))
        return {**vars(found), "analytic_bytes": None}
    target = f"{__name__}:own_here" if case.method == OWN else f"{__name__}:stock_here"
    result: dict[str, Any] = in_fresh_process(target, bundle=bundle, threads=threads, case=case.to_json())
    return result


def own_here(bundle: str, threads: int, case: dict[str, Any]) -> dict[str, Any]:
    """A step of edgetta, in this process."""
    from edgetta.memory.step_peak import step_here

    row = Case(**case)
    found = step_here(
        bundle=bundle,
        batch=row.batch,
        engine=row.engine,
        gradient=row.gradient,
        batch_norm=row.bn,
        storage=row.storage,
        slice=row.slice,
        threads=threads,
    )
    return {**found, "analytic_bytes": _analytic(bundle, row)}


def stock_here(bundle: str, threads: int, case: dict[str, Any]) -> dict[str, Any]:
    """A step of a method on stock torch, in this process."""
    import torch

    from edgetta.bench.baselines import CottaConfig
    from edgetta.bundle import read_bundle

    if threads:
        torch.set_num_threads(threads)
    row, opened = Case(**case), read_bundle(bundle)
    shape = (row.batch, *opened.model.input_shape)
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    method = _method(row.method, opened, images)
    found = measure_calls(lambda: method(images))
    if row.method == AUGMENTED:
        found["seconds"] += (CottaConfig().augmentations - 1) * _augmented_seconds(method, images)
    if hasattr(method, "saved_bytes"):
        found["kept_bytes"] = method.saved_bytes(images)
        found["alive_bytes"] = _alive(lambda: method.forward(images))
    return {**found, "analytic_bytes": _analytic(bundle, row)}


def backbone(name: str) -> nn.Module:
    """The torch module whose bundle `edgetta.bench.plan.exported` writes."""
    from edgetta.export.recipe import Recipe, load

    return load(Recipe(name, seed=0)).module


def _method(name: str, bundle: Bundle, images: Tensor) -> Any:
    from edgetta.bench import baselines
    from edgetta.bundle import build_network

    module = backbone(bundle.name)
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
    from edgetta.segmented.adapter import AdaptConfig

    metas = build_network(bundle, "torch").metas
    return baselines.EcottaStock(module, bundle.model.cuts, list(metas), AdaptConfig(entropy_margin=1.0))  # type: ignore[arg-type]


def _augmented_seconds(method: Any, images: Tensor) -> float:
    """Of one augmentation and the teacher's prediction for it."""
    import torch

    from edgetta.bench.baselines.cotta import augmented

    generator = torch.Generator().manual_seed(0)
    begun = time.perf_counter()
    with torch.no_grad():
        method.teacher(augmented(images, generator))
    return time.perf_counter() - begun


def _alive(forward: Callable[[], object]) -> int:
    """By how much the process grows while what `forward` returns is held."""
    from edgetta.memory.peak import give_back, resident

    give_back()
    before = resident()
    held = forward()
    give_back()
    grown = resident() - before
    del held
    return max(0, grown)


def _analytic(bundle: str, row: Case) -> int | None:
    """The count of the literature; None for methods that it does not have."""
    from edgetta.bundle import read_bundle
    from edgetta.memory.analytic import analytic_bytes

    names = {"tent": "tent", "eata": "eata", "cotta": "cotta", "ecotta-stock": "ecotta", OWN: "ecotta"}
    if row.method not in names:
        return None
    model = read_bundle(bundle).model
    cuts, metas = (model.cuts, model.metas) if names[row.method] == "ecotta" else ((), ())
    kind: Any = names[row.method]
    return analytic_bytes(kind, backbone(row.model), model.input_shape, row.batch, cuts, metas)
