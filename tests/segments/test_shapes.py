"""Shape rules against what torch really makes, operator by operator, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from edgetta.segments.operators import OPERATORS
from edgetta.segments.shapes import BATCH, KNOWN, infer, with_batch

N = BATCH
F, B, I8 = "float", "bool", "int8"
IMAGES = ((N, 4, 9, 11), F)
CONV: dict[str, Any] = {"strides": [2, 1], "pads": [1, 0, 2, 1], "dilations": [1, 2], "group": 2}
POOL: dict[str, Any] = {"kernel_shape": [3, 2], "strides": [2, 3], "pads": [1, 0, 1, 0], "ceil_mode": 0}
SLICE: dict[str, Any] = {"axes": [2, 1], "starts": [1, 0], "ends": [-1, 99], "steps": [3, 1]}

CASES: list[tuple[str, list[Any], dict[str, Any]]] = [
    ("Conv", [IMAGES, ((6, 2, 3, 2), F)], CONV),
    ("Conv", [IMAGES, ((6, 2, 3, 2), F), ((6,), F)], CONV),
    ("ConvTranspose", [IMAGES, ((4, 3, 3, 2), F)], CONV | {"output_padding": [1, 1]}),
    ("ConvWeightGradient", [IMAGES, ((N, 6, 5, 10), F)], CONV | {"kernel_shape": [3, 2]}),
    ("FakeQuantize", [IMAGES, ((), F)], {}),
    ("DequantizeLinear", [((6, 2, 3, 2), I8), ((6,), F)], {"axis": 0}),
    ("DequantizeLinear", [((6, 2), I8), ((2,), F)], {"axis": 1}),
    ("ConvTranspose", [IMAGES, ((4, 3, 1, 1), F), ((6,), F)], CONV | {"pads": [0] * 4, "output_padding": [0, 0]}),
    ("BatchNormalization", [IMAGES, *[((4,), F)] * 4], {"epsilon": 1e-5}),
    ("ChannelMean", [IMAGES], {}),
    ("ChannelMean", [((N, 5), F)], {}),
    ("ChannelVariance", [IMAGES, ((4,), F)], {}),
    ("MatMul", [((N, 3, 4), F), ((4, 5), F)], {}),
    ("MatMul", [((2, 3), F), ((N, 3, 4), F)], {}),
    ("MatMul", [((N, 2, 3, 4), F), ((N, 1, 4, 5), F)], {}),
    ("MatMul", [((N, 4), F), ((4, 5), F)], {}),
    *((op, [IMAGES, ((1, 4, 1, 1), F)], {}) for op in ("Add", "Sub", "Mul", "Div", "Greater", "Less", "Equal")),
    *((op, [((N, 1, 3), F), ((5, 1), F)], {}) for op in ("Add", "Mul")),
    ("Add", [((), F), ((N, 2), F)], {}),
    *((op, [((N, 3), B), ((N, 3), B)], {}) for op in ("And", "Or")),
    *((op, [IMAGES], {}) for op in ("Relu", "Neg", "Exp", "Log", "Sqrt", "Reciprocal", "Sigmoid", "Tanh", "Erf")),
    *((op, [IMAGES], {}) for op in ("Silu", "Gelu", "HardSwish", "Identity", "Detach", "Abs")),
    ("Pow", [((4,), F), ((4,), F)], {}),
    ("Not", [((N, 3), B)], {}),
    ("Clip", [IMAGES], {"min": 0.0, "max": 6.0}),
    ("Clip", [IMAGES], {"min": 0.0, "max": 6.0, "inclusive": 1}),
    ("HardSigmoid", [IMAGES], {"alpha": 0.2, "beta": 0.5}),
    ("Softmax", [IMAGES], {"axis": 3}),
    ("Where", [((N, 3), B), ((N, 3), F), ((), F)], {}),
    ("Masked", [((N, 3), F), ((N, 3), B)], {}),
    ("ReduceMean", [IMAGES], {"axes": [2, 3], "keepdims": 1}),
    ("ReduceMean", [IMAGES], {"axes": [1], "keepdims": 0}),
    ("ReduceSum", [IMAGES], {"axes": [0, 2, 3], "keepdims": 1}),
    ("ReduceSum", [IMAGES], {"axes": [3, 0], "keepdims": 0}),
    ("Reshape", [IMAGES], {"shape": [0, 2, 2, 99]}),
    ("Reshape", [IMAGES], {"shape": [0, -1]}),
    ("Reshape", [IMAGES], {"shape": [0, 0, 99]}),
    ("Reshape", [((3, N, 4), F)], {"shape": [0, -1, 2, 2]}),
    ("Reshape", [((3, N, 4), F)], {"shape": [3, -1, 2]}),
    ("Reshape", [((8 * N, 3), F)], {"shape": [-1, 4, 6]}),
    ("MatMul", [((6 * N, 3, 4), F), ((6 * N, 4, 5), F)], {}),
    ("ChannelMean", [((7 * N, 5), F)], {}),
    ("Reshape", [((4,), F)], {"shape": [1, -1, 1, 1]}),
    ("Transpose", [IMAGES], {"perm": [2, 0, 3, 1]}),
    ("Concat", [IMAGES, ((N, 1, 9, 11), F), IMAGES], {"axis": 1}),
    ("Slice", [IMAGES], SLICE),
    ("Pad", [IMAGES], {"pads": [0, 1, 0, 2, 0, 0, 3, 4], "value": 0.5}),
    ("MaxPool", [IMAGES], POOL),
    *(("MaxPool", [((N, 2, h, h + 1), F)], POOL | {"ceil_mode": 1}) for h in range(5, 12)),
    ("AveragePool", [IMAGES], POOL | {"count_include_pad": 1}),
    *(("AveragePool", [((N, 2, h, h + 2), F)], POOL | {"ceil_mode": 1, "count_include_pad": 0}) for h in range(5, 12)),
]


def real(kind: tuple[tuple[int, ...], str], batch: int) -> torch.Tensor:
    values = torch.rand(with_batch(kind[0], batch)) + 0.5
    if kind[1] == I8:
        return (100 * values).to(torch.int8)
    return values < 1.0 if kind[1] == B else values


@pytest.mark.parametrize("batch", [1, 5])
def test_shapes_are_those_of_torch(batch: int) -> None:
    for op, kinds, attributes in CASES:
        shape, dtype = infer(op, kinds, attributes)
        result = OPERATORS[op](*(real(kind, batch) for kind in kinds), **attributes)
        assert with_batch(shape, batch) == tuple(result.shape), (op, kinds, attributes)
        assert result.dtype == (torch.bool if dtype == B else torch.float32), op


def test_every_operator_has_a_rule_and_a_case() -> None:
    assert set(OPERATORS) == set(KNOWN) == {op for op, _, _ in CASES}


@pytest.mark.parametrize(
    ("op", "kinds", "attributes"),
    [
        ("Einsum", [IMAGES], {}),
        ("FakeQuantize", [IMAGES, ((4,), F)], {}),
        ("DequantizeLinear", [((6, 2), F), ((2,), F)], {"axis": 1}),
        ("DequantizeLinear", [((6, 2), I8), ((6,), F)], {"axis": 1}),
        ("Relu", [], {}),
        ("Relu", [None], {}),
        ("Relu", [IMAGES, IMAGES], {}),
        ("Relu", [((N, 3), B)], {}),
        ("And", [IMAGES, IMAGES], {}),
        ("Masked", [IMAGES, ((N, 4, 9, 1), B)], {}),
        ("Add", [IMAGES, ((N, 4, 9, 10), F)], {}),
        ("Add", [((N, 3), F), ((3, N), F)], {}),
        ("Conv", [IMAGES, ((6, 3, 3, 2), F)], CONV),
        ("Conv", [IMAGES, ((6, 2, 3, 2), F), ((5,), F)], CONV),
        ("Conv", [IMAGES, ((6, 2, 30, 2), F)], CONV),
        ("Conv", [IMAGES, ((6, 2, 3, 2), F)], CONV | {"group": 0}),
        ("Conv", [IMAGES, ((6, 2, 3, 2), F)], CONV | {"strides": [0, 1]}),
        ("Conv", [((N, 4, 9), F), ((6, 2, 3, 2), F)], CONV),
        ("ConvTranspose", [IMAGES, ((4, 3, 3, 2), F)], CONV | {"output_padding": [2, 0]}),
        ("BatchNormalization", [IMAGES, *[((4,), F)] * 3], {"epsilon": 1e-5}),
        ("BatchNormalization", [IMAGES, *[((3,), F)] * 4], {"epsilon": 1e-5}),
        ("BatchNormalization", [IMAGES, *[((4,), F)] * 4], {"epsilon": "small"}),
        ("ChannelMean", [((4, N), F)], {}),
        ("MatMul", [((N, 3), F), ((4, 5), F)], {}),
        ("MatMul", [((3, N), F), ((N, 5), F)], {}),
        ("ReduceMean", [IMAGES], {"axes": [4], "keepdims": 1}),
        ("Reshape", [((3, N, 4), F)], {"shape": [-1, 12]}),
        ("Reshape", [((3, N, 4), F)], {"shape": [-1, 4]}),
        ("MatMul", [((3, 6 * N), F), ((6 * N, 5), F)], {}),
        ("Slice", [((6 * N, 3), F)], {"axes": [0], "starts": [0], "ends": [1], "steps": [1]}),
        ("Reshape", [IMAGES], {"shape": [3, 4, 9, 11]}),
        ("Reshape", [IMAGES], {"shape": [0, 5, -1]}),
        ("Reshape", [IMAGES], {"shape": [0, -1, -1]}),
        ("Reshape", [IMAGES], {"shape": [0, 4, 9, 0, 0]}),
        ("Transpose", [IMAGES], {"perm": [0, 1, 2]}),
        ("Concat", [IMAGES, IMAGES], {"axis": 0}),
        ("Concat", [IMAGES, ((N, 4, 9, 12), F)], {"axis": 1}),
        ("Slice", [IMAGES], SLICE | {"axes": [0, 1]}),
        ("Slice", [IMAGES], SLICE | {"steps": [-1, 1]}),
        ("Pad", [IMAGES], {"pads": [1, 0, 0, 0, 0, 0, 0, 0], "value": 0.0}),
        ("Pad", [IMAGES], {"pads": [0, 0, 0, -1, 0, 0, 0, 0], "value": 0.0}),
        ("MaxPool", [IMAGES], POOL | {"pads": [2, 0, 2, 0]}),
        ("MaxPool", [IMAGES], POOL | {"pads": [1, 0, 0, 0]}),
        ("Softmax", [IMAGES], {"axis": 4}),
        ("Softmax", [IMAGES], {"axis": 1, "temperature": 2.0}),
    ],
)
def test_what_does_not_fit_is_refused(op: str, kinds: list[Any], attributes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=op):
        infer(op, kinds, attributes)
