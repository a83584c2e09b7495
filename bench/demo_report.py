"""The demo's tables and plots, for the terminal and for `report.html`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgetta.adaptation.step_rate import choose_rate
from edgetta.corruption import EXTRA_CORRUPTIONS
from edgetta.report import (
    PALETTE,
    Block,
    Fact,
    Facts,
    Heading,
    Paragraph,
    Picture,
    Table,
    picture,
    plot,
    render,
    trend,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from edgetta.bench.demo_result import DemoConfig, DemoResult
    from edgetta.bench.demo_stream import CorruptedStream

TITLES = {
    "source": "source",
    "bn": "BatchNorm statistics",
    "tent": "TENT",
    "warm_up_only": "warm_up_only",
    "adapted": "edgetta",
}


def error_rows(result: DemoResult) -> list[list[str]]:
    """One row per corruption and one for the mean: percent wrong of every method, and adaptation on minus off."""
    rows = []
    for name in result.errors["source"]:
        errors = [result.errors[method][name] for method in TITLES]
        rows.append([name, *(f"{e:.1f}" for e in errors), f"{errors[-1] - errors[-2]:+.1f}"])
    means = [result.mean(method) for method in TITLES]
    rows.append(["mean", *(f"{e:.2f}" for e in means), f"{means[-1] - means[-2]:+.2f}"])
    return rows


ERROR_COLUMNS = ("error, %", *TITLES.values(), "on - off")


def cost_rows(result: DemoResult, batch: int) -> list[list[str]]:
    """What a step costs: bytes kept for the backward and time, each beside what it is compared with."""
    saved, seconds = result.saved_bytes, result.inference_seconds

    def memory(name: str, count: int) -> list[str]:
        return [name, f"{count / 1e6:.2f} MB", f"x{count / saved:.2f}"]

    def duration(name: str, value: float) -> list[str]:
        return [name, f"{1000 * value:.1f} ms", f"x{value / seconds:.2f}"]

    return [
        memory(f"kept for the backward, batch {batch}: edgetta", saved),
        memory("the same on stock autograd", result.stock_saved_bytes),
        memory("the same, regulariser in one forward", result.stock_saved_bytes_with_regulariser),
        memory("TENT on stock autograd", result.tent_saved_bytes),
        duration(f"plain inference, batch {batch}: one graph, BatchNorm folded", seconds),
        duration("edgetta with adaptation off", result.predict_seconds),
        duration("edgetta: prediction and update", result.step_seconds),
    ]


COST_COLUMNS = ("cost", "", "ratio")


def page(result: DemoResult, stream: CorruptedStream, content: dict[str, Any], config: DemoConfig) -> str:
    """`report.html`."""
    mean = result.mean
    versions, machine = content["versions"], content["machine"]
    rate = choose_rate(config.adaptation.learning_rate, None, config.adaptation.momentum, config.batch).rate
    blocks: list[Block] = [
        Facts(
            (
                Fact(
                    f"{mean('source'):.1f} → {mean('adapted'):.1f} %",
                    "mean error, without and with edgetta",
                    trend(mean("source") - mean("adapted")),
                ),
                Fact(
                    f"{mean('adapted') - mean('bn'):+.2f} points",
                    "against BatchNorm statistics",
                    trend(mean("bn") - mean("adapted")),
                ),
                Fact(
                    f"{mean('adapted') - mean('warm_up_only'):+.2f} points",
                    "adaptation on against off (`warm_up_only`)",
                    trend(mean("warm_up_only") - mean("adapted")),
                ),
                Fact(
                    f"{result.saved_bytes / 1e6:.1f} MB",
                    f"kept for the backward; stock autograd keeps {result.stock_saved_bytes / 1e6:.1f} MB",
                ),
                Fact(
                    f"x{result.step_seconds / result.inference_seconds:.2f}", "time of a step beside plain inference"
                ),
            )
        ),
        *_judgement(result, config),
        Heading("The stream"),
        Paragraph(
            f"{config.count} held-out digits under each of {len(stream.corruptions)} corruptions, severity "
            f"{config.severity} of the benchmark's ImageNet table, one after another without a reset. The digits are "
            "scikit-learn's: real scans of 8 x 8 pixels, enlarged to 32 x 32. Held-out digits were written by hands "
            f"that no training has seen. Frost here is {content['frost']}."
        ),
        _samples(stream),
        Heading("Errors"),
        Table(
            ERROR_COLUMNS,
            error_rows(result),
            "Percent wrong, predicted before each update. `warm_up_only` is edgetta's network with adaptation off: "
            "what lies between it and BatchNorm statistics is owed to warm-up and alignment, what lies between it and "
            "edgetta to adaptation.",
            strong=-1,
        ),
        _bars(result),
        _curves(result, stream, config),
        Heading("Cost"),
        Table(
            COST_COLUMNS,
            cost_rows(result, config.batch),
            "Bytes: tensors that live from forward to backward, weights not counted. "
            + (
                "Edgetta adapts biases and weights of the frozen network too, autograd here does not. "
                * (config.adapt != "meta")
            )
            + f"Time: medians of {config.repetitions} rounds on {content['engine']}, {machine['threads']} threads.",
        ),
        Heading("How it was done"),
        Paragraph(
            f"Backbone `{config.training.model}` at {config.training.width:g} times its published width "
            f"({result.parameters:,} weights), trained for {config.training.epochs} epochs; "
            f"{result.clean_error:.1f} % error on clean held-out digits. Meta-networks: {config.parts} parts, "
            f"identity initialisation, {config.warm_up.epochs} epochs of warm-up on the training digits as they are "
            f"and under {', '.join(EXTRA_CORRUPTIONS)} (severity {config.warm_up_severity}; none of them is in the "
            f"stream), with the published augmentation, at rate {config.warm_up.learning_rate:g}. Adaptation: SGD, "
            f"rate {rate:g}, momentum {config.adaptation.momentum:g}, regulariser "
            f"{config.adaptation.regulariser:g}, entropy margin {config.adaptation.entropy_margin:g}, batch "
            f"{config.batch}. TENT: {config.tent.optimizer}, rate {config.tent.learning_rate:g}, as published."
        ),
        Paragraph(
            "BatchNorm statistics and TENT have seen no corruption: what lies between them and `warm_up_only` is owed "
            "to that, too. One seed: differences of a few tenths of a point are within the noise."
        ),
    ]
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    foot = f"{machine['processor']}, {machine['cores']} cores. {packages}. {content['date']}."
    return render("edgetta on corrupted digits", blocks, "From training to an adapting stream, on this machine.", foot)


def _judgement(result: DemoResult, config: DemoConfig) -> list[Block]:
    if not config.judge:
        return [Paragraph("A quick run: it shows that everything works, and its figures mean nothing.")]
    rows = [(claim.text, "holds" if claim.holds else "DOES NOT HOLD") for claim in result.claims()]
    return [Table(("claim", ""), rows, left=2)]


def _samples(stream: CorruptedStream, across: int = 16) -> Picture:
    across = min(across, stream.block)
    rows = [stream.images[i * stream.block :][:across] for i in range(len(stream.corruptions))]
    tiles = np.stack(rows)  # (corruptions, across, H, W, 3)
    grid = tiles.transpose(0, 2, 1, 3, 4).reshape(tiles.shape[0] * tiles.shape[2], -1, 3)
    return picture(np.ascontiguousarray(grid), f"Top to bottom: {', '.join(stream.corruptions)}.", scale=1)


def _bars(result: DemoResult) -> Picture:
    from matplotlib.figure import Figure

    names = list(result.errors["source"])
    figure = Figure(figsize=(10, 3.8))
    axes = figure.subplots()
    width = 0.8 / len(TITLES)
    for i, (method, title) in enumerate(TITLES.items()):
        heights = [result.errors[method][name] for name in names]
        places = np.arange(len(names)) + (i - (len(TITLES) - 1) / 2) * width
        axes.bar(places, heights, width, label=title, color=PALETTE[i])
    axes.set_xticks(range(len(names)), [name.replace("_", "\n") for name in names], fontsize=8)
    axes.set_ylabel("error, %")
    _plain(axes)
    axes.legend(ncols=len(TITLES), frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=9)
    return plot(figure, "Error under each corruption, in the order of the stream.")


def _curves(result: DemoResult, stream: CorruptedStream, config: DemoConfig) -> Picture:
    """Images got wrong less than BatchNorm statistics, added up along the stream."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.2))
    axes = figure.subplots()
    base = np.array(result.curves["bn"])
    for i, (method, title) in enumerate(TITLES.items()):
        if method in ("source", "bn"):
            continue
        sizes = np.minimum(config.batch, len(stream.labels) - config.batch * np.arange(len(base)))
        saved = np.cumsum((base - np.array(result.curves[method])) / 100 * sizes)
        style = "--" if method == "warm_up_only" else "-"
        axes.plot(np.arange(1, len(base) + 1), saved, style, label=title, color=PALETTE[i], linewidth=2)
    axes.axhline(0, color=PALETTE[0], linewidth=1)
    per_block = stream.block / config.batch
    for k in range(1, len(stream.corruptions)):
        axes.axvline(k * per_block + 0.5, color="#e1e6ec", linewidth=1, zorder=0)
    axes.set_xlabel("batch")
    axes.set_ylabel("images, more is better")
    _plain(axes)
    axes.legend(frameon=False, fontsize=9)
    return plot(
        figure,
        "Images that each method gets right and BatchNorm statistics gets wrong, net, added up along the stream; "
        "vertical lines are where the corruption changes.",
    )


def _plain(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(axis="y", color="#e1e6ec", linewidth=0.8)
    axes.set_axisbelow(True)
