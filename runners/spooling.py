"""Data that comes but once: drawn into the run directory before the plan is made, and read from there by every rank."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, time
from typing import Any

from deploykit.artifact import Artifact
from deploykit.errors import DataError, RunError
from deploykit.runs.early import SPOOL_NAME, refuse_foreign
from deploykit.runs.rundir import RUN_NAME, RunDirectory
from deploykit.signs import leave_drawing, read_drawing
from deploykit.sources import Source
from deploykit.sources.spool import Spool, SpoolSource, clear, spooled_facts
from deploykit.sources.stream import StreamSource
from deploykit.tensors import TensorSpec
from runners.progress import Progress
from runners.system.lock import BusyError, are_rows_held, holding_rows, locked
from runners.system.stop import stoppable

__all__ = [
    "Drawing", "discard_spool", "draw", "find_spool", "open_spool", "require_same_spool",
    "require_whole_spool", "rows_stay",
]  # fmt: skip

Facts = dict[str, Any]

SIGN_S = 0.5
"""How often a call that draws rows says for ``deploykit status`` how many there are."""

_AGAIN = "give the same command again, which draws them from the beginning"


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """How data that comes but once gets into a run directory.

    Attributes:
        stack: closed at the end of the call, which needs the rows until then.
        out: the run directory.
        place: the same as the user named it.
        asked: what makes its rows those that were asked for, see ``asked_for``.
        alone: no other rank can be drawing, because this process prepares the job for all.
        drawn: begins to show how many rows have come, to who draws them.
        awaited: the same, to who waits.
        stay: refuses code that has left the working directory.
    """

    stack: contextlib.ExitStack
    out: Path
    place: str | Path
    asked: Mapping[str, Any]
    alone: bool
    drawn: Callable[[], Progress]
    awaited: Callable[[], Progress]
    stay: Callable[[], None]

    @property
    def folder(self) -> Path:
        return self.out / SPOOL_NAME

    def facts(self) -> Facts | None:
        """What is known of the rows that were asked for, if they are there."""
        facts = spooled_facts(self.folder)
        return facts if facts is not None and {name: facts.get(name) for name in self.asked} == self.asked else None

    def taken(self) -> Facts | None:
        """The same; no other process removes these rows any more, until the call is over."""
        if self.facts() is None:
            return None
        with contextlib.ExitStack() as holding:
            holding.enter_context(holding_rows(self.out))
            if (facts := self.facts()) is not None:  # It was still so when they were held.
                self.stack.push(holding.pop_all())
        return facts


def find_spool(drawing: Drawing, inputs: Sequence[TensorSpec]) -> SpoolSource | None:
    """The rows that another call for the same data has drawn into the run directory, if it came to its end.

    What a call has left whose job never began is removed: beside another job it would be taken for that one's. While
    another rank draws, this one waits.

    Raises:
        RunError: the directory holds the rows of other data, or another run writes into it.
        IncompleteRunError: a signal came while this rank waited.
    """
    facts = drawing.taken()
    if facts is None and (drawing.out / RUN_NAME).exists():
        _refuse_other_rows(drawing)
    elif facts is None and drawing.folder.exists():
        with _turn(drawing) as facts:
            if facts is None and not (drawing.out / RUN_NAME).exists():
                clear(drawing.folder)
    if facts is None:
        return None
    source = SpoolSource(drawing.folder, facts, inputs)
    if source.is_there:
        source.notes.append(f"data {facts['target']}: the {len(source):,} rows that were drawn before are used")
    return source


def open_spool(directory: RunDirectory, artifact: Artifact) -> SpoolSource:
    """The rows of a job, drawn by the process that prepared it.

    Raises:
        RunError: they are not there.
    """
    folder = directory.path / SPOOL_NAME
    facts = spooled_facts(folder)
    if facts is None:
        raise RunError(f"run directory {directory.path}: the rows are missing from {folder}; name a new directory")
    return SpoolSource(folder, facts, artifact.manifest.inputs)


def draw(stream: StreamSource, drawing: Drawing) -> SpoolSource:
    """Go through the stream once and put its rows into the run directory; when that fails, nothing of it is kept.

    Of several ranks that prepare the job, not one alone, whoever comes first draws and the others wait.

    Raises:
        RunError: the directory holds another job or is in use, or the disk is full.
        IncompleteRunError: a signal came.
        DataError: the user's code raised something, or a row does not fit the model.
    """
    with _turn(drawing) as facts:
        if facts is None:
            facts = _fill(Spool(drawing.folder, drawing.asked, stream.inputs), stream, drawing)
    source = SpoolSource(drawing.folder, facts, stream.inputs)
    source.is_fresh = True
    source.notes += [
        f"data {stream.target}: {stream.why}, so it was gone through once: {len(source):,} rows, "
        f"{facts['size_bytes'] / 1e6:,.1f} MB, are in {drawing.folder} until the run is finished; the sample id is "
        "a row's place in the order in which they came",
        *stream.notes,
    ]
    return source


def require_same_spool(source: Source, directory: RunDirectory) -> None:
    """Refuse rows that are no longer those of the job; called by who holds the run directory.

    Raises:
        RunError: another run has drawn others in their place before the job began.
    """
    if not isinstance(source, SpoolSource):
        return
    facts = spooled_facts(directory.path / SPOOL_NAME)
    if facts is None or facts["sha256"] != directory.job.data.get("sha256"):
        raise RunError(
            f"run directory {directory.path}: another run has replaced the rows in {SPOOL_NAME} by others; name a new "
            "directory"
        )


def require_whole_spool(source: Source, directory: RunDirectory) -> None:
    """Refuse rows of an earlier call that are not what they were when it drew them; reads all of them.

    Raises:
        RunError: they are damaged.
    """
    if isinstance(source, SpoolSource) and source.is_there and not source.is_fresh and not source.is_whole():
        raise RunError(
            f"run directory {directory.path}: the rows in {SPOOL_NAME} are not what they were when they were drawn; "
            f"remove {directory.path / SPOOL_NAME} and give the same command again, which draws them anew and goes on "
            "where they are the same ones; or name a new directory"
        )


@contextlib.contextmanager
def rows_stay(source: Source) -> Iterator[None]:
    """Let errors of drawn rows say that mended data is not drawn into the same directory again."""
    try:
        yield
    except DataError as error:
        if isinstance(source, SpoolSource) and source.is_there:
            error.args = (f"{error}. {source.stays}",)
        raise


def discard_spool(source: Source) -> None:
    """Remove the rows of a finished job; what is known of them stays, so that the same command finds it finished."""
    if isinstance(source, SpoolSource):
        source.discard()


@contextlib.contextmanager
def _turn(drawing: Drawing) -> Iterator[Facts | None]:
    """Hold the run directory, to draw; or give what is known of the rows, where another process has drawn them.

    Raises:
        RunError: the directory holds another job or is in use.
        IncompleteRunError: a signal came while this rank waited.
    """
    _refuse_other_job(drawing)
    with contextlib.ExitStack() as stack:
        facts = stack.enter_context(_to_draw(drawing)) if drawing.alone else _wait(stack, drawing)
        if facts is None:
            _refuse_other_job(drawing)
        yield facts


@contextlib.contextmanager
def _to_draw(drawing: Drawing) -> Iterator[Facts | None]:
    """Hold the run directory; what is known of the rows, where another process has drawn them by now.

    Raises:
        BusyError: another holds it, or needs other rows in it, for a job that it has not begun yet.
    """
    with locked(drawing.out):
        if drawing.folder.is_dir():
            # A network file system may remember that a file was not there, until its folder is looked at.
            list(drawing.folder.iterdir())
        facts = drawing.taken()
        if facts is None and drawing.folder.is_dir() and are_rows_held(drawing.out):
            raise BusyError(drawing.out)
        yield facts


def _wait(stack: contextlib.ExitStack, drawing: Drawing) -> Facts | None:
    """Wait until the rows are there, or none draws them any more: then this rank holds the directory."""
    progress: Progress | None = None
    try:
        with stoppable(drawing.place, lambda: "while another rank draws the rows; start this rank again"):
            while True:
                try:
                    return stack.enter_context(_to_draw(drawing))
                except BusyError:
                    if (facts := drawing.taken()) is not None:
                        return facts
                    _refuse_other_job(drawing)
                    progress = progress or drawing.awaited()
                    progress.update(_rows_by_now(drawing.folder))
    finally:
        if progress is not None:
            progress.update(_rows_by_now(drawing.folder))
            progress.close()


def _rows_by_now(folder: Path) -> int:
    facts, sign = spooled_facts(folder), read_drawing(folder)
    if facts is not None:
        return int(facts["rows"])
    return 0 if sign is None else sign.rows


def _fill(spool: Spool, stream: StreamSource, drawing: Drawing) -> Facts:
    progress = drawing.drawn()
    try:
        with stoppable(drawing.place, lambda: _drawn(spool, stream)), spool:
            began, due = time(), monotonic() + SIGN_S
            leave_drawing(drawing.folder, 0, began=began)
            for arrays in stream.batches():
                if not spool.rows:
                    drawing.stay()
                    spool.keep([stream.keeping.specs[name] for name in stream.keeping.names])
                spool.add(arrays)
                progress.update(spool.rows)
                if monotonic() >= due:
                    due = monotonic() + SIGN_S
                    leave_drawing(drawing.folder, spool.rows, began=began)
    except OSError as error:
        raise RunError(
            f"cannot write {drawing.folder}: {error.strerror or error}, after {spool.rows:,} rows of "
            f"{spool.size_bytes / 1e6:,.1f} MB, which are removed; {_AGAIN}, when there is room"
        ) from error
    finally:
        progress.close()
    facts = drawing.taken()
    if facts is None:
        raise RunError(f"run directory {drawing.out}: the rows are missing from {drawing.folder}; {_AGAIN}")
    return facts


def _drawn(spool: Spool, stream: StreamSource) -> str:
    return f"after {spool.rows:,} rows of {stream.target} were drawn, which do not count; {_AGAIN}"


def _refuse_other_job(drawing: Drawing) -> None:
    if not (drawing.out / RUN_NAME).exists():
        refuse_foreign(drawing.out)
        return
    _refuse_other_rows(drawing)
    job = RunDirectory.open(drawing.out).job
    if job.data.get("kind") != "spool":
        raise RunError(
            f"run directory {drawing.out}: holds another job, of the data {job.data_source}; use the old values to "
            "resume it, or name a new directory"
        )


def _refuse_other_rows(drawing: Drawing) -> None:
    facts = spooled_facts(drawing.folder)
    if facts is not None and drawing.facts() is None:
        raise RunError(
            f"run directory {drawing.out}: holds rows of {facts['target']}, drawn for another model, data or columns, "
            f"asked for {drawing.asked['target']}; use the old values to resume it, or name a new directory"
        )
