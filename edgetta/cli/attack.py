"""`edgetta attack`: how many images a model still classifies right when each is changed against it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgetta.cli.attack_options import attack_from, threat_options
from edgetta.cli.help_tiers import two_tiers
from edgetta.cli.model_options import model_options, recipe_from
from edgetta.cli.settings import config_option
from edgetta.errors import UsageError

if TYPE_CHECKING:
    from edgetta.export.recipe import Recipe
    from edgetta.models import Model
    from edgetta.offline.attack import Attack, Comparison, Evaluation
    from edgetta.sources.labelled import Labelled

EXAMPLES = """\b
Examples:
  edgetta attack resnet18 --weights at.pt --data cifar10-jpeg
  edgetta attack resnet18 --weights at.pt --data photos/ --attack autoattack --images 500
  edgetta attack resnet18 --weights at.pt --against rift/model.safetensors \\
      --data photos/ --attack apgd --restarts 2 --corrupted 5 -o attack.json
"""


@click.command(
    cls=two_tiers(
        *("data", "out", "attack", "norm", "epsilon", "steps", "images", "against", "corrupted", "device"),
        *("weights", "input_size", "mean", "std", "option", "quiet"),
    ),
    epilog=EXAMPLES,
)
@click.argument("model")
@click.option("--data", metavar="DATA", required=True, help="Labelled images to attack; see above.")
@click.option("-o", "--out", metavar="FILE", type=click.Path(path_type=Path), help="Write the result here, as JSON.")
@click.option(
    "--attack",
    type=click.Choice(["pgd", "apgd", "apgd-dlr", "autoattack"]),
    default="pgd",
    show_default=True,
    help="Projected gradient descent, Auto-PGD with cross-entropy or DLR loss, or the standard AutoAttack.",
)
@threat_options
@click.option("--steps", metavar="N", type=click.IntRange(1), help="Of PGD (default 20) or APGD (default 100).")
@click.option("--restarts", metavar="N", type=click.IntRange(1), help="Random starts; default 1.")
@click.option(
    "--images",
    metavar="N",
    type=click.IntRange(1),
    default=1000,
    show_default=True,
    help="At most N images, spread over DATA.",
)
@click.option(
    "--against",
    metavar="FILE",
    type=click.Path(),
    help="Other weights of the same model: compare both on the same adversarial images.",
)
@click.option(
    "--corrupted",
    metavar="1-5|DIR",
    help="Also measure under corruptions: 15 made at this severity, or a published -C set.",
)
@click.option("--batch", metavar="N", type=click.IntRange(1), default=250, show_default=True, help="Images at once.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:1.")
@click.option("--seed", metavar="N", type=click.IntRange(0), default=0, show_default=True, help="Of random starts.")
@model_options
@click.option("-q", "--quiet", is_flag=True, help="No progress and no table.")
@config_option
def command(**values: Any) -> None:
    """Measure how robust a model is: clean, attacked and corrupted accuracy, with confidence intervals.

    MODEL is a built-in network (resnet18, wrn34_10, ...), timm:NAME, torchvision:NAME, path/file.py:function (this
    runs the file: only name files that you trust), or a program path/model.pt2.

    DATA is a folder with one sub-folder per class, an .npz with images and labels, or a built-in name: digits,
    cifar10-jpeg (their test images).

    The attacked model is static: nothing here says how robust it is while it adapts.
    """
    import json

    from edgetta.cli.device import torch_device
    from edgetta.cli.progress import progress_bar
    from edgetta.export.recipe import load_trained
    from edgetta.storage import atomic_write_text

    out: Path | None = values["out"]
    if out is not None and not out.absolute().parent.is_dir():
        raise UsageError(f"--out {out}: there is no folder {out.absolute().parent}; create it first")
    device = torch_device(values["device"])
    attack = attack_from(values)
    recipe = recipe_from(values["model"], values, values["seed"])
    model = load_trained(recipe)
    other = _other(values, recipe)
    show = not values["quiet"]
    data = _data(values, model, show)
    corrupted = _corrupted(values, data, model, show)
    model.module.to(device)
    with progress_bar("attacking", unit="images", show=show) as update:
        if other is None:
            from edgetta.offline.attack import evaluate

            found: Evaluation | Comparison = evaluate(
                model.module,
                data.images,
                data.labels,
                attack,
                corrupted=corrupted,
                batch=values["batch"],
                seed=values["seed"],
                progress=update,
            )
        else:
            from edgetta.offline.attack import compare

            found = compare(
                model.module,
                other.module.to(device),
                data.images,
                data.labels,
                attack,
                corrupted=corrupted,
                batch=values["batch"],
                seed=values["seed"],
                progress=update,
            )
    if out is not None:
        settings = {"model": values["model"], "weights": values["weights"], "data": data.name}
        settings |= {"attack": attack.name, "threat": str(attack.threat), "seed": values["seed"]}
        settings |= {"against": values["against"], "corrupted": values["corrupted"]}
        atomic_write_text(out, json.dumps({**settings, **to_json(found)}, indent=2) + "\n")
    if show:
        _show(values, data, attack, found)


def to_json(found: Evaluation | Comparison) -> dict[str, Any]:
    """What was measured, as plain numbers."""
    from edgetta.offline.attack import Evaluation

    if isinstance(found, Evaluation):
        return found.to_json()
    robust, clean = found.robust_loss(), found.clean_loss()
    return {
        "first": found.first.to_json(),
        "second": found.second.to_json(),
        "clean_loss": {"value": clean.value, "lower": clean.lower(), "upper": clean.upper()},
        "robust_loss": {"value": robust.value, "lower": robust.lower(), "upper": robust.upper()},
    }


def _other(values: dict[str, Any], recipe: Recipe) -> Model | None:
    from dataclasses import replace

    from edgetta.export.recipe import load

    return None if values["against"] is None else load(replace(recipe, weights=str(values["against"])))


def _data(values: dict[str, Any], model: Model, show: bool) -> Labelled:
    from edgetta.cli.data import BUILT_IN, labelled_data
    from edgetta.cli.progress import progress_bar
    from edgetta.sources.labelled import check_classes, read_labelled

    spec, limit, shape, resize = values["data"], values["images"], model.input_shape, model.resize
    with progress_bar("reading", unit="images", show=show) as update:
        if spec in BUILT_IN and not Path(spec).exists():
            data = labelled_data(spec, shape, held_out=0.5, seed=0, limit=limit, resize=resize)[1]
        else:
            data = read_labelled(spec, shape, None, limit, update, resize)
    return check_classes(data, model.num_classes)


def _corrupted(values: dict[str, Any], data: Labelled, model: Model, show: bool) -> Any:
    from edgetta.cli.corrupted import corrupted_images
    from edgetta.cli.progress import progress_bar

    if values["corrupted"] is None:
        return None
    with progress_bar("corrupting", unit="corruptions", show=show) as update:
        return corrupted_images(values["corrupted"], data, model.input_shape, values["images"], update, model.resize)


def _show(values: dict[str, Any], data: Labelled, attack: Attack, found: Evaluation | Comparison) -> None:
    from edgetta.cli.tables import print_facts, print_table
    from edgetta.offline.attack import Evaluation, Proportion

    print_facts(
        [
            ("model", values["model"]),
            ("images", f"{len(data):,} of {data.name}"),
            ("attack", f"{attack.name}, {attack.threat}"),
            *((f"  {frame.name}", frame.reason) for frame in data.skipped[:5]),
        ]
    )
    pair = (found,) if isinstance(found, Evaluation) else (found.first, found.second)
    rows: list[tuple[str, ...]] = [("clean", *(str(Proportion.of(one.clean)) for one in pair))]
    rows.append(("robust", *(str(Proportion.of(one.robust)) for one in pair if one.robust is not None)))
    if pair[0].corrupted:
        rows.append(("corrupted", *(str(Proportion.of(one.corrupted_all)) for one in pair)))
        rows += [
            (f"  {name}", *(f"{100 * Proportion.of(one.corrupted[name]).value:.2f} %" for one in pair))
            for name in pair[0].corrupted
        ]
    columns = ("accuracy", "[95 % interval]") if len(pair) == 1 else ("accuracy", "MODEL", "--against")
    print_table(columns, rows, left=("accuracy",))
    if not isinstance(found, Evaluation):
        print_facts(
            [
                (f"{name} accuracy lost", f"{100 * loss.value:+.2f} points, at most {100 * loss.upper():+.2f} (95 %)")
                for name, loss in (("clean", found.clean_loss()), ("robust", found.robust_loss()))
            ]
        )
