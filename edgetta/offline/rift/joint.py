"""Several modules at once: the group whose joint criticality is lowest, found by adding one module after another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from edgetta.errors import UsageError
from edgetta.offline.rift.criticality import Criticality, CriticalityConfig, Score, measure_criticality
from edgetta.offline.rift.robust_loss import AdversarialSet
from edgetta.offline.rift.weight_groups import WeightGroup, joined


@dataclass(frozen=True)
class JointGroup:
    """A group of modules, and what moving all of them together does."""

    group: WeightGroup
    members: tuple[str, ...]
    score: Score


def least_critical_group(
    model: nn.Module, criticality: Criticality, data: AdversarialSet, config: CriticalityConfig, count: int
) -> JointGroup:
    """Begin with the least critical module, and add the one that raises the joint criticality least, until `count`.

    The joint criticality is that of Definition 3.1 with a ball for each tensor: modules that do no harm alone may do
    much together. Only modules that were measured closely are candidates.

    Raises:
        UsageError: fewer such modules than asked for.
    """
    candidates = [score for score in criticality.scores if score.final and not score.diverged]
    if not 2 <= count <= len(candidates):
        raise UsageError(
            f"a joint group of {count} modules cannot be chosen from {len(candidates)} that were measured closely; "
            "ask for 2 to that many, or for more finalists"
        )
    groups = {score.name: WeightGroup(score.name, score.parameters) for score in candidates}
    members = [criticality.least.name]
    best: Score | None = None
    while len(members) < count:
        trials: Sequence[WeightGroup] = [
            joined("+".join([*members, name]), [groups[member] for member in [*members, name]])
            for name in groups
            if name not in members
        ]
        measured = measure_criticality(model, trials, data, replace(config, schedule="fast", finalists=len(trials)))
        best = measured.least
        members = best.name.split("+")
    assert best is not None
    return JointGroup(WeightGroup(best.name, best.parameters), tuple(members), best)
