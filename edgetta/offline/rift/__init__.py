"""RiFT (Zhu et al., ICCV 2023): fine-tune the module that robustness depends on least, as far as robustness allows."""

from edgetta.offline.rift.criticality import Criticality, CriticalityConfig, Score, measure_criticality
from edgetta.offline.rift.fine_tuning import FINE_TUNING, fine_tune, fine_tuning, recalibrate
from edgetta.offline.rift.interpolation import Constraint, Interpolation, Point, between, interpolate
from edgetta.offline.rift.job import CONTROLS, RiftConfig, RiftReport, Row, run_rift
from edgetta.offline.rift.joint import JointGroup, least_critical_group
from edgetta.offline.rift.robust_loss import AdversarialSet, NotRobustError
from edgetta.offline.rift.weight_groups import WeightGroup, joined, weight_groups

__all__ = [
    "CONTROLS",
    "FINE_TUNING",
    "AdversarialSet",
    "Constraint",
    "Criticality",
    "CriticalityConfig",
    "Interpolation",
    "JointGroup",
    "NotRobustError",
    "Point",
    "RiftConfig",
    "RiftReport",
    "Row",
    "Score",
    "WeightGroup",
    "between",
    "fine_tune",
    "fine_tuning",
    "interpolate",
    "joined",
    "least_critical_group",
    "measure_criticality",
    "recalibrate",
    "run_rift",
    "weight_groups",
]
