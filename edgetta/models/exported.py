"""Programs written by `torch.export.save` (`.pt2`), read without running what a stranger put into the file.

`torch.export.load` trusts its file: it unpickles, evaluates expressions, resolves any dotted name below `torch` as an
operator, and loads compiled libraries. A classifier needs none of that, so the archive is inspected first and refused
where it holds more than plain tensors, ordinary operators and integer expressions.
"""

from __future__ import annotations

import ast
import io
import json
import logging
import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgetta.errors import EdgettaError
from edgetta.models.weights import require_safe_torch

_OPERATORS = re.compile(
    r"torch\.ops\.(aten|prims)\.(?!from_file\b)_?[a-z][a-z0-9_]*\.[A-Za-z0-9]\w*"
    r"|torch\.ops\.higher_order\.wrap_with_(set_grad_enabled|autocast)"
    r"|torch\.sym_(int|float|max|min|not|ite|sum)"
    r"|_operator\.(add|sub|mul|truediv|floordiv|mod|neg|pow|eq|ne|lt|le|gt|ge|and_|or_|not_|getitem)"
    r"|math\.(ceil|floor|trunc|sqrt)"
)
_SYMBOL = re.compile(r"[a-z]{1,4}\d+")
_FUNCTIONS = {
    *("Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Pow", "Mod", "Max", "Min", "Abs", "Not", "And", "Or"),
    *("Eq", "Ne", "Lt", "Le", "Gt", "Ge", "Equality", "Unequality", "StrictLessThan", "LessThan"),
    *("StrictGreaterThan", "GreaterThan", "FloorDiv", "CleanDiv", "CeilDiv", "PythonMod", "ModularIndexing"),
    *("IntTrueDiv", "FloatTrueDiv", "ToFloat", "TruncToInt", "CeilToInt", "FloorToInt", "Where", "PowByNatural"),
}
_CONSTANTS = {"oo", "int_oo", "true", "false"}
_PAYLOAD = re.compile(r"(weight|tensor)_\d+")
_PLAIN = (
    *(ast.Expression, ast.Call, ast.Name, ast.Load, ast.Constant, ast.keyword),
    *(ast.UnaryOp, ast.USub, ast.Not, ast.BinOp, ast.operator, ast.Compare, ast.cmpop, ast.BoolOp, ast.boolop),
)


class ExportedNetwork(torch.export.UnflattenedModule):
    """An exported program as a module again, with its module names, taking one batch of images."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)


def load_exported(path: str | Path) -> tuple[nn.Module, tuple[int | None, ...]]:
    """The network of a `.pt2` file and the (C, H, W) that it takes, None where a size is free.

    Raises EdgettaError where the file is absent, damaged, refused, in training mode, of a fixed batch size, or not a
    program from one tensor of images to one tensor.
    """
    program = read_program(path)
    shape = _image_shape(program, path)
    for node in program.graph.nodes:
        if _trains(node):
            raise EdgettaError(f"{path} was exported in training mode ({node.target}): call eval() before exporting")
    with quiet_export():
        network = torch.export.unflatten(program)
    network.__class__ = ExportedNetwork
    return network.eval(), shape


def read_program(path: str | Path) -> torch.export.ExportedProgram:
    """`torch.export.load`, after looking at what the file holds.

    Raises EdgettaError where the file is absent or damaged, or holds pickled objects, compiled code, operators outside
    aten, or expressions that are no arithmetic.
    """
    path = Path(path)
    if not path.is_file():
        raise EdgettaError(f"model {path}: no such file")
    require_safe_torch(f"model {path}")
    content = path.read_bytes()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            _inspect(path, archive)
        with quiet_export():
            program = torch.export.load(io.BytesIO(content))
    except EdgettaError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise EdgettaError(
            f"model {path}: not a program that torch {torch.__version__} reads ({reason[:200]}); "
            "write it with torch.export.save of the same torch"
        ) from error
    if hasattr(program, "_guards_code"):
        program._guards_code = []  # Python source, which turning the program into a module would run
    return program


@contextmanager
def quiet_export() -> Iterator[None]:
    """torch.export without notes to torch's own developers, and without the graph that it prints where it fails."""
    log = logging.getLogger("torch")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        log.setLevel(level)


def _inspect(path: Path, archive: zipfile.ZipFile) -> None:
    names = [entry.filename for entry in archive.infolist()]
    if len(set(names)) != len(names):
        raise _refused(path, "it holds two entries of one name")
    for entry in archive.infolist():
        if entry.compress_type != zipfile.ZIP_STORED:
            raise _refused(path, f"{entry.filename} is compressed")
        if "aotinductor" in entry.filename or entry.filename.endswith((".so", ".dll", ".dylib", ".cpp", ".py")):
            raise _refused(path, f"it holds compiled code ({entry.filename})")
        if re.search(r"/(custom|opaque)_obj", entry.filename):
            raise _refused(path, f"it holds a pickled object ({entry.filename})")
        content = archive.read(entry)
        if entry.filename.endswith(".json"):
            _inspect_json(path, json.loads(content))
        elif content[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05") and not _raw(entry.filename):
            try:
                torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            except Exception as error:
                raise _refused(path, f"{entry.filename} is a pickle of more than tensors") from error


def _raw(name: str) -> bool:
    """A tensor's bytes, which may look like anything; the JSON beside it says that it is not pickled."""
    return re.search(r"/data/(weights/weight|constants/tensor)_\d+$", name) is not None


def _inspect_json(path: Path, value: Any) -> None:
    pending = [value]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            payload = value.get("path_name", "tensor_0")
            if value.get("use_pickle") or not (isinstance(payload, str) and _PAYLOAD.fullmatch(payload)):
                raise _refused(path, f"it holds a pickled object ({payload})")
            for target in (value[key] for key in ("target", "as_operator") if key in value):
                if not (isinstance(target, str) and _OPERATORS.fullmatch(target)):
                    raise _refused(path, f"it uses the operator {target}, which is not one of aten's")
            if "expr_str" in value and not _arithmetic(value["expr_str"]):
                raise _refused(path, f"it holds an expression that is no arithmetic ({str(value['expr_str'])[:80]})")
            pending += [*value.values(), *value.keys()]
        elif isinstance(value, list):
            pending += value
        elif isinstance(value, str) and "default_factory" in value:
            raise _refused(path, "its signature names a Python factory")


def _arithmetic(expression: Any) -> bool:
    """Whether a size expression is made of numbers, symbols and arithmetic alone. It will be evaluated."""
    try:
        tree = ast.parse(str(expression), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    called = {
        node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    for node in ast.walk(tree):
        if not isinstance(node, _PLAIN):
            return False
        if isinstance(node, ast.Call) and not (isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS):
            return False
        if isinstance(node, ast.Name) and node.id not in called | _CONSTANTS and not _SYMBOL.fullmatch(node.id):
            return False
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and not _SYMBOL.fullmatch(node.value):
            return False
    return True


def _refused(path: Path, reason: str) -> EdgettaError:
    return EdgettaError(
        f"model {path} is refused: {reason}. Export a plain classifier with torch.export.save, or give the code that "
        "builds it as path/file.py:function"
    )


def _image_shape(program: torch.export.ExportedProgram, path: str | Path) -> tuple[int | None, ...]:
    signature = program.graph_signature
    if len(signature.user_inputs) != 1 or len(signature.user_outputs) != 1:
        raise EdgettaError(f"model {path}: must take one tensor of images and return one tensor of logits")
    images = next(node for node in program.graph.nodes if node.name == signature.user_inputs[0]).meta["val"]
    if images.ndim != 4:
        raise EdgettaError(f"model {path}: takes a tensor of {images.ndim} dimensions, not images (N, C, H, W)")
    if isinstance(images.shape[0], int):
        raise EdgettaError(
            f"model {path}: takes batches of exactly {images.shape[0]}; export it with "
            'dynamic_shapes=({0: torch.export.Dim("batch")},) and an example of 2 or more images'
        )
    return tuple(size if isinstance(size, int) else None for size in images.shape[1:])


def _trains(node: torch.fx.Node) -> bool:
    target = str(node.target)
    if target == "aten.batch_norm.default":
        return bool(node.args[5])
    if target == "aten.dropout.default":
        return bool(node.args[2] and node.args[1])
    return target.startswith(("aten._native_batch_norm_legit_functional", "aten.native_dropout"))
