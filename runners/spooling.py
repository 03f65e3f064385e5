"""Data that comes but once: drawn into the run directory before the plan is made, and read from there by every rank."""

import contextlib
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from time import monotonic, time
from typing import Any

from deploykit.artifact import Artifact
from deploykit.errors import IncompleteRunError, RunError, UsageError
from deploykit.rundir import RUN_NAME, SPOOL_NAME, RunDirectory, refuse_foreign
from deploykit.signs import leave_drawing, read_drawing
from deploykit.sources import Reading, Source
from deploykit.sources.onerank import as_one_rank
from deploykit.sources.spool import Spool, SpoolSource, asked_for, clear, spooled_facts
from deploykit.sources.stream import StreamSource
from runners.lightning_writer import LightningWriter
from runners.lock import BusyError, locked
from runners.progress import Progress
from runners.stop import StopRequest, on_signals

__all__ = ["discard_spool", "draw", "find_spool", "open_spool", "refuse_to_draw", "require_same_spool"]

SIGN_S = 0.5
"""How often a call that draws rows says for ``deploykit status`` how many there are."""

_AGAIN = "give the same command again, which draws them from the beginning"


def find_spool(
    out: Path, data: str, artifact: Artifact, reading: Reading, *, alone: bool, show: Callable[[], Progress]
) -> SpoolSource | None:
    """The rows that another call for the same data has drawn into the run directory ``out``, if it came to its end.

    What a call has left that was stopped before its job began is removed. While another rank draws, this one waits.

    Args:
        out: the run directory.
        data: what the user named.
        artifact: whose inputs they are.
        reading: how they are read.
        alone: no other rank can be drawing: this process prepares the job for all.
        show: begins to tell how many rows have come.

    Raises:
        RunError: the directory holds the rows of other data, or another run writes into it.
    """
    folder, inputs = out / SPOOL_NAME, artifact.manifest.inputs
    asked = asked_for(data, inputs, reading)
    if folder.exists() and spooled_facts(folder) is None and not (out / RUN_NAME).exists():
        refuse_foreign(out)
        with _turn(out, asked, alone=alone, show=show) as is_mine:
            if is_mine:
                clear(folder)
    facts = spooled_facts(folder)
    if facts is not None and _holds(facts, asked):
        source = SpoolSource(folder, facts, inputs)
        if source.is_there:
            source.notes.append(f"data {data}: the {len(source):,} rows that were drawn before are used")
        return source
    if facts is not None and (out / RUN_NAME).exists():
        raise RunError(
            f"run directory {out}: holds rows of {facts['target']}, drawn for another model, data or columns, "
            f"asked for {asked['target']}; use the old values to resume it, or name a new directory"
        )
    return None


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


def draw(
    stream: StreamSource, out: Path, reading: Reading, *, alone: bool, show: Callable[[], Progress]
) -> SpoolSource:
    """Go through the stream once and put its rows into ``out``; when that fails, nothing of it is kept.

    Of several ranks that prepare the job, not one ``alone``, whoever comes first draws and the others wait.

    Raises:
        RunError: the directory holds another job or is in use, or the disk is full.
        IncompleteRunError: a signal came.
        DataError: the user's code raised something, or a row does not fit the model.
    """
    _refuse_other_job(out)
    folder, asked = out / SPOOL_NAME, asked_for(stream.target, stream.inputs, reading)
    with _turn(out, asked, alone=alone, show=show) as is_mine:
        if is_mine:
            _fill(Spool(folder, asked, stream.inputs), stream, out, show())
    facts = spooled_facts(folder) or {}
    source = SpoolSource(folder, facts, stream.inputs)
    source.notes += [
        f"data {stream.target}: {stream.why}, so it was gone through once: {len(source):,} rows, "
        f"{facts['size_bytes'] / 1e6:,.1f} MB, are in {folder} until the run is finished; the sample id is "
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


def discard_spool(source: Source) -> None:
    """Remove the rows of a finished job; what is known of them stays, so that the same command finds it finished."""
    if isinstance(source, SpoolSource):
        source.discard()


@contextlib.contextmanager
def _turn(out: Path, asked: Mapping[str, Any], *, alone: bool, show: Callable[[], Progress]) -> Iterator[bool]:
    """Hold the run directory, to draw what is ``asked`` for; gives False where another process has drawn it since."""
    with contextlib.ExitStack() as stack:
        if alone:
            stack.enter_context(locked(out))
        else:
            _wait(stack, out, asked, show)
        yield not _holds(spooled_facts(out / SPOOL_NAME), asked)


def _wait(stack: contextlib.ExitStack, out: Path, asked: Mapping[str, Any], show: Callable[[], Progress]) -> None:
    """Wait until no other rank draws: the rows are there, or it has failed or died and this one holds the directory."""
    folder, progress = out / SPOOL_NAME, None
    try:
        with _stoppable(out, lambda: "while another rank draws the rows; start this rank again"):
            while not _holds(spooled_facts(folder), asked):
                try:
                    stack.enter_context(locked(out))
                    break
                except BusyError:
                    progress = progress or show()
                    progress.update(_rows_by_now(folder))
    finally:
        if progress is not None:
            progress.update(_rows_by_now(folder))
            progress.close()


def _rows_by_now(folder: Path) -> int:
    facts, sign = spooled_facts(folder), read_drawing(folder)
    if facts is not None:
        return int(facts["rows"])
    return 0 if sign is None else sign.rows


def _holds(facts: Mapping[str, Any] | None, asked: Mapping[str, Any]) -> bool:
    return facts is not None and {name: facts.get(name) for name in asked} == asked


def _fill(spool: Spool, stream: StreamSource, out: Path, progress: Progress) -> None:
    try:
        with _stoppable(out, lambda: _drawn(spool, stream)), as_one_rank(), spool:
            say = _Saying(out / SPOOL_NAME)
            for arrays in stream.batches():
                if not spool.rows:
                    spool.keep([stream.keeping.specs[name] for name in stream.keeping.names])
                spool.add(arrays)
                progress.update(spool.rows)
                say(spool.rows)
    except OSError as error:
        raise RunError(
            f"cannot write {out / SPOOL_NAME}: {error.strerror or error}, after {spool.rows:,} rows of "
            f"{spool.size_bytes / 1e6:,.1f} MB, which are removed; {_AGAIN}, when there is room"
        ) from error
    finally:
        progress.close()


def _drawn(spool: Spool, stream: StreamSource) -> str:
    return f"after {spool.rows:,} rows of {stream.target} were drawn, which are removed; {_AGAIN}"


@contextlib.contextmanager
def _stoppable(out: Path, said: Callable[[], str]) -> Iterator[None]:
    """End at once when a signal comes, not at the next row: the user's code may take its time to give it."""
    stop = StopRequest()
    stop.listen(finish=_interrupt, abandon=lambda: None)
    try:
        with on_signals(stop):
            yield
    except KeyboardInterrupt:
        number = stop.signal or signal.SIGINT
        stopped = IncompleteRunError(f"run directory {out}: stopped by {signal.Signals(number).name} {said()}")
        stopped.exit_code = 128 + number
        raise stopped from None


class _Saying:
    """Tells ``deploykit status`` how many rows there are, now and then."""

    def __init__(self, spool: Path) -> None:
        self._spool, self._began, self._due = spool, time(), 0.0
        self(0)

    def __call__(self, rows: int) -> None:
        if monotonic() >= self._due:
            self._due = monotonic() + SIGN_S
            leave_drawing(self._spool, rows, began=self._began)


def _interrupt() -> None:
    raise KeyboardInterrupt


def _refuse_other_job(out: Path) -> None:
    if not (out / RUN_NAME).exists():
        refuse_foreign(out)
        return
    job = RunDirectory.open(out).job
    if job.data.get("kind") != "spool":
        raise RunError(
            f"run directory {out}: holds another job, of the data {job.data_source}; use the old values to resume it, "
            "or name a new directory"
        )


def refuse_to_draw(stream: StreamSource, lightning: LightningWriter) -> None:
    """Refuse what needs a second look at the batches.

    Raises:
        UsageError: always.
    """
    raise UsageError(
        f"data {stream.target}: {stream.why}, so its rows are drawn once and in order, and the writer "
        f"{lightning.target} is to see the batches when all rows are predicted; use a writer of deploykit, or return a "
        "map-style dataset"
    )
