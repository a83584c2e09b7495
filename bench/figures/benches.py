"""A table for each bench, from its result file."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from edgetta.bench.figures.results import HERE, Results, mean, megabytes, number, table
from edgetta.bench.memory.section import section as memory_section


def accuracy(results: Results) -> str:
    wanted = {"stream": "continual", "images": 2000, "batch": 64, "model": "resnet20_jpegft"}
    methods = {
        "source": "source",
        "batch_norm_statistics": "BatchNorm statistics",
        "warm_up_only": "our network, adaptation off",
        "tent": "TENT",
        "eata": "EATA",
        "rdumb": "RDumb",
        "sar": "SAR",
        "roid": "ROID",
        "rotta": "RoTTA",
        "cotta": "CoTTA",
        "tent_mirrored": "TENT, `mirrored`",
        "edgetta": "**edgetta**",
        "edgetta_recompute_int8": "edgetta, `recompute-int8` in slices of 8",
        "edgetta_constant": "edgetta, statistics constant in the backward",
        "edgetta_mirrored": "edgetta, `mirrored`",
        "oracle": "oracle: true labels, ours",
        "oracle_affine": "oracle: true labels, BatchNorm's weights",
    }
    lines = []
    for method, name in methods.items():
        rows = results.rows("accuracy", **wanted, method=method)
        if not rows:
            continue
        gaps = [row["gap_closed"] for row in rows if row.get("gap_closed") is not None]
        lines.append(
            (
                name,
                number(mean(rows, "error"), ".2f"),
                ", ".join(f"{row['error']:.2f}" for row in rows),
                megabytes(mean(rows, "kept_bytes")) if rows[0]["kept_bytes"] else "",
                "" if method == "source" or not gaps else f"{fmean(gaps):.2f}",
            )
        )
    return table(("method", "error, %", "seeds", "kept", "gap closed, mean of seeds"), lines) + _from(
        results, "accuracy"
    )


def streams(results: Results) -> str:
    """Other streams than the one of `accuracy`; means over the seeds that all methods of a row share."""
    methods = ("source", "batch_norm_statistics", "tent", "eata", "roid", "rotta", "warm_up_only", "edgetta")
    found: dict[tuple[str, str, int, int], dict[str, dict[int, float]]] = {}
    for row in results.rows("accuracy"):
        key = (row["stream"], row["model"], row["batch"], row["images"])
        if key != ("continual", "resnet20_jpegft", 64, 2000) and row["method"] in methods:
            found.setdefault(key, {}).setdefault(row["method"], {})[row["seed"]] = row["error"]
    lines = []
    for (stream, model, batch, images), errors in found.items():
        shared = sorted(set.intersection(*(set(by_seed) for by_seed in errors.values())))
        cells = [number(fmean(errors[name][s] for s in shared) if name in errors else None) for name in methods]
        lines.append((f"{stream}, {model}, batch {batch}, {images:,} images", *cells, str(len(shared))))
    titles = ("stream", "source", "BN stat.", "TENT", "EATA", "ROID", "RoTTA", "off", "edgetta", "seeds")
    return table(titles, lines) + _from(results, "accuracy")


def camera(results: Results) -> str:
    """Orders of frames as a camera shows them: error at severity 5, batch by batch size, method by method."""
    rows = [row for row in results.rows("camera") if row["severity"] in (0, 5)]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    found: dict[tuple[str, str, int], dict[str, dict[bool, list[float]]]] = {}
    for row in rows:
        errors = found.setdefault((row["network"], row["order"], row["batch"]), {}).setdefault(row["method"], {})
        errors.setdefault(row["severity"] == 0, []).append(row["error"])
    lines = [
        (
            f"`{network}`, {order}, batch {batch}",
            *(
                f"{number(_mean(kinds.get(name, {}).get(False)))} ({number(_mean(kinds.get(name, {}).get(True)))})"
                for name in methods
            ),
        )
        for (network, order, batch), kinds in found.items()
    ]
    return table(("network, order (clean images)", *methods), lines) + _from(results, "camera")


def _mean(values: list[float] | None) -> float | None:
    return fmean(values) if values else None


def exports(results: Results) -> str:
    """Which families of timm and torchvision export, and why the others do not."""
    rows = results.rows("export")
    lines = []
    for library in dict.fromkeys(row["model"].split(":")[0] for row in rows):
        own = [row for row in rows if row["model"].split(":")[0] == library]
        done = [row for row in own if row["exported"]]
        refused = ", ".join(row["model"].split(":")[-1] for row in own if not row["exported"])
        lines.append((library, f"{len(done)} of {len(own)}", refused or "none"))
    return table(("library", "exported", "refused"), lines) + _from(results, "export")


def latency(results: Results) -> str:
    rows = results.rows("latency", model="wrn40_2", batch=64)
    found: dict[tuple[str, str, str], dict[str, dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["engine"], row["bn"], row["adapt"]), {})[row["gradient"]] = row

    def times(row: dict[str, Any] | None, field: str) -> str:
        return "–" if row is None else f"{row[field] / row['inference_seconds']:.2f}"

    lines = [
        (
            f"{engine}, `{bn}`, `{adapt}`",
            times(next(iter(kinds.values())), "predict_seconds"),
            *(times(kinds.get(kind), "step_seconds") for kind in ("local", "exact", "recompute")),
        )
        for (engine, bn, adapt), kinds in found.items()
    ]
    titles = ("engine, BatchNorm, what adapts", "off", "step, `local`", "step, `exact`", "step, `recompute`")
    return table(titles, lines) + _from(results, "latency")


def memory(results: Results) -> str:
    """The section of the memory bench; a file from before the programs of the whole network has none."""
    if not all("keep" in row for row in results.rows("memory", method="edgetta")):
        return f"[memory.json]({HERE}/memory.json) is from before the programs of the whole network: measure again."
    return memory_section(results.read("memory"), f"{HERE}/memory.json", f"{HERE}/memory.svg")


def int8(results: Results) -> str:
    adaptations = ("bare", "warm_up_only", "adapted")
    lines = []
    for model in dict.fromkeys(row["model"] for row in results.rows("int8")):
        for precision in ("fp32", "int8"):
            rows = {r["adaptation"]: r for r in results.rows("int8", model=model, precision=precision)}
            size = rows["adapted"]["model_bytes"] / 1e6
            errors = [f"{rows['bare']['clean_error']:.2f}", *(f"{rows[name]['error']:.2f}" for name in adaptations)]
            lines.append((f"`{model}`, {rows['bare']['count']:,} images, {precision}", f"{size:.1f} MB", *errors))
    titles = ("network", "bundle", "bare, clean", "bare, corrupted", "warm-up only", "adapting")
    return table(titles, lines) + _from(results, "int8")


def criticality(results: Results) -> str:
    lines = [
        (
            f"`{row['model']}`",
            str(row["modules"]),
            f"{row['rank_correlation']:.2f}",
            f"{row['self_rank_correlation']:.2f}",
            "yes" if row["same_choice"] else "no",
            f"{row['speedup']:.0f}",
        )
        for row in results.rows("criticality")
    ]
    titles = ("network", "modules", "rank correlation", "published with itself", "same module", "times its speed")
    return table(titles, lines) + _from(results, "criticality")


def rift(results: Results) -> str:
    names = {
        "source": "as trained",
        "rift": "RiFT, least critical module",
        "most_critical": "most critical module",
        "last_layer": "last layer",
        "all_layers": "all layers",
        "joint": "three modules of low criticality",
        "bn_only": "BatchNorm's statistics alone",
    }
    lines = []
    for file in ("rift", "rift_batch_norm"):
        for variant in dict.fromkeys(row["variant"] for row in results.rows(file)):
            rows = results.rows(file, variant=variant)
            scores = [number(100 * fmean(row[name] for row in rows)) for name in ("clean", "corrupted", "robust")]
            lost = "" if variant == "source" else f"{100 * max(row['robust_loss_upper'] for row in rows):.1f}"
            lines.append((f"`{rows[0]['model']}`, {names[variant]}", *scores, lost))
    titles = ("%", "clean", "corrupted", "robust", "robust lost, at most")
    return table(titles, lines) + _from(results, "rift", "rift_batch_norm")


def rift_tta(results: Results) -> str:
    trained = {"standard": "as usual", "adversarial": "adversarially", "rift": "adversarially, RiFT"}
    ways = {"source": "none", "bn": "BatchNorm statistics", "warm_up": "ours, off", "edgetta": "edgetta"}
    fields = ("clean", "corrupted", "robust_static", "robust_adaptive")
    lines = [
        (
            f"{trained[row['model']]}; {ways[row['adaptation']]}",
            *(f"{100 * row[name]:.1f}" for name in fields),
        )
        for row in results.rows("rift_tta")
    ]
    titles = (
        "trained, adaptation",
        "clean",
        "corrupted",
        "robust, static attack",
        "attack through the adapted weights",
    )
    return table(titles, lines) + _from(results, "rift_tta")


def plans(results: Results) -> str:
    lines = []
    for file in ("plan", "plan_affine"):
        for model in dict.fromkeys(row["model"] for row in results.rows(file)):
            rows = [row for row in results.rows(file, model=model) if row.get("measured_bytes")]
            off = [100 * (row["predicted_bytes"] / row["measured_bytes"] - 1) for row in rows]
            kept = sum(row["measured_bytes"] <= row["budget_bytes"] for row in rows)
            adapt = results.read(file)["settings"]["adapt"]
            lines.append((f"`{model}`, `{adapt}`", f"{kept} of {len(rows)}", f"{min(off):+.1f} to {max(off):+.1f} %"))
    return table(("network, what adapts", "budgets kept", "predicted against measured"), lines) + _from(
        results, "plan", "plan_affine"
    )


def versions(results: Results) -> str:
    if not results.has("versions"):
        return "Not measured yet: `make test-versions`."
    lines = []
    for row in results.rows("versions"):
        held = ", ".join(f"{name} {version}" for name, version in row.get("versions", {}).items() if name != "machine")
        told = row.get("not_run") or ", ".join(
            f"{len(row[kind])} {kind}" for kind in ("passed", "failed", "skipped") if row.get(kind)
        )
        lines.append((f"{row['environment']}: {row['stands_for']}", held, told))
    return table(("environment", "versions", "core set"), lines) + _from(results, "versions")


def _from(results: Results, *names: str) -> str:
    there = [name for name in names if results.has(name)]
    if not there:
        return "\n\nNot measured yet."
    files = ", ".join(f"[{name}.json]({HERE}/{name}.json)" for name in there)
    return f"\n\n{files}: {results.origin(there[0])}."
