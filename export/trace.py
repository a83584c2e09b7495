"""Trace a torch model into a `Graph`, remembering which module made which value.

Tracing is `torch.export` (public API) followed by a lowering of its operators, one rule each, in `aten.py`. The model
must be in eval mode: statistics become constants, and a BatchNorm policy decides later what becomes of them.
"""

from __future__ import annotations

import copy
import inspect
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from edgetta.errors import EdgettaError, UsageError, one_line
from edgetta.export import aten, aten_pooling, aten_resampling, aten_shapes  # noqa: F401 (they register their rules)
from edgetta.export.lowering import RULES, Lowering
from edgetta.export.regions import has_regions, put_in_line
from edgetta.models.exported import quiet_export
from edgetta.models.wrappers import in_float32, unwrapped
from edgetta.segments.graph import BATCH, Graph, Node

_EXAMPLE_BATCH = 4  # batches of 0 and 1 would be specialised


class TraceError(EdgettaError):
    """The model cannot be traced, or uses an operator that has no rule."""


@dataclass(frozen=True)
class Trace:
    """A whole model as one graph.

    `graph` takes images (N, C, H, W) and gives logits (N, classes): a softmax at its end, or its logarithm, is left
    out, because logits differ from it by a constant that no softmax sees. `module_outputs` maps a module's path, as in
    `named_modules()`, to the value that it returns.
    """

    graph: Graph
    module_outputs: Mapping[str, str]


def trace(model: nn.Module | torch.export.ExportedProgram, input_shape: tuple[int, int, int]) -> Trace:
    """Trace `model` for images of `input_shape` (C, H, W) and any batch size.

    Wrappers (DataParallel, torch.compile) are taken off, and other floating types are taken as float32.
    Raises `UsageError` when the model is in training mode, `TraceError` when it cannot be traced or uses an operator
    that edgetta does not know.
    """
    program = model if isinstance(model, torch.export.ExportedProgram) else _export(model, input_shape)
    if has_regions(program):
        program = copy.deepcopy(program) if program is model else program
        put_in_line(program)
    program = _with_rules(program)
    constants = {**program.state_dict, **program.constants}
    signature = program.graph_signature
    tensors = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    if len(signature.user_inputs) != 1 or len(signature.user_outputs) != 1:
        raise TraceError("the model must take one tensor of images and return one tensor; wrap it so that it does")

    lowering = Lowering()
    known: dict[str, Any] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in tensors:
            target = tensors[node.name]
            tensor = constants[target].detach().cpu()
            known[node.name] = lowering.name(tensor.float() if tensor.is_floating_point() else tensor, target)
        elif node.op == "placeholder":
            _check_input(node.meta["val"], input_shape)
            known[node.name] = lowering.builder.input("x", (BATCH, *input_shape))
    module_outputs: dict[str, str] = {}
    (output,) = _walk(lowering, program.graph, known, module_outputs)
    if not isinstance(output, str):
        raise TraceError("the model's output does not depend on its input")
    module_outputs.pop("", None)
    graph, renamed = _without_idle_detaches(lowering.builder.graph([_logits(lowering, output)]))
    module_outputs = {path: renamed.get(value, value) for path, value in module_outputs.items()}
    return Trace(graph, {path: value for path, value in module_outputs.items() if value in graph.values})


def _walk(
    lowering: Lowering, graph: torch.fx.Graph, known: dict[str, Any], module_outputs: dict[str, str]
) -> tuple[Any, ...]:
    """Lower every call of a traced graph whose placeholders are `known`; returns its outputs."""
    outputs: tuple[Any, ...] = ()
    for node in graph.nodes:
        if node.op == "placeholder":
            continue
        if node.op == "output":
            outputs = torch.fx.map_arg(tuple(node.args[0]), lambda n: known[n.name])  # type: ignore[assignment]
        else:
            known[node.name] = _lower(lowering, node, known)
            written = node
            while _in_place(written):  # every name of what was written to means the new value from here on
                written = written.args[0]
                known[written.name] = known[node.name]
            if isinstance(known[node.name], str):
                for path, _ in (node.meta.get("nn_module_stack") or {}).values():
                    module_outputs[path] = known[node.name]
    return outputs


def _logits(lowering: Lowering, output: str) -> str:
    """What goes into a softmax over classes at the very end, be it alone, clipped, or under a logarithm."""
    producers = {node.output: node for node in lowering.builder.nodes}
    name = output
    for op in ("Log", "Clip", "Softmax"):
        node = producers.get(name)
        if node is not None and node.op == op:
            name = node.inputs[0]
            if op == "Softmax":
                return name if len(lowering.builder.shape(name)) == 2 else output
    return output


def _without_idle_detaches(graph: Graph) -> tuple[Graph, dict[str, str]]:
    """Drop each `Detach` through which everything passes: it would leave no gradient at all. Old names -> new ones."""
    last_use = {name: i for i, node in enumerate(graph.nodes) for name in node.inputs}
    last_use[graph.outputs[0]] = len(graph.nodes)
    renamed: dict[str, str] = {}
    nodes: list[Node] = []
    live = set(graph.inputs)
    for i, node in enumerate(graph.nodes):
        live.add(node.output)
        live = {name for name in live if last_use.get(name, -1) > i}
        if node.op == "Detach" and live == {node.output}:
            renamed[node.output] = renamed.get(node.inputs[0], node.inputs[0])
        else:
            nodes.append(Node(node.op, tuple(renamed.get(n, n) for n in node.inputs), node.output, node.attributes))
    outputs = tuple(renamed.get(name, name) for name in graph.outputs)
    return Graph(graph.inputs, outputs, tuple(nodes), graph.values, graph.constants).pruned(), renamed


def _export(model: nn.Module, input_shape: tuple[int, int, int]) -> torch.export.ExportedProgram:
    training = [name or "the model" for name, module in model.named_modules() if module.training]
    if training:
        raise UsageError(f"{training[0]} is in training mode; call model.eval() before exporting")
    model, _ = in_float32(unwrapped(model), own=False)
    example = torch.zeros(_EXAMPLE_BATCH, *input_shape)
    images: Any = {0: torch.export.Dim("batch", min=1, max=65536)}
    first = next(iter(inspect.signature(model.forward).parameters.values()), None)
    if first is not None and first.kind is first.VAR_POSITIONAL:  # forward(*x)
        images = (images,)
    try:
        with quiet_export():
            return torch.export.export(model, (example,), dynamic_shapes=(images,))
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise TraceError(f"torch.export cannot trace the model at input {input_shape}: {reason}") from error


def _check_input(fake: torch.Tensor, input_shape: tuple[int, int, int]) -> None:
    """An exported program brings its own input: any batch, and images of the size asked for."""
    if isinstance(fake.shape[0], int):
        raise TraceError(
            f"the program takes a batch of {fake.shape[0]} only; export it with torch.export.export(..., "
            "dynamic_shapes=({0: torch.export.Dim('batch')},)) and an example batch of at least 2"
        )
    if tuple(fake.shape[1:]) != tuple(input_shape):
        raise TraceError(f"the program takes images of shape {tuple(fake.shape[1:])}, not {tuple(input_shape)}")


def _with_rules(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The program as it is where every call has a rule, else taken apart by torch, which takes three times as long.

    First torch takes composite operators apart alone, then those that are still unknown.
    """
    for attempt in range(3):
        calls = (node for node in program.graph.nodes if node.op == "call_function")
        missing = [node for node in calls if not _has_rule(node)]
        unknown = {node.target for node in missing if _functional(node) not in RULES}
        known = torch.export.default_decompositions() if missing and attempt else {}
        table = {target: known[target] for target in unknown if target in known}
        if not missing or (attempt and not table):
            break
        try:
            with quiet_export():
                program = program.run_decompositions(table)
        except Exception as error:  # torch raises many kinds
            first = next((node for node in missing if node.target in unknown), missing[0])
            raise TraceError(
                f"operator {first.target} (in module {_module(first)!r}) has no rule in edgetta.export.aten, and "
                f"torch cannot take it apart ({one_line(error)[:200]}); write its module with known ones"
            ) from error
    return program


def _module(node: torch.fx.Node) -> str:
    """The path of the module that made a call, "" for the model itself."""
    return next(reversed([path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]), "")


def _has_rule(node: torch.fx.Node) -> bool:
    """Whether a rule takes a call as it is. One that writes in place must write to what nothing else looks at."""
    if node.target is operator.getitem or isinstance(node.meta.get("val"), torch.SymInt) or _asserts(node):
        return True
    if _functional(node) not in RULES:
        return False
    if not _in_place(node):
        return True
    written = node.args[0]
    if not isinstance(written, torch.fx.Node) or written.op != "call_function":
        return False
    viewed = not _in_place(written) and _is_view(written)
    return not viewed and not any(_is_view(user) for user in written.users if user is not node)


def _asserts(node: torch.fx.Node) -> bool:
    """Whether a call checks something and makes nothing."""
    return str(node.target).startswith("aten._assert")


def _functional(node: torch.fx.Node) -> str:
    """The name of a call's operator, or of the operator that makes a new tensor where it writes in place."""
    return str(node.target).replace("_.", ".") if _in_place(node) else str(node.target)


def _in_place(node: torch.fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def _is_view(node: torch.fx.Node) -> bool:
    """Whether a call may return its argument's memory."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or RULES.get(str(node.target)) in (aten_shapes.identity, aten_shapes.dropout):
        return True
    return any(returned.alias_info is not None for returned in schema.returns)


def _lower(lowering: Lowering, node: torch.fx.Node, known: Mapping[str, Any]) -> Any:
    """The lowered value of one traced call: a value's name, a constant tensor, a tuple of either, or a size."""
    target, fake = str(node.target), node.meta.get("val")
    if isinstance(fake, torch.SymInt):
        return BATCH  # or a product with it: rules take shapes from the fake tensors, not from sizes
    if _asserts(node):
        return None
    arguments = torch.fx.map_arg(node.args, lambda n: known[n.name])
    keywords = torch.fx.map_arg(node.kwargs, lambda n: known[n.name])
    if node.target is operator.getitem:
        return arguments[0][arguments[1]]  # type: ignore[index]
    values = lowering.builder.values
    if not _symbolic(fake) and not any(isinstance(a, str) and a in values for a in _leaves((arguments, keywords))):
        try:  # constants alone: compute them now, in float64 so that no engine sees them rounded twice
            return node.target(*_doubled(arguments), **_doubled(keywords))  # type: ignore[operator]
        except Exception as error:  # torch raises many kinds
            raise TraceError(f"cannot evaluate {target} on constants: {error}") from error
    where = _module(node)
    rule = RULES.get(_functional(node))
    if rule is None:
        raise TraceError(
            f"operator {target} (in module {where!r}) has no rule in edgetta.export.aten; "
            "replace the module by one made of known operators, or add a rule"
        )
    try:
        return rule(lowering, fake, *arguments, **keywords)
    except ValueError as error:
        raise TraceError(f"operator {target} (in module {where!r}): {error}") from error
    except Exception as error:  # a rule that does not foresee what the call asks of it
        raise TraceError(
            f"operator {target} (in module {where!r}) is used in a way that its rule does not know "
            f"({type(error).__name__}: {one_line(error)[:200]}); replace the module by one made of known operators"
        ) from error


def _symbolic(fake: Any) -> bool:
    """Whether a traced result's shape depends on the batch."""
    return any(not isinstance(size, int) for tensor in _leaves(fake) for size in getattr(tensor, "shape", ()))


def _doubled(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _doubled(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_doubled(item) for item in value)
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return [leaf for item in value.values() for leaf in _leaves(item)]
    if isinstance(value, list | tuple):
        return [leaf for item in value for leaf in _leaves(item)]
    return [value]
