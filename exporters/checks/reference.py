"""The oracle of every export: the user's own module, run in eager PyTorch, draw by draw, with masks from numpy.

The module's Python code runs as it stands, each dropout that it calls is answered from ``deploykit.masks``, and the
statistics come from ``deploykit.statistics``. Of the rewrite nothing is used but where the rows lie in a mask.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deploykit import masks, noise
from deploykit.errors import ExportError
from deploykit.statistics import summarize
from exporters.checks.watch import places_of
from exporters.eager.dropouts import answered_dropouts
from exporters.eager.entry import Entry
from exporters.eager.modes import borrowed, set_modes
from exporters.rewrite.drawplan import Asked, Placed
from exporters.tasks import OutputTask

__all__ = ["OtherWayError", "Reference", "to_numpy"]

Arrays = dict[str, NDArray[Any]]


class OtherWayError(ExportError):
    """The module does something else than when it was captured: it draws otherwise, or gives other rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """The eager module with what is needed to run it as it was captured.

    ``training`` tells which submodules are in training mode; ``summary`` is as in ``MonteCarloModule``, ``asked`` as
    in ``MonteCarloPlan``.
    """

    entry: Entry
    training: Callable[[str, nn.Module], bool]
    asked: tuple[Asked, ...] = ()
    mode: Literal["independent", "shared"] = "independent"
    summary: Literal["statistics", "first_draw"] = "statistics"
    tasks: Mapping[str, OutputTask] = field(default_factory=dict)
    keep_draws: bool = False
    drawn: frozenset[str] = frozenset()

    def outputs(self, inputs: Arrays, *, sample_ids: NDArray[np.int64], seed: int, draws: Sequence[int]) -> Arrays:
        """What an exported file must give for these inputs and controls, float64 for the statistics."""
        each = [self.draw(inputs, sample_ids=sample_ids, seed=seed, draw=draw) for draw in draws]
        for name in self.tasks:
            _require_rows(name, each[0][name], len(sample_ids))
        if self.summary == "first_draw" or not self.asked:
            return each[0]
        found: Arrays = {}
        for name, task in self.tasks.items():
            if name not in self.drawn:
                found[name] = each[0][name]
                continue
            values = np.stack([draw[name] for draw in each])
            summary = summarize(
                values, classification=task.classes, scores=task.scores, class_axis=task.class_axis,
                event=task.event, variances=_variances(each, task),
            )  # fmt: skip
            found |= {f"{name}.{statistic}": value for statistic, value in summary.items()}
            if self.keep_draws:
                found[f"{name}.draws"] = np.swapaxes(values, 0, 1)
        return found

    def draw(self, inputs: Arrays, *, sample_ids: NDArray[np.int64], seed: int, draw: int) -> Arrays:
        """The module's own outputs for one draw."""
        asked = iter(self.asked)

        def kept(kind: str, shape: Sequence[int], p: float | None) -> Tensor | None:
            expected = next(asked, None)
            if expected is None or (expected.kind, expected.p) != (kind, p):
                raise OtherWayError(
                    f"{places[-1]}: does not draw in every call what it drew when it was captured: now {kind} with "
                    f"p={p}, as where p follows a schedule or a mask is kept for later calls. An exported file keeps "
                    "no state; draw the same in every call"
                )
            if expected.placed is None:
                return None
            if len(shape) != len(expected.placed.sizes):
                raise OtherWayError(
                    f"{places[-1]}: draws {kind} in another shape than when it was captured ({list(shape)}), as for "
                    "the data of a packed sequence; draw before pack_padded_sequence"
                )
            return self._kept(expected.placed, shape, sample_ids, seed, draw)

        tensors = [torch.from_numpy(inputs[name].copy()) for name in self.entry.names]
        with borrowed(self.entry), places_of(self.entry.module) as places, answered_dropouts(kept):
            set_modes(self.entry, self.training)
            found = self.entry.named(*tensors)
            return {name: to_numpy(value) for name, value in found.items()}

    def _kept(self, placed: Placed, shape: Sequence[int], ids: NDArray[np.int64], seed: int, draw: int) -> Tensor:
        site, axis = placed.site, placed.axis
        units = masks.unit_numbers(
            tuple(shape) if axis is None else axis.row(shape, len(ids)), [size is None for size in placed.sizes]
        ).reshape(-1)
        if axis is None:
            drawn = noise.sample(site.kind, seed, site.index, [0], [draw], units, site.p)[0]
            return torch.from_numpy(drawn).reshape(tuple(shape))
        drawn = noise.sample(site.kind, seed, site.index, ids, [draw], units, site.p, mode=self.mode)[0]
        return axis.place(torch.from_numpy(drawn), shape)


def _require_rows(name: str, value: NDArray[Any], rows: int) -> None:
    if value.shape[:1] != (rows,):
        raise OtherWayError(
            f"output {name!r}: has shape {list(value.shape)} for a batch of {rows}; the first dimension must be "
            "the batch, whatever its size. A squeeze() without a dimension takes it away from a batch of one: name it"
        )


def _variances(each: Sequence[Arrays], task: OutputTask) -> NDArray[Any] | None:
    if task.variance is None:
        return None
    values = np.stack([draw[task.variance] for draw in each]).astype(np.float64)
    return np.exp(values) if task.logarithm else values


def to_numpy(value: Tensor) -> NDArray[Any]:
    """A copy in host memory."""
    array: NDArray[Any] = value.numpy(force=True)
    return array.copy()
