"""Predict one batch in several calls of a runner: fewer rows at a time, and draws in pieces until there are enough."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploykit.passes import DRAWS_USED, Passes, in_cache, rows_per_call
from deploykit.pieces import Pieces
from runners.base import Arrays, Runner

__all__ = ["most_draws", "predict_in_passes"]

Ids = NDArray[Any]


def predict_in_passes(
    runner: Runner,
    inputs: Arrays,
    passes: Passes,
    *,
    sample_ids: Ids,
    seed: int | None,
    draws: int | None,
    first_draw: int = 0,
    told: Callable[[int], None] = lambda _: None,
) -> Arrays:
    """What ``runner.predict`` gives, and ``draws_used`` (batch) int64 where ``passes`` has a bound.

    The masks do not depend on the cuts; values do, by rounding. ``passes`` must come from ``plan_passes`` for the same
    artifact, and ``draws`` with it. ``told`` hears after each call how many rows more are done, by the share of all
    draws of all rows that are; 0 where that is less than a row.
    """
    section = runner.artifact.manifest.monte_carlo
    if section is None:
        return runner.predict(inputs, sample_ids=sample_ids, seed=seed, first_draw=first_draw, draws=draws)
    total = section.draws if draws is None else draws
    calls = _Calls(runner, inputs, sample_ids, seed, _Share(total, told))
    passes = _passes_here(runner, passes, total)
    sizes = passes.pieces(total)
    if len(sizes) == 1 and passes.draws_until is None:
        return calls.predict(np.arange(len(sample_ids)), first_draw, total)
    return _in_pieces(calls, passes, sizes, first_draw)


def _passes_here(runner: Runner, passes: Passes, draws: int) -> Passes:
    """``passes`` as they are carried out on the runner's device, of ``draws`` draws."""
    return in_cache(passes, runner.artifact.manifest, draws) if runner.device.kind == "cpu" else passes


def most_draws(runner: Runner, passes: Passes, draws: int | None) -> int | None:
    """How many draws one call of the runner has at most; None for a deterministic model."""
    section = runner.artifact.manifest.monte_carlo
    if section is None:
        return None
    total = section.draws if draws is None else draws
    return max(_passes_here(runner, passes, total).pieces(total))


def _in_pieces(calls: "_Calls", passes: Passes, sizes: list[int], first_draw: int) -> Arrays:
    rows = np.arange(len(calls.sample_ids))
    pieces = Pieces(calls.runner.artifact.manifest.outputs, len(rows))
    done = 0
    ends = set(passes.decisions(sum(sizes)))
    for size in sizes:
        pieces.add(rows, calls.predict(rows, first_draw + done, size), size)
        done += size
        if passes.draws_until is not None and done in ends:
            # Not "at or above": where the error is NaN, no number of draws is enough.
            rows = rows[~(pieces.standard_error()[rows] <= passes.draws_until)]
            if not len(rows):
                break
    outputs = pieces.outputs()
    return outputs if passes.draws_until is None else {**outputs, DRAWS_USED: pieces.counts}


class _Share:
    """Tells how many rows of a batch are done, counted by their draws: ``draws`` of each row at most."""

    def __init__(self, draws: int, told: Callable[[int], None]) -> None:
        self._draws, self._told = draws, told
        self._computed = self._rows = 0

    def add(self, rows: int, draws: int) -> None:
        """So many draws more of so many rows."""
        self._computed += rows * draws
        before, self._rows = self._rows, self._computed // self._draws
        self._told(self._rows - before)


class _Calls:
    """One batch, some of whose rows are predicted with some of the draws."""

    def __init__(self, runner: Runner, inputs: Arrays, sample_ids: Ids, seed: int | None, share: _Share) -> None:
        self.runner, self.inputs, self.sample_ids, self.seed, self._share = runner, inputs, sample_ids, seed, share

    def predict(self, rows: NDArray[np.int64], first_draw: int, draws: int) -> Arrays:
        """The outputs of the rows at these places of the batch, in their order."""
        found = [self._call(chosen, first_draw, draws) for chosen in self._cuts(rows, draws)]
        if len(found) == 1:
            return found[0]
        return {name: np.concatenate([part[name] for part in found]) for name in found[0]}

    def _call(self, chosen: Any, first_draw: int, draws: int) -> Arrays:
        ids = self.sample_ids[chosen]
        inputs = {name: array[chosen] for name, array in self.inputs.items()}
        outputs = self.runner.predict(inputs, sample_ids=ids, seed=self.seed, first_draw=first_draw, draws=draws)
        self._share.add(len(ids), draws)
        return outputs

    def _cuts(self, rows: NDArray[np.int64], draws: int) -> Iterator[Any]:
        section = self.runner.artifact.manifest.monte_carlo
        row_bytes = None if section is None else section.row_bytes
        step = rows_per_call(row_bytes, draws, len(rows), on_cpu=self.runner.device.kind == "cpu")
        whole = len(rows) == len(self.sample_ids)
        for start in range(0, max(len(rows), 1), step):
            # A slice of all rows is a view; a choice of some has to be copied.
            yield slice(start, start + step) if whole else rows[start : start + step]
