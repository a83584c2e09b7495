"""Cut a traced model into stem, parts and classifier.

A cut is a value through which everything passes: removing it separates the image from the logits. Cuts are given as
module names (the cut is that module's output) or chosen here, shallow layers finer, as EcoTTA does.
"""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgetta.errors import UsageError
from edgetta.export.trace import Trace
from edgetta.segments.graph import BATCH, Graph, Node

_ACTIVATIONS = ("Relu", "Clip", "Silu", "Gelu", "HardSwish")


@dataclass(frozen=True)
class CutModel:
    """A model cut in K + 2 graphs, each with one input "x" and one output.

    `names` are the module names after which it was cut: the stem's end, then the end of each part.
    """

    stem: Graph
    parts: tuple[Graph, ...]
    classifier: Graph
    names: tuple[str, ...]


def cut(trace: Trace, names: Sequence[str] | None = None, parts: int = 4) -> CutModel:
    """Cut after the modules in `names` (stem's end, then each part's end), or automatically into `parts` parts.

    Raises `UsageError` naming the nearest legal cut when a module is unknown or its output is not a legal cut, and
    when the cuts are fewer than two or out of order.
    """
    order = legal_cuts(trace)
    chosen = tuple(names) if names else automatic_cuts(trace, parts)
    if len(chosen) < 2:
        raise UsageError("at least two cuts are needed: the end of the stem and the end of the first part")
    legal = list(order.values())
    points = []
    for name in chosen:
        value = trace.module_outputs.get(name, "")
        if value not in legal:
            raise UsageError(_explain(trace, name, order, chosen))
        points.append(value)
    positions = [legal.index(value) for value in points]
    for i in range(1, len(positions)):
        if positions[i] <= positions[i - 1]:
            raise UsageError(
                f"cut {chosen[i]!r} does not come after {chosen[i - 1]!r}; list the cuts from input to output"
            )
    borders = [trace.graph.inputs[0], *points, trace.graph.outputs[0]]
    graphs = [_between(trace.graph, a, b) for a, b in itertools.pairwise(borders)]
    return CutModel(graphs[0], tuple(graphs[1:-1]), graphs[-1], chosen)


def legal_cuts(trace: Trace) -> dict[str, str]:
    """Module name -> value, for every module whose output separates the graph, from input to output.

    Of several modules with the same output the outermost is named.
    """
    graph = trace.graph
    last_use = {name: i for i, node in enumerate(graph.nodes) for name in node.inputs if name in graph.values}
    last_use[graph.outputs[0]] = len(graph.nodes)
    live: set[str] = set(graph.inputs)
    separating: list[str] = []
    for i, node in enumerate(graph.nodes):
        live.add(node.output)
        live = {name for name in live if last_use.get(name, -1) > i}
        if live == {node.output} and graph.values[node.output].shape[0] == BATCH:
            separating.append(node.output)
    named: dict[str, str] = {}
    for path, value in trace.module_outputs.items():
        current = named.get(value)
        if current is None or path.count(".") < current.count("."):
            named[value] = path
    return {named[value]: value for value in separating if value in named and value != graph.outputs[0]}


def automatic_cuts(trace: Trace, parts: int) -> tuple[str, ...]:
    """Cuts that give each part about the same number of activation elements, so that shallow layers are cut finer.

    Parts end where blocks end or, in a network without blocks, behind activations, and so that a meta-network can
    stand beside each (`stride_of`): where an unpadded layer changes the size of the maps, the stem reaches further, or
    the classifier begins earlier. Raises `UsageError` when there are fewer such places than `parts`.
    """
    graph = trace.graph
    position = {node.output: i for i, node in enumerate(graph.nodes)}
    legal = [(name, value) for name, value in legal_cuts(trace).items() if _is_feature(graph, value)]
    places = max(_behind_blocks(trace, legal, position), _behind_activations(graph, legal), key=_enough(parts))
    if len(places) < parts + 1:
        raise UsageError(
            f"the model has {max(len(places) - 1, 0)} places where a part can end, fewer than the {parts} parts asked "
            "for; ask for fewer parts, or name the cuts"
        )
    cost = [
        float(sum(graph.values[node.output].elements(1) for node in graph.nodes[position[a] + 1 : position[b] + 1]))
        for (_, a), (_, b) in itertools.pairwise(places)
    ]
    shapes = [graph.values[value].shape for _, value in places]

    def fits(begin: int, end: int) -> bool:
        return stride_of(shapes[begin], shapes[end]) is not None

    chosen = _balanced(cost, parts, fits)
    if chosen is None:
        raise UsageError(
            f"no {parts} parts in a row of this model keep the size of their maps or divide it evenly, which a "
            "meta-network beside them needs; ask for fewer parts, or another input size"
        )
    return tuple(places[place][0] for place in chosen)


def stride_of(source: Sequence[int], target: Sequence[int]) -> int | None:
    """The stride of a meta-network beside a part from one shape to another (batch first); None where none can stand.

    1 for sequences of tokens (N, T, C) of one length; for maps (N, C, H, W) what divides both sides, rounded up.
    """
    if len(source) == len(target) == 3:
        return 1 if source[1] == target[1] else None
    if len(source) != 4 or len(target) != 4:
        return None
    stride = -(-source[2] // target[2])
    return stride if all(-(-source[axis] // stride) == target[axis] for axis in (2, 3)) else None


def _balanced(cost: Sequence[float], parts: int, fits: Callable[[int, int], bool]) -> list[int] | None:
    """Places where the stem and each part end: groups of blocks that fit, with the smallest sum of squared costs.

    As few as possible are left out, to the stem at the front and to the classifier at the end.
    """
    count = len(cost)
    prefix = [0.0, *itertools.accumulate(cost)]
    # (parts, place) -> what was left out, the sum of squares, and the place before
    best: dict[tuple[int, int], tuple[float, float, int]] = {(0, i): (prefix[i], 0.0, -1) for i in range(count + 1)}
    for part in range(1, parts + 1):
        for end in range(part, count + 1):
            options = []
            for begin in range(part - 1, end):
                if (part - 1, begin) in best and fits(begin, end):
                    left_out, squares, _ = best[part - 1, begin]
                    options.append((left_out, squares + (prefix[end] - prefix[begin]) ** 2, begin))
            if options:
                best[part, end] = min(options)
    ends = [(best[n, i][0] + prefix[-1] - prefix[i], best[n, i][1], -i) for n, i in best if n == parts]
    if not ends:
        return None
    places = [-min(ends)[2]]
    for part in range(parts, 0, -1):
        places.append(best[part, places[-1]][2])
    return places[::-1]


def _is_feature(graph: Graph, value: str) -> bool:
    """A feature map or a sequence of tokens: not yet pooled to a vector."""
    shape = graph.values[value].shape
    return (len(shape) == 4 and math.prod(shape[2:]) > 1) or (len(shape) == 3 and shape[1] > 1)


def _enough(parts: int) -> Callable[[list[tuple[str, str]]], int]:
    """Prefers the first list that is long enough for `parts`, otherwise the longest."""
    return lambda places: min(len(places), parts + 1)


def _behind_blocks(trace: Trace, legal: Sequence[tuple[str, str]], position: dict[str, int]) -> list[tuple[str, str]]:
    """The stem's end, then the end of every block, as (module, value).

    A block is a module with two convolutions or matrix products and a legal output, that is neither a sequence of
    such modules nor inside another block.
    """
    weights = [node.inputs[1] for node in trace.graph.nodes if node.op in ("Conv", "MatMul")]
    names = {value: name for name, value in legal}
    large = {
        path: value
        for path, value in trace.module_outputs.items()
        if value in names and sum(weight.startswith(f"{path}.") for weight in weights) >= 2
    }
    single = [path for path in large if not _is_sequence(path, large)]
    blocks = [path for path in single if not any(path.startswith(f"{outer}.") for outer in single)]
    blocks.sort(key=lambda path: position[large[path]])
    for i, path in enumerate(blocks):
        before = [
            cut
            for cut in legal
            if position[cut[1]] < position[large[path]] and not f"{cut[0]}.".startswith(f"{path}.")
        ]
        if before:
            return [before[-1], *((names[large[block]], large[block]) for block in blocks[i:])]
    return [(names[large[block]], large[block]) for block in blocks]


def _is_sequence(path: str, large: dict[str, str]) -> bool:
    """Whether a module only strings others of `large` together: two or more, or one that ends where it ends."""
    inner = [other for other in large if other.startswith(f"{path}.")]
    outermost = [other for other in inner if not any(other.startswith(f"{outer}.") for outer in inner)]
    return len(outermost) > 1 or any(large[other] == large[path] for other in inner)


def _behind_activations(graph: Graph, legal: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    producers = graph.producers()
    return [(name, value) for name, value in legal if producers[value].op in (*_ACTIVATIONS, "MaxPool", "AveragePool")]


def _between(graph: Graph, source: str, target: str) -> Graph:
    """The sub-graph from value `source`, renamed "x", to value `target`."""

    def rename(name: str) -> str:
        return "x" if name == source else name

    needed, nodes = {target}, []
    for node in reversed(graph.nodes):
        if node.output in needed and node.output != source:
            nodes.append(Node(node.op, tuple(rename(name) for name in node.inputs), node.output, node.attributes))
            needed.update(node.inputs)
    values = {name: value for name, value in graph.values.items() if name in needed and name != source}
    entry = graph.values[source]
    values["x"] = type(entry)("x", entry.shape, entry.dtype)
    return Graph(("x",), (target,), tuple(reversed(nodes)), values, graph.constants).pruned()


def _explain(trace: Trace, name: str, order: dict[str, str], chosen: Sequence[str]) -> str:
    """What to write instead of `name`: the nearest legal cut between those named before and after it."""
    if not order:
        return f"the model cannot be cut after {name!r}, nor anywhere else: shortcuts cross every place"
    values, here = list(order.values()), chosen.index(name)
    before, after = (
        [values.index(value) for other in side if (value := trace.module_outputs.get(other)) in values]
        for side in (chosen[:here], chosen[here + 1 :])
    )
    legal = list(order)[max(before, default=-1) + 1 : min(after, default=len(values))]
    unknown = name not in trace.module_outputs
    reason = (
        f"the model has no module {name!r}"
        if unknown
        else f"the model cannot be cut after {name!r}: another value (a shortcut, say) crosses there"
    )
    if not legal:
        return f"{reason}; there is no legal cut between its neighbours in the list: leave it out"
    place = {node.output: i for i, node in enumerate(trace.graph.nodes)}
    nearest = (
        difflib.get_close_matches(name, legal, 1, 0.0)[0]
        if unknown
        else min(legal, key=lambda other: abs(place[order[other]] - place[trace.module_outputs[name]]))
    )
    return f"{reason}; the nearest legal cut is {nearest!r}"
