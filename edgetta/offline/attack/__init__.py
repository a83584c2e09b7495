"""Adversarial attacks, what they tell about a model, and training against them."""

from edgetta.offline.attack.adversarial_images import Attack, adversarial_images, classified_right
from edgetta.offline.attack.adversarial_training import AdversarialTraining, adversarial_training
from edgetta.offline.attack.apgd import APGD
from edgetta.offline.attack.autoattack import AutoAttack
from edgetta.offline.attack.confidence import LEVEL, PairedLoss, Proportion, fewest_images
from edgetta.offline.attack.evaluation import Comparison, Evaluation, compare, evaluate
from edgetta.offline.attack.evaluation_mode import evaluation_mode
from edgetta.offline.attack.pgd import PGD
from edgetta.offline.attack.threat import Threat

__all__ = [
    "APGD",
    "LEVEL",
    "PGD",
    "AdversarialTraining",
    "Attack",
    "AutoAttack",
    "Comparison",
    "Evaluation",
    "PairedLoss",
    "Proportion",
    "Threat",
    "adversarial_images",
    "adversarial_training",
    "classified_right",
    "compare",
    "evaluate",
    "evaluation_mode",
    "fewest_images",
]
