"""RiFT from end to end, as one resumable job: criticality, fine-tuning, interpolation, controls, and one test."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgetta.errors import UsageError
from edgetta.offline.attack import PGD, PairedLoss, Proportion, adversarial_images, classified_right
from edgetta.offline.attack.adversarial_images import check_labels
from edgetta.offline.attack.confidence import all_right
from edgetta.offline.attack.evaluation import Images
from edgetta.offline.rift.criticality import Criticality, CriticalityConfig, measure_criticality
from edgetta.offline.rift.fine_tuning import FINE_TUNING, batch_norms, fine_tune, recalibrate
from edgetta.offline.rift.interpolation import Constraint, Interpolation, between, interpolate
from edgetta.offline.rift.joint import least_critical_group
from edgetta.offline.rift.robust_loss import AdversarialSet
from edgetta.offline.rift.weight_groups import WeightGroup, weight_groups
from edgetta.offline.stage_files import StageFiles
from edgetta.offline.training import Schedule

CONTROLS = ("bn_only", "most_critical", "last_layer", "all_layers", "joint")
"""What RiFT is compared with: BatchNorm statistics alone, and other choices of what to fine-tune."""

Progress = Callable[[str, int, int, str], None]  # stage, steps done, steps in all, a note


@dataclass(frozen=True)
class RiftConfig:
    """The settings of the job; the defaults are the paper's where it has them.

    Raises:
        UsageError: an unknown control.
    """

    attack: PGD = field(default_factory=PGD)  # for robust accuracy on validation and test images
    criticality: CriticalityConfig = field(default_factory=CriticalityConfig)
    criticality_images: int = 1000  # of the training images, attacked by PGD-10
    schedule: Schedule = FINE_TUNING
    recalibrate: bool = False  # after fine-tuning, take BatchNorm statistics anew from clean images; see `bn_only`
    constraint: Constraint = field(default_factory=Constraint)
    groups: Mapping[str, Sequence[str]] | None = None  # see `weight_groups`
    candidates: int = 3  # least critical modules to fine-tune, the best on validation images is taken; 1: the paper
    controls: tuple[str, ...] = ()
    joint: int = 3  # modules of the joint group
    batch: int = 250  # images at a time, for attacks
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = next((name for name in self.controls if name not in CONTROLS), None)
        if unknown is not None:
            raise UsageError(f"control {unknown!r} is unknown; choose from {', '.join(CONTROLS)}")
        if not 1 <= self.candidates <= self.criticality.finalists:
            raise UsageError(
                f"{self.candidates} candidates are not possible: 1 to {self.criticality.finalists}, the modules whose "
                "criticality is measured on all images"
            )


@dataclass(frozen=True)
class Row:
    """One variant on the test images; shares from 0 to 1."""

    variant: str
    clean: float
    corrupted: float | None  # mean over the corruptions; None where there are none
    robust: float  # right, and right on what was found against this variant and against the source
    robust_loss: float  # of the source, on the same adversarial images
    robust_loss_upper: float  # one-sided, 95 %
    clean_gain_lower: float  # one-sided, 95 %
    alpha: float | None = None  # where between trained and fine-tuned weights
    modules: tuple[str, ...] = ()  # that were fine-tuned


@dataclass(frozen=True)
class RiftReport:
    """What the job found."""

    rows: tuple[Row, ...]
    criticality: Criticality
    interpolations: Mapping[str, Interpolation]
    test_images: int
    validation_images: int

    def to_json(self) -> dict[str, Any]:
        return {
            "rows": [asdict(row) for row in self.rows],
            "criticality": self.criticality.to_json(),
            "interpolations": {name: found.to_json() for name, found in self.interpolations.items()},
            "test_images": self.test_images,
            "validation_images": self.validation_images,
        }


def run_rift(
    model: nn.Module,
    train: Images,
    validation: Images,
    test: Images,
    folder: Path,
    config: RiftConfig | None = None,
    *,
    corrupted: Mapping[str, Images] | None = None,
    description: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> RiftReport:
    """Improve an adversarially trained model; it ends with the weights of RiFT.

    Args:
        model: on the device where everything is computed.
        train: images to measure criticality on and to fine-tune with.
        validation: for the epoch, for alpha, and for the constraint.
        test: touched once, at the end.
        folder: keeps every finished stage: the same job again continues. At the end `model.safetensors` and
            `report.json` lie there.
        config: settings.
        corrupted: test images under corruptions.
        description: of model and data, by which a folder is recognised as this job's.
        overwrite: start again where the folder holds a job with other settings.
        progress: told of what is going on.

    Raises:
        NotRobustError: the model does not withstand attacks at all.
        UsageError: labels out of range, no validation images, too few for the constraint, or another job's folder.
        EdgettaError: training that diverged.
    """
    config = config or RiftConfig()
    for images, labels in (train, validation, test):
        check_labels(model, images, labels)
    config.constraint.check(len(validation[1]))
    settings: dict[str, Any] = {"config": asdict(config), "description": dict(description or {})}
    settings |= {"images": [len(labels) for _, labels in (train, validation, test)], "weights": _digest(model)}
    job = _Job(model, (train, validation, test), StageFiles(folder, settings, overwrite=overwrite), config, progress)
    return job.run(corrupted or {})


class _Job:
    def __init__(
        self,
        model: nn.Module,
        data: tuple[Images, Images, Images],
        files: StageFiles,
        config: RiftConfig,
        progress: Progress | None,
    ) -> None:
        self.model, self.files, self.config, self.progress = model, files, config, progress
        self.train, self.validation, self.test = data
        self.start = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self._points: dict[str, Tensor] = {}

    def run(self, corrupted: Mapping[str, Images]) -> RiftReport:
        criticality = Criticality.from_json(self.files.json("criticality", self._criticality))
        chosen: dict[str, tuple[str, ...] | None] = {}
        interpolations: dict[str, Interpolation] = {}
        states: dict[str, Mapping[str, Tensor]] = {"source": self.start}
        chosen["rift"], states["rift"], interpolations["rift"] = self._best_candidate(criticality, interpolations)
        for variant, parameters in self._controls(criticality).items():
            chosen[variant] = parameters
            state, found = self._variant(variant, parameters)
            states[variant] = state
            if found is not None:
                interpolations[variant] = found
        rows: list[Row] = []
        for variant, state in states.items():
            self._tell("testing", len(rows), len(states), variant)
            tested = self.files.json(f"{variant}.test", partial(self._tested, variant, state, corrupted))
            way = interpolations.get(variant)
            names = () if way is None else self._modules(chosen[variant])
            rows.append(replace(Row(**tested), alpha=None if way is None else way.alpha, modules=names))
        self.model.load_state_dict(states["rift"])
        self.files.weights("model", lambda: states["rift"])
        report = RiftReport(tuple(rows), criticality, interpolations, len(self.test[1]), len(self.validation[1]))
        self.files.json("report", report.to_json)
        return report

    def _criticality(self) -> dict[str, Any]:
        return self._measured().to_json()

    def _measured(self) -> Criticality:
        self._load(self.start)
        attack = PGD(self.config.attack.threat, 10)
        return measure_criticality(
            self.model,
            weight_groups(self.model, self.config.groups),
            self._adversarial_set(attack),
            self.config.criticality,
            attack=attack,
            progress=lambda done, total, note: self._tell("criticality", done, total, note),
        )

    def _adversarial_set(self, attack: PGD) -> AdversarialSet:
        images, labels = self.train
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(self.config.seed))
        rows = order[: self.config.criticality_images]
        return AdversarialSet.make(
            self.model, images[rows], labels[rows], attack, batch=self.config.batch, seed=self.config.seed
        )

    def _best_candidate(
        self, criticality: Criticality, interpolations: dict[str, Interpolation]
    ) -> tuple[tuple[str, ...], Mapping[str, Tensor], Interpolation]:
        """The least critical modules, each fine-tuned and interpolated; that which gains most on validation images.

        The least critical of all is often one that hardly matters for accuracy either, such as a small shortcut.
        """
        found = []
        for score in criticality.least_critical(self.config.candidates):
            state, way = self._variant(f"candidate.{score.name}", score.parameters)
            assert way is not None
            interpolations[f"candidate.{score.name}"] = way
            found.append((score.parameters, state, way))
        return max(found, key=lambda candidate: candidate[2].clean)  # the first of several: the least critical

    def _controls(self, criticality: Criticality) -> dict[str, tuple[str, ...] | None]:
        """Names of the weights that each control fine-tunes: None for all, none for BatchNorm alone."""
        groups = weight_groups(self.model, self.config.groups)
        live = [group for group in groups if group.name not in criticality.skipped]
        chosen: dict[str, tuple[str, ...] | None] = {}
        for control in self.config.controls:
            if control == "bn_only" and batch_norms(self.model):
                chosen[control] = ()
            elif control == "most_critical":
                chosen[control] = criticality.most.parameters
            elif control == "last_layer":
                chosen[control] = live[-1].parameters
            elif control == "all_layers":
                chosen[control] = None
            elif control == "joint" and len(live) > 1:
                chosen[control] = tuple(self.files.json("joint", lambda: self._joint(criticality))["parameters"])
        return chosen

    def _joint(self, criticality: Criticality) -> dict[str, Any]:
        self._load(self.start)
        close = sum(score.final and not score.diverged for score in criticality.scores)
        found = least_critical_group(
            self.model,
            criticality,
            self._adversarial_set(PGD(self.config.attack.threat, 10)),
            self.config.criticality,
            min(self.config.joint, close),
        )
        alone = {score.name: score.rise for score in criticality.scores if score.name in found.members}
        return {
            "members": found.members,
            "parameters": found.group.parameters,
            "rise": found.score.rise,
            "alone": alone,
        }

    def _variant(
        self, variant: str, parameters: tuple[str, ...] | None
    ) -> tuple[Mapping[str, Tensor], Interpolation | None]:
        """The weights of a variant, and how they were found between the trained and the fine-tuned ones."""
        if parameters == ():
            return self.files.weights(variant, self._recalibrated), None
        tuned: dict[str, Tensor] = {}

        def search() -> dict[str, Any]:
            tuned.update(self.files.weights(f"{variant}.tuned", lambda: self._fine_tuned(variant, parameters)))
            return self._interpolated(tuned).to_json()

        found = Interpolation.from_json(self.files.json(f"{variant}.interpolation", search))

        def final() -> Mapping[str, Tensor]:
            end = self.files.weights(f"{variant}.tuned", lambda: self._fine_tuned(variant, parameters))
            return between({name: value.cpu() for name, value in self.start.items()}, end, found.alpha)

        return self.files.weights(variant, final), found

    def _recalibrated(self) -> Mapping[str, Tensor]:
        self._load(self.start)
        self._recalibrate()
        return self.model.state_dict()

    def _recalibrate(self) -> None:
        order = torch.randperm(len(self.train[1]), generator=torch.Generator().manual_seed(self.config.seed))
        recalibrate(self.model, self.train[0][order[: 40 * self.config.batch]], self.config.batch)

    def _fine_tuned(self, variant: str, parameters: tuple[str, ...] | None) -> Mapping[str, Tensor]:
        self._load(self.start)
        history = fine_tune(
            self.model,
            parameters,
            self.train,
            self.validation,
            self.config.schedule,
            checkpoint=self.files.path(f"{variant}.training.safetensors"),
            progress=lambda done, total, note: self._tell(f"fine-tuning {variant}", done, total, note),
        )
        self.files.json(f"{variant}.training", lambda: [asdict(epoch) for epoch in history])
        if self.config.recalibrate and batch_norms(self.model):
            self._recalibrate()
        return self.model.state_dict()

    def _interpolated(self, tuned: Mapping[str, Tensor]) -> Interpolation:
        if "validation" not in self._points:
            self._load(self.start)
            self._points["validation"] = self._attacked(self.validation, [], "attacking validation images")
        return interpolate(
            self.model,
            self.start,
            {name: value.to(self.start[name].device) for name, value in tuned.items()},
            self.validation,
            self.config.attack,
            self.config.constraint,
            start_points=self._points["validation"],
            batch=self.config.batch,
            seed=self.config.seed,
            progress=lambda done, total, note: self._tell("interpolating", done, total, note),
        )

    def _tested(self, variant: str, state: Mapping[str, Tensor], corrupted: Mapping[str, Images]) -> dict[str, Any]:
        images, labels = self.test
        source = copy.deepcopy(self.model)
        source.load_state_dict(self.start)
        self._load(self.start)
        if "test" not in self._points:
            self._points["test"] = self._attacked(self.test, [], "attacking test images")
        sets = [self._points["test"]]
        self._load(state)
        if variant != "source":
            sets.append(self._attacked(self.test, sets, f"attacking {variant}"))
        sets.insert(0, images)
        masks, reference = (
            [classified_right(network, some, labels, self.config.batch) for some in sets]
            for network in (self.model, source)
        )
        loss = PairedLoss.of(all_right(reference), all_right(masks))
        shares = [float(classified_right(self.model, *pair).float().mean()) for pair in corrupted.values()]
        row = Row(
            variant,
            Proportion.of(masks[0]).value,
            sum(shares) / len(shares) if shares else None,
            Proportion.of(all_right(masks)).value,
            loss.value,
            loss.upper(),
            -PairedLoss.of(reference[0], masks[0]).upper(),
        )
        return asdict(row)

    def _attacked(self, data: Images, sets: list[Tensor], stage: str) -> Tensor:
        """Points against the model as it is, for images that it has right so far, on all of `sets`, too."""
        images, labels = data
        right = [classified_right(self.model, some, labels, self.config.batch) for some in (images, *sets)]
        return adversarial_images(
            self.model,
            images,
            labels,
            self.config.attack,
            only=all_right(right),
            batch=self.config.batch,
            seed=self.config.seed,
            progress=lambda done, total: self._tell(stage, done, total, ""),
        )

    def _modules(self, parameters: tuple[str, ...] | None) -> tuple[str, ...]:
        return ("all",) if parameters is None else WeightGroup("", parameters).owners

    def _load(self, state: Mapping[str, Tensor]) -> None:
        self.model.load_state_dict(dict(state))
        self.model.eval()

    def _tell(self, stage: str, done: int, total: int, note: str) -> None:
        if self.progress is not None:
            self.progress(stage, done, total, note)


def _digest(model: nn.Module) -> str:
    """A short fingerprint of the weights that the job starts from."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
