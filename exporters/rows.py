"""Whether each row of a batch stands alone: what a row gives must depend on no other row, and on no place in the batch.

Asked of the module itself, in eager PyTorch with the masks of the numpy reference, before anything is captured.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from deploykit.compare import default_tolerance, worst_of
from deploykit.errors import ExportError
from exporters.drawplan import MonteCarloPlan, SitesOff
from exporters.inputs import ModelInputs
from exporters.reference import Reference
from exporters.sites import module_of
from exporters.trainmodes import close

__all__ = ["blaming_the_module", "check_rows_apart"]

Arrays = dict[str, NDArray[Any]]

_ROWS = 6
_ALONE = slice(3, 5)


def check_rows_apart(
    reference: Reference, plan: MonteCarloPlan, inputs: ModelInputs, example: Sequence[Tensor]
) -> None:
    """Compare rows with themselves in other company and in another place of the batch.

    Raises:
        ExportError: names the output, what happened to its rows, and the module where that begins, if it shows.
    """
    sizes = {inputs.batch_name: _ROWS, **inputs.default_sizes()}
    arrays, ids = inputs.random(sizes, seed=5), np.arange(_ROWS, dtype=np.int64)
    other = {name: np.concatenate([array[1:2], array[1:]]) for name, array in arrays.items()}
    alone = {name: array[_ALONE] for name, array in arrays.items()}
    with blaming_the_module(sizes):
        before = reference.draw(arrays, sample_ids=ids, seed=1, draw=0)
        swapped = reference.draw(other, sample_ids=ids, seed=1, draw=0)
        apart = reference.draw(alone, sample_ids=ids[_ALONE], seed=1, draw=0)
    _refuse_rowless(reference, before)
    limit = default_tolerance(inputs.specs[0].dtype)
    others = {name: value[1:] for name, value in swapped.items() if value.ndim}
    changed = _changed(others, before, slice(1, None), limit)
    if changed:
        raise ExportError(_text(changed, "another row of the batch does", _beginning(plan, example)))
    changed = _changed({name: value for name, value in apart.items() if value.ndim}, before, _ALONE, limit)
    if changed:
        raise ExportError(_text(changed, "it stands in a smaller batch or in another place of it", None))


def _refuse_rowless(reference: Reference, found: Arrays) -> None:
    for name in sorted(reference.drawn):
        if not found[name].ndim:
            raise ExportError(
                f"output {name!r}: is a single number and depends on a dropout, so the rows of a batch would influence "
                f"each other; leave it out with --task {name}=none"
            )


def _changed(got: Arrays, before: Arrays, rows: slice, limit: float) -> str | None:
    """The output that differs most from itself, where one does."""
    for name, value in got.items():
        if value.shape != before[name][rows].shape:
            return name
    worst = worst_of(dict.fromkeys(got, "value"), got, {name: before[name][rows] for name in got})
    far = [each for each in worst if not each.error <= limit]
    return max(far, key=lambda each: each.error).output if far else None


def _text(output: str, when: str, where: str | None) -> str:
    return (
        f"{where or '(root)'}: rows of a batch would influence each other: in output {output} a row changes when "
        f"{when}, with its own inputs and masks the same. With draws each row must stand alone: let a row be a whole "
        "graph or sequence, not a node of one, leave the output out with --task NAME=none, or export without --mc-draws"
    )


def _beginning(plan: MonteCarloPlan, example: Sequence[Tensor]) -> str | None:
    """The module and the operation in which a change of row 0 first shows in other rows."""
    sites, batch = list(plan.sites_of), example[0].shape[0]
    runs = []
    for inputs in ([tensor.clone() for tensor in example], [torch.cat([each[1:2], each[1:]]) for each in example]):
        runner = SitesOff(plan.captured.module, sites, record=True)
        runner.run(*inputs)
        runs.append(runner.seen)
    before, after = runs
    return next((_name(node) for node in before if _mixed(plan, node, before, after, batch)), None)


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


def _name(node: fx.Node) -> str:
    return f"{module_of(node)} ({node.target})"


@contextmanager
def blaming_the_module(sizes: Mapping[str, int]) -> Iterator[None]:
    """The module's own code runs on random inputs; where it fails, that is said.

    Raises:
        ExportError: the module failed.
    """
    try:
        yield
    except (RuntimeError, IndexError, ValueError) as error:
        raise ExportError(
            f"the module itself fails on random inputs with {dict(sizes)}: {type(error).__name__}: {error}; "
            "give a real --example, a --range for integer inputs, or fix the dimension that must not change"
        ) from error
