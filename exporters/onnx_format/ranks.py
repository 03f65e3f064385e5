"""What torch's exporter to ONNX lacks of ranks: medians, votes, places in an order, and running extremes.

For the ``custom_translation_table`` of ``torch.onnx.export``. What is no number is larger than all others, as torch has
it, and makes a median none. Which of several equals is named is defined for running extremes alone: the last.
"""

import math
from collections.abc import Callable
from typing import Any

from exporters.onnx_format.exact import number_like

__all__ = ["rank_translations"]

_INT32, _INT64 = 6, 7
"""Types as ONNX numbers them."""

_FEW = 8
"""Of so many boundaries all are compared at once."""


def rank_translations() -> dict[Any, Callable[..., Any]]:
    import torch

    aten = torch.ops.aten
    return {
        aten.bucketize.Scalar: lambda value, boundaries, **options: _places(boundaries, value, **options),
        aten.bucketize.Tensor: lambda value, boundaries, **options: _places(boundaries, value, **options),
        aten.cummax.default: _of_narrow(_running("GreaterOrEqual")),
        aten.cummin.default: _of_narrow(_running("LessOrEqual")),
        aten.kthvalue.default: _of_narrow(_kth_value),
        aten.median.dim: _of_narrow(_median),
        aten.mode.default: _of_narrow(_vote),
        aten.searchsorted.Scalar: _places,
        aten.searchsorted.Tensor: _places,
    }


def _op() -> Any:
    from onnxscript import opset18

    return opset18


def _of_narrow(translation: Callable[..., Any]) -> Callable[..., Any]:
    """The same of booleans and small integers, for which ONNX Runtime lacks operations: as int32, and back."""

    def translated(value: Any, *given: Any, **named: Any) -> Any:
        import onnx_ir as ir

        kinds = ir.DataType
        if value.dtype not in (kinds.BOOL, kinds.UINT8, kinds.INT8, kinds.INT16):
            return translation(value, *given, **named)
        wide = _op().Cast(value, to=_INT32)
        wide.shape, wide.type = value.shape, ir.TensorType(kinds.INT32)  # The translations ask for them.
        found, places = translation(wide, *given, **named)
        return _op().Cast(found, to=value.dtype), places

    return translated


def _axis(value: Any, dim: int) -> int:
    return dim % len(value.shape)


def _size(value: Any, axis: int) -> Any:
    """How many there are along it: int64 (1,)."""
    return _op().Shape(value, start=axis, end=axis + 1)


def _range(value: Any, axis: int) -> Any:
    """The places along it: int64 (n,)."""
    op = _op()
    return op.Range(op.Constant(value_int=0), op.Squeeze(_size(value, axis)), op.Constant(value_int=1))


def _numbers(*numbers: int) -> Any:
    return _op().Constant(value_ints=list(numbers))


def _nth(value: Any, count: Any, axis: int, keepdim: bool, is_none: Callable[[Any], Any]) -> tuple[Any, Any]:
    """The ``count``-th least with its place; ``is_none`` says by how many values are no numbers whether it is none."""
    op = _op()
    numbers = value
    if value.dtype.is_floating_point():
        numbers = op.Where(op.IsNaN(value), number_like(math.inf, value), value)
    found, place = (op.Gather(each, _numbers(-1), axis=axis) for each in op.TopK(numbers, count, axis=axis, largest=0))
    if value.dtype.is_floating_point():
        no_number = op.Cast(op.IsNaN(value), to=_INT64)
        none = is_none(op.ReduceSum(no_number, _numbers(axis), keepdims=1))
        found = op.Where(none, number_like(math.nan, value), found)
        # Of 32 bits: onnxruntime 1.15 has no place of the largest of 64.
        place = op.Where(none, op.ArgMax(op.Cast(no_number, to=_INT32), axis=axis, keepdims=1), place)
    return (found, place) if keepdim else (op.Squeeze(found, _numbers(axis)), op.Squeeze(place, _numbers(axis)))


def _median(value: Any, dim: int, keepdim: bool = False) -> tuple[Any, Any]:
    """The lower one of two in the middle."""
    op, axis = _op(), _axis(value, dim)
    middle = op.Div(op.Add(_size(value, axis), _numbers(1)), _numbers(2))
    return _nth(value, middle, axis, keepdim, lambda lost: op.Greater(lost, _numbers(0)))


def _kth_value(value: Any, k: int, dim: int = -1, keepdim: bool = False) -> tuple[Any, Any]:
    op, axis = _op(), _axis(value, dim)
    count = _numbers(k) if isinstance(k, int) else op.Reshape(k, _numbers(1))
    return _nth(value, count, axis, keepdim, lambda lost: op.Greater(count, op.Sub(_size(value, axis), lost)))


def _along(line: Any, dimensions: int) -> Any:
    """(n,) with more dimensions behind, of size 1, so that it has so many."""
    return _op().Unsqueeze(line, _numbers(*range(1, dimensions))) if dimensions > 1 else line


def _vote(value: Any, dim: int = -1, keepdim: bool = False) -> tuple[Any, Any]:
    """The most frequent value, the least of several, and its last place."""
    op, axis = _op(), _axis(value, dim)
    same = op.Equal(op.Unsqueeze(value, _numbers(axis)), op.Unsqueeze(value, _numbers(axis + 1)))
    count = op.ReduceSum(op.Cast(same, to=_INT64), _numbers(axis), keepdims=0)
    most = op.Equal(count, op.ReduceMax(count, _numbers(axis), keepdims=1))
    # Another value of the same tensor, in place of a limit that each type has of its own.
    others = op.ReduceMax(value, _numbers(axis), keepdims=1)
    found = op.ReduceMin(op.Where(most, value, others), _numbers(axis), keepdims=keepdim)
    wanted = found if keepdim else op.Unsqueeze(found, _numbers(axis))
    places = _along(_range(value, axis), len(value.shape) - axis)
    here = op.Equal(value, wanted)
    if value.dtype.is_floating_point():
        here = op.Or(here, op.And(op.IsNaN(value), op.IsNaN(wanted)))
    last = op.ReduceMax(op.Where(here, places, _numbers(-1)), _numbers(axis), keepdims=keepdim)
    return found, last


def _places(
    ordered: Any, value: Any, out_int32: bool = False, right: bool = False, side: str | None = None, sorter: Any = None
) -> Any:
    """How many values of ``ordered`` (n,) or (..., n) come before each of ``value``: what a search finds in order."""
    if sorter is not None:
        raise NotImplementedError("it has a sorter; sort the sequence, with gather")
    op = _op()
    line = ordered if len(ordered.shape) == 1 else op.Unsqueeze(ordered, _numbers(-2))
    if isinstance(value, (int, float)):
        value = op.Constant(**{f"value_{type(value).__name__}": value})
    if not ordered.dtype.is_floating_point():  # 0.5 lies between 0 and 1.
        line = op.CastLike(line, value)
    wanted, size = op.CastLike(value, line), ordered.shape[-1]
    compare = op.Greater if right or side == "right" else op.GreaterOrEqual
    if len(ordered.shape) == 1 and isinstance(size, int) and size > _FEW:
        found = _by_halves(line, size, wanted, compare)
    else:
        before = op.Cast(op.Not(compare(line, op.Unsqueeze(wanted, _numbers(-1)))), to=_INT64)
        found = op.ReduceSum(before, _numbers(-1), keepdims=0)
    return op.Cast(found, to=_INT32) if out_int32 else found


def _by_halves(line: Any, size: int, wanted: Any, compare: Callable[[Any, Any], Any]) -> Any:
    """The same in as many steps as ``size`` has binary digits, instead of a comparison with every boundary."""
    op = _op()
    found, last = op.Expand(op.Constant(value_int=0), op.Shape(wanted)), op.Constant(value_int=size)
    for digit in reversed(range(size.bit_length())):
        more = op.Add(found, op.Constant(value_int=1 << digit))
        beside = op.Gather(line, op.Sub(op.Min(more, last), op.Constant(value_int=1)), axis=0)
        before = op.And(op.LessOrEqual(more, last), op.Not(compare(beside, wanted)))
        found = op.Where(before, more, found)
    return found


def _running(compare: str) -> Callable[..., Any]:
    """The extreme of all values so far along ``dim`` and its last place: (values, places)."""

    def running(value: Any, dim: int) -> tuple[Any, Any]:
        from torch.onnx._internal.exporter._torchlib.ops.hop import call_op

        op, axis = _op(), _axis(value, dim)
        first = op.Gather(value, op.Constant(value_int=0), axis=axis)
        start = op.Expand(op.Constant(value_int=0), op.Shape(first))
        _, _, values, numbers = call_op(
            "Scan", first, start, value, _range(value, axis), _num_outputs=4, body=_step(compare, value, axis),
            num_scan_inputs=2, scan_input_axes=[axis, 0], scan_output_axes=[axis, axis],
        )  # fmt: skip
        return values, numbers

    return running


def _step(compare: str, value: Any, axis: int) -> Any:
    """One step: (extreme, place), and the next value with its place, to (extreme, place) twice.

    Older versions of onnxruntime do not find out the shapes of its outputs.
    """
    import onnx_ir as ir

    kinds = (value.dtype, ir.DataType.INT64)
    best, place, this, number = (
        ir.Value(name=f"running_{name}", type=ir.TensorType(kind))
        for name, kind in zip(("best", "place", "value", "number"), kinds * 2, strict=True)
    )
    nodes = [ir.node(compare, [this, best])]
    if value.dtype.is_floating_point():
        nodes += [ir.node("IsNaN", [this])]
        nodes += [ir.node("Or", [node.outputs[0] for node in nodes])]
    chosen = nodes[-1].outputs[0]
    ends = [ir.node("Where", [chosen, this, best]), ir.node("Where", [chosen, number, place])]
    ends += [ir.node("Identity", node.outputs) for node in ends]
    for count, node in enumerate([*nodes, *ends]):
        node.outputs[0].name = f"running_{count}"
    for node, kind in zip(ends, kinds * 2, strict=True):
        node.outputs[0].type = ir.TensorType(kind)
        node.outputs[0].shape = ir.Shape([size for number, size in enumerate(value.shape) if number != axis])
    outputs = [node.outputs[0] for node in ends]
    return ir.Graph([best, place, this, number], outputs, nodes=[*nodes, *ends], name="running_step")
