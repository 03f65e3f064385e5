"""Rows that fail, found by halving their batch until each is alone, or by their names, so that the others go on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deploykit.allowed import check_allowed, outside
from deploykit.bounds import too_long
from deploykit.errors import (
    ArtifactError,
    DataError,
    DeviceError,
    MissingExtraError,
    ReadersGoneError,
    RunError,
    UsageError,
)
from deploykit.manifest import Manifest
from deploykit.plan import Shard, remaining
from deploykit.sources.finite import check_finite, nan_rows
from deploykit.sources.ragged import padded_together
from deploykit.sources.reading import split
from deploykit.wording import counted, first_line, row_range, without_advice
from runners.base import Arrays
from runners.pipeline.fitting import is_out_of_memory

if TYPE_CHECKING:
    from deploykit.sources import Source

__all__ = ["Predictable", "Sound", "isolated", "read_again", "read_rows", "read_whole", "refuse_all_failed"]

FEWEST = 16
"""A shard of fewer rows may fail as a whole."""

_MOST_TEXT = 500
_OF_ITS_OWN = ("NaN in ", "value ", "dimension ")
"""How the reasons begin that lie in what a row holds, which was looked at and not tried."""

_SKIP = " and name a new run directory, or give the same command again with --on-error skip, which leaves such rows out"

_NOT_THE_ROWS = (UsageError, ArtifactError, DeviceError, MissingExtraError, ReadersGoneError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sound:
    """The rows of a batch that can go on, by sample id, what is kept of them, and why the others failed."""

    ids: NDArray[np.int64]
    inputs: Arrays
    kept: Arrays
    failed: Mapping[int, str]

    def __getitem__(self, places: slice) -> "Sound":
        """Some of the rows, as views, where none has failed."""
        inputs, kept = _chosen(self.inputs, places), _chosen(self.kept, places)
        return Sound(ids=self.ids[places], inputs=inputs, kept=kept, failed={})


class _TooLongError(DataError):
    """A row is longer than the model's code allows, and what was padded with it, too."""


def read_rows(source: "Source", start: int, stop: int, *, refuse_nan: bool, model: Manifest | None = None) -> Sound:
    """Read rows ``[start, stop)``, each that can be read and has sizes and values that ``model`` allows.

    Raises:
        Exception: what the source raised, where rows fail only together, or for want of memory.
    """
    try:
        ids, inputs, failed = remaining(start, stop, ()), _read(source, start, stop, model), dict[int, str]()
    except Exception as error:  # noqa: BLE001 - a data set is the user's own code and may raise anything
        errors = isolated(
            stop - start,
            lambda first, end: _read(source, start + first, start + end, model),
            error,
            named=partial(_place, start),
        )
        failed = {start + place: _why("reading", each) for place, each in errors.items()}
        ids = remaining(start, stop, failed)
        inputs = _read_runs(source, ids)
    inputs, kept = split(inputs)
    wrong = outside(model.inputs if model is not None else (), inputs) | (nan_rows(inputs) if refuse_nan else {})
    if wrong:
        failed |= {(row := int(ids[place])): f"{why}{_in_file(source, row)}" for place, why in wrong.items()}
        keep = ~np.isin(np.arange(len(ids)), list(wrong))
        ids, inputs, kept = ids[keep], _chosen(inputs, keep), _chosen(kept, keep)
    return Sound(ids=ids, inputs=inputs, kept=kept, failed=failed)


def read_whole(source: "Source", start: int, stop: int, *, refuse_nan: bool, model: Manifest) -> Sound:
    """Read rows ``[start, stop)`` where none may fail.

    Raises:
        DataError: a NaN, or a size or a value that ``model`` does not allow; names the first row.
        Exception: what the source raised.
    """
    try:
        inputs, kept = split(_read(source, start, stop, model))
    except _TooLongError as error:
        errors = isolated(stop - start, lambda first, end: _read(source, start + first, start + end, model), error)
        place = min(errors)
        raise DataError(f"{_named(source, start + place)}: {errors[place]}; shorten it{_SKIP}") from error
    sound = Sound(ids=remaining(start, stop, ()), inputs=inputs, kept=kept, failed={})
    if refuse_nan:
        check_finite(inputs, start, named=partial(_named, source))
    check_allowed(model.inputs, inputs, sound.ids, otherwise=_SKIP, named=partial(_named, source))
    return sound


def _named(source: "Source", row: int) -> str:
    return f"row {row}{_in_file(source, row)}"


def _in_file(source: "Source", row: int) -> str:
    """In which of several files a row is: its number counts through all of them."""
    file = source.file_of(row) if hasattr(source, "file_of") else None
    return f" (in {file})" if file else ""


def _read(source: "Source", start: int, stop: int, model: Manifest | None) -> Arrays:
    """What the source gives.

    The runner would refuse such a length, too, but not know whose it is: halves of a padded batch are no shorter.
    """
    arrays = _given(source, start, stop)
    why = None if model is None else too_long(model.bounds, model.inputs, arrays)
    if why is not None:
        raise _TooLongError(why)
    return arrays


def _place(start: int, error: Exception) -> int | None:
    """Which of the rows from ``start`` on an error names: those beside it need not be halved to find it."""
    row = error.row if isinstance(error, DataError) else None
    return None if row is None else row - start


def _given(source: "Source", start: int, stop: int) -> Arrays:
    """What the source gives. A plug-in's may give other rows, which would pass for these, or fill its memory again."""
    arrays: Any = source.read(start, stop)
    if not isinstance(arrays, dict):
        raise DataError(f"read() of the source gave a {type(arrays).__name__}; give a dict by input name")
    for name, array in arrays.items():
        if len(array) != stop - start:
            raise DataError(
                f"{row_range(start, stop)}: the source gave {counted(len(array), 'row')} of {name!r}; its "
                "read(start, stop) must give exactly these rows"
            )
    return arrays if type(source).__module__.startswith("deploykit.") else _chosen(arrays, slice(None), copy=True)


def read_again(source: "Source", ids: NDArray[np.int64]) -> Arrays:
    """The inputs of these rows, ascending, padded to the longest of them; nothing at all for no rows."""
    return split(_read_runs(source, ids))[0]


def _read_runs(source: "Source", ids: NDArray[np.int64]) -> Arrays:
    """Rows with gaps between them, read run by run; nothing at all for no rows."""
    runs = np.split(ids, np.flatnonzero(np.diff(ids) != 1) + 1) if len(ids) else []
    found = [_given(source, int(run[0]), int(run[-1]) + 1) for run in runs]
    pads = getattr(source, "pads", {})
    return {
        name: padded_together([part[name] for part in found], pads[name])
        if name in pads
        else np.concatenate([part[name] for part in found])
        for name in (found[0] if found else ())
    }


class Predictable:
    """Predicts the rows of a batch that the model takes.

    A device may stay broken after a failure. So the rows beside a failed one, or if there are none a row that was
    sound before, must go through again before the failure counts as the row's own.

    Args:
        predict: the outputs of inputs and their sample ids.
        again: reads the inputs of some rows anew, where rows are padded together: in a batch with one that is too long
            for the model all are too long.
    """

    def __init__(
        self,
        predict: Callable[[Arrays, NDArray[np.int64]], Arrays],
        again: Callable[[NDArray[np.int64]], Arrays] | None = None,
    ) -> None:
        self._predict, self._again = predict, again
        self._sound: tuple[Arrays, NDArray[np.int64]] | None = None

    def __call__(self, read: Sound) -> tuple[Sound, Arrays]:
        """The rows that went through, with those that failed here added, and their outputs.

        Raises:
            Exception: what the model raised, where it is not the rows.
        """
        if not len(read.ids):
            return read, {}
        try:
            outputs = self._predict(read.inputs, read.ids)
        except Exception as error:  # noqa: BLE001 - runtimes raise their own types, which have nothing in common
            read, outputs = self._without_failing(read, error)
        if len(read.ids):
            self._sound = _chosen(read.inputs, slice(0, 1), copy=True), read.ids[:1]
        return read, outputs

    def _without_failing(self, read: Sound, error: Exception) -> tuple[Sound, Arrays]:
        def attempt(first: int, end: int) -> object:
            ids = read.ids[first:end]
            inputs = _chosen(read.inputs, slice(first, end)) if self._again is None else self._again(ids)
            return self._predict(inputs, ids)

        errors = isolated(len(read.ids), attempt, error)
        keep = ~np.isin(np.arange(len(read.ids)), list(errors))
        failed = {int(read.ids[place]): _why("the model", each) for place, each in errors.items()}
        ids = read.ids[keep]
        inputs = _chosen(read.inputs, keep) if self._again is None else self._again(ids)
        rest = Sound(ids=ids, inputs=inputs, kept=_chosen(read.kept, keep), failed={**read.failed, **failed})
        if len(rest.ids):
            return rest, self._predict(rest.inputs, rest.ids)
        if self._sound is not None:
            self._predict(*self._sound)
        return rest, {}


def isolated(
    rows: int,
    attempt: Callable[[int, int], object],
    error: Exception,
    *,
    named: Callable[[Exception], int | None] = lambda _: None,
) -> dict[int, Exception]:
    """The places below ``rows`` that fail alone, and how.

    Args:
        rows: how many.
        attempt: tries the places ``[first, end)``.
        error: how all of them failed together.
        named: the place that an error names, where it names one; it is tried alone next, and those beside it.

    Raises:
        Exception: ``error`` or a later one, where no row fails alone, or where it does not speak of rows.
    """
    found: dict[int, Exception] = {}
    waiting = _pieces(0, rows, error, named(error), found)
    while waiting:
        first, end = waiting.pop()
        try:
            attempt(first, end)
        except Exception as each:  # noqa: BLE001 - as above
            waiting += _pieces(first, end, each, named(each), found)
    if not found:
        raise error
    return found


def _pieces(
    first: int, end: int, error: Exception, place: int | None, found: dict[int, Exception]
) -> list[tuple[int, int]]:
    """What is to be tried next, from the last on; nothing where the one place has failed alone, which is then found."""
    if isinstance(error, _NOT_THE_ROWS) or is_out_of_memory(error):
        raise error
    if end - first == 1:
        found[first] = error
        return []
    if place is None or not first <= place < end:
        middle = (first + end) // 2
        return [(middle, end), (first, middle)]
    pieces = [(place + 1, end), (place, place + 1), (first, place)]
    return [(start, stop) for start, stop in pieces if start < stop]


def refuse_all_failed(shard: Shard, failed: Mapping[int, str]) -> None:
    """Refuse a shard of which nothing is left: a source or a device that is gone fails every row.

    Raises:
        RunError: every row failed, though not for what it holds.
    """
    if len(failed) < max(shard.rows, FEWEST) or all(why.startswith(_OF_ITS_OWN) for why in failed.values()):
        return
    raise RunError(
        f"rows {shard.start} to {shard.stop - 1}: every row failed, the first with {failed[shard.start]}; the cause is "
        "not in single rows, so they are not recorded as failed. Mend it and give the same command again; a run "
        "resumes where it was"
    )


def _why(what: str, error: Exception) -> str:
    if isinstance(error, _TooLongError):
        return str(error)
    kind = type(error).__name__
    line = without_advice(first_line(error), "--on-error skip")
    return f"{what}: {kind if line == kind else f'{kind}: {line}'}"[:_MOST_TEXT]


def _chosen(arrays: Arrays, places: "slice | NDArray[np.bool_]", *, copy: bool = False) -> Arrays:
    return {name: array[places].copy() if copy else array[places] for name, array in arrays.items()}
