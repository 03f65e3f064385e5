"""Whether each row of a batch stands alone: what a row gives must depend on no other row, and on no place in the batch.

Asked of the module itself, in eager PyTorch with the masks of the numpy reference, before anything is captured.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from deploykit.compare import worst_of
from deploykit.errors import DeploykitError, ExportError
from deploykit.traces import line_of
from exporters.capture.reach import needed_for
from exporters.checks.reference import Reference
from exporters.checks.trainmodes import close
from exporters.inputs import ModelInputs
from exporters.noise.sites import RECURRENT, arguments, module_of, operation_of
from exporters.rewrite.drawplan import MonteCarloPlan
from exporters.rewrite.layout import symbolic_shape, symbols_of, takes
from exporters.rewrite.probe import SitesOff
from exporters.rewrite.rowplaces import VALUELESS, counting_rows, where_values_say

__all__ = ["blaming_the_module", "check_rows_apart", "notes_of_company"]

Arrays = dict[str, NDArray[Any]]

_ROWS = 6
_PARTS = (slice(0, 3), slice(3, 6))
"""The batch in two: a value made of all rows, were it their maximum, is another one in at least one of the parts."""

_RUNNING = {"cumsum", "cumprod", "cummax", "cummin", "logcumsumexp", "sort", "argsort", "flip", "roll"}
"""Names of operations that give each place along their dimensions what is made of the others."""

_ADVICE = (
    "With draws each row must stand alone: let a row be a whole graph or sequence, not a node of one, leave the output "
    "out with --task NAME=none, or export without --mc-draws"
)
_STATISTICS = (
    "A batch norm without running statistics takes those of the batch: train it with them (track_running_stats=True), "
    "take a norm of each row by itself, as nn.GroupNorm and nn.LayerNorm are, or export without --mc-draws"
)
_SORTED = {"sort", "argsort"}
_UNSORTED = ". Rows that are sorted only to be packed need not be: pack_padded_sequence takes enforce_sorted=False"
_UNORDERED = ". Rows that are sorted and put back again need not be: leave both out"


def check_rows_apart(
    reference: Reference,
    plan: MonteCarloPlan,
    inputs: ModelInputs,
    example: Sequence[Tensor],
    names: Sequence[str],
) -> None:
    """Compare rows with themselves in other company and in another place of the batch.

    ``names`` are those of all outputs of the module; ones that are left out may mix the rows.

    Raises:
        ExportError: names the output, what happened to its rows, and the module where that begins, if it shows.
    """
    sizes = {inputs.batch_name: _ROWS, **inputs.default_sizes()}
    arrays, ids = inputs.random(sizes, seed=5), np.arange(_ROWS, dtype=np.int64)
    other = {name: np.concatenate([array[1:2], array[1:]]) for name, array in arrays.items()}
    with blaming_the_module(sizes):
        before = reference.draw(arrays, sample_ids=ids, seed=1, draw=0)
        swapped = reference.draw(other, sample_ids=ids, seed=1, draw=0)
        parts = [
            reference.draw({name: array[rows] for name, array in arrays.items()}, sample_ids=ids[rows], seed=1, draw=0)
            for rows in _PARTS
        ]
    limit = plan.captured.tolerance
    others = {name: value[1:] for name, value in swapped.items() if value.ndim}
    kept = [node for name, node in zip(names, plan.captured.outputs, strict=True) if name in reference.tasks]
    changed = _changed(others, before, slice(1, None), limit)
    if changed:
        beginning = _beginning(plan, example)
        if beginning is None or free_unbacked_symbols(beginning.meta.get("val")):
            _refuse_places_by_values(plan, _needed(plan, kept))
        raise _mixing(changed, "another row of the batch does", beginning, plan)
    _refuse_places_by_values(plan, _needed(plan, kept))
    _refuse_values_of_all_rows(plan, kept)
    for rows, apart in zip(_PARTS, parts, strict=True):
        changed = _changed({name: value for name, value in apart.items() if value.ndim}, before, rows, limit)
        if changed:
            raise _mixing(changed, "it stands in a smaller batch or in another place of it", None, plan)


def notes_of_company(reference: Reference, inputs: ModelInputs, limit: float) -> tuple[str, ...]:
    """A note where rows of a module that draws nothing change with their company: it may be meant, and must be known.

    ``limit`` is the largest error relative to the scale of an output that counts as none.
    """
    sizes = {inputs.batch_name: _ROWS, **inputs.default_sizes()}
    try:
        arrays = inputs.random(sizes, seed=5)
        other = {name: np.concatenate([array[1:2], array[1:]]) for name, array in arrays.items()}
        ids = np.arange(_ROWS, dtype=np.int64)
        with blaming_the_module(sizes):
            before, swapped = (reference.outputs(given, sample_ids=ids, seed=0, draws=[0]) for given in (arrays, other))
    except DeploykitError:
        return ()  # The module takes no such batch.
    others = {name: value[1:] for name, value in swapped.items() if value.shape[:1] == (_ROWS,)}
    changed = _changed(others, before, slice(1, None), limit)
    if changed is None:
        return ()
    return (
        f"output {changed}: a row changes when another row of its batch does, so predictions depend on the batch size "
        "and on which rows come together; that is the module's own doing, which --mc-draws would refuse",
    )


def _refuse_values_of_all_rows(plan: MonteCarloPlan, outputs: Sequence[fx.Node]) -> None:
    """Refuse what is made of the values of all rows, such as a maximum of a batch, on the way to an output.

    A few random rows need not show it: whether any value is above a limit is mostly the same with other rows.
    """
    nodes = _needed(plan, outputs)
    counted = counting_rows(plan, nodes, outputs)
    if counted is not None:
        raise _refusal(
            counted,
            "counts the rows of the batch, and an output depends on their number or on the place of its row. "
            f"{_ADVICE}",
        )
    for node in nodes:
        does = _done_with_all_rows(plan, node)
        if does:
            raise _refusal(
                node,
                f"rows of a batch would influence each other: it {does}, on which outputs depend. {_advice(plan)}",
            )


def _needed(plan: MonteCarloPlan, outputs: Sequence[fx.Node]) -> list[fx.Node]:
    """The nodes of whose values the outputs are made."""
    graph = plan.captured.graph
    needed = needed_for(graph, outputs, lambda node: () if operation_of(node) in VALUELESS else node.all_input_nodes)
    return [node for node in graph.nodes if node in needed]


def _refuse_places_by_values(plan: MonteCarloPlan, nodes: Sequence[fx.Node]) -> None:
    """Refuse rows that are found by values, as experts find theirs, which no single operation need show."""
    found = where_values_say(plan, nodes)
    if found is not None:
        raise _refusal(
            found[0],
            f"{found[1]}, and what belongs to which row cannot be followed. Compute for all rows and choose by a mask, "
            "as in torch.where(mask, special(x), x), or export without --mc-draws",
        )


def _done_with_all_rows(plan: MonteCarloPlan, node: fx.Node) -> str | None:
    if operation_of(node) in _RUNNING and _runs_along_the_batch(plan, node):
        return "runs along the batch"
    if sum(plan.symbol in size.free_symbols for size in symbolic_shape(node)) > 1:
        return "makes a value of every two of them"
    if _changes_their_number(plan, node):
        return "adds rows to them or takes some away"
    return "makes one value of all of them" if _is_of_all_rows(plan, node) else None


def _runs_along_the_batch(plan: MonteCarloPlan, node: fx.Node) -> bool:
    given = arguments(node)
    axis, rank = plan.axes[given["input"]], given["input"].meta["val"].ndim
    dimensions = given["dims"] if "dims" in given else [given["dim"]]
    # Rolled without a dimension, all values are in one line.
    return axis is not None and (not dimensions or axis.dimension in {each % rank for each in dimensions})


def _changes_their_number(plan: MonteCarloPlan, node: fx.Node) -> bool:
    """Whether there is a size such as ``batch + 1``, as where rows are shifted."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or operation_of(node) in VALUELESS:
        return False
    if not (value.dtype.is_floating_point or value.dtype == torch.bool):
        return False  # Integers of such a size say where rows begin and end.
    odd = (
        size.is_polynomial(plan.symbol) and size.subs(plan.symbol, 0) != 0
        for size in symbolic_shape(node)
        if plan.symbol in size.free_symbols
    )
    return any(odd) and takes(node, plan.symbol)


def _is_of_all_rows(plan: MonteCarloPlan, node: fx.Node) -> bool:
    is_value = isinstance(node.meta.get("val"), Tensor) and operation_of(node) not in VALUELESS
    return is_value and plan.symbol not in symbols_of(node) and takes(node, plan.symbol)


def _changed(got: Arrays, before: Arrays, rows: slice, limit: float) -> str | None:
    """The output that differs most from itself, where one does."""
    for name, value in got.items():
        if value.shape != before[name][rows].shape:
            return name
    worst = worst_of(dict.fromkeys(got, "value"), got, {name: before[name][rows] for name in got})
    far = [each for each in worst if not each.error <= limit]
    return max(far, key=lambda each: each.error).output if far else None


def _mixing(output: str, when: str, beginning: fx.Node | None, plan: MonteCarloPlan) -> ExportError:
    text = (
        f"rows of a batch would influence each other: in output {output} a row changes when {when}, with its own "
        f"inputs and masks the same. {_advice(plan, beginning)}"
    )
    return ExportError(f"(root): {text}") if beginning is None else _refusal(beginning, text)


def _refusal(node: fx.Node, text: str) -> ExportError:
    part = module_of(node)
    by_values = bool(free_unbacked_symbols(node.meta.get("val")))
    return ExportError(f"{part} ({node.target}): {text}", part=part, by_values=by_values)


def _advice(plan: MonteCarloPlan, beginning: fx.Node | None = None) -> str:
    if beginning is not None and operation_of(beginning) == "batch_norm":
        return _STATISTICS
    if not _sorts(plan):
        return _ADVICE
    packed = any(operation_of(node) in RECURRENT for node in plan.captured.graph.nodes)
    return _ADVICE + (_UNSORTED if packed else _UNORDERED)


def _sorts(plan: MonteCarloPlan) -> bool:
    nodes = plan.captured.graph.nodes
    return any(operation_of(node) in _SORTED and _runs_along_the_batch(plan, node) for node in nodes)


def _beginning(plan: MonteCarloPlan, example: Sequence[Tensor]) -> fx.Node | None:
    """The operation in which a change of row 0 first shows in other rows."""
    sites, batch = list(plan.sites_of), example[0].shape[0]
    runs = []
    for inputs in ([tensor.clone() for tensor in example], [torch.cat([each[1:2], each[1:]]) for each in example]):
        runner = SitesOff(plan.captured.module, sites, record=True)
        runner.run(*inputs)
        runs.append(runner.seen)
    before, after = runs
    return next((node for node in before if _mixed(plan, node, before, after, batch)), None)


def _mixed(
    plan: MonteCarloPlan, node: fx.Node, before: Mapping[fx.Node, Tensor], after: Mapping[fx.Node, Tensor], batch: int
) -> bool:
    if before[node].shape != after[node].shape:
        return False
    axis = plan.axes[node]
    if axis is None:
        return not close(after[node], before[node])
    shape = axis.split(before[node].shape, batch)
    return not close(after[node].reshape(shape)[:, 1:], before[node].reshape(shape)[:, 1:])


@contextmanager
def blaming_the_module(sizes: Mapping[str, int]) -> Iterator[None]:
    """The module's own code runs on random inputs; where it fails, that is said.

    Raises:
        ExportError: the module failed.
    """
    try:
        yield
    except DeploykitError:
        raise
    except Exception as error:
        line = Path(line_of(error)).name
        what = f"{type(error).__name__}: {error}{line and f' ({line})'}"
        raise ExportError(
            f"the module itself fails on random inputs with {dict(sizes)}: {what}; "
            "give a real --example, a --range for integer inputs, the dtypes that it takes with --input, or fix the "
            "dimension that must not change. Every value is drawn for itself: where some belong together, as two "
            "corners of a box do, take free ones (a corner and a size) in a module around it, and compute the others"
        ) from error
