"""Carry out what is left of a job: place the ranks, run them, finish the files, write the report."""

import contextlib
import signal
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import monotonic

from deploykit.devices import available_cores
from deploykit.errors import DataError, IncompleteRunError, RunError
from deploykit.plan import Shard, describe_ranges
from deploykit.runs.epoch import finish_epoch, is_finished
from deploykit.runs.failed import write_failed
from deploykit.runs.rundir import RunDirectory
from deploykit.runs.runstate import State
from deploykit.signs import signing
from deploykit.storage.copies import naming, renamed
from deploykit.tally import Tally
from runners.changed import change_told, watched
from runners.engines.setting import Computed, ProgressChoice, Setting
from runners.engines.work import Outcome, Work
from runners.progress import make_progress
from runners.ranks.assignment import Assignment
from runners.ranks.dataindex import save_index
from runners.report import Figures, is_reported, notes_of_ranks, write_report
from runners.spooling import discard_spool, require_same_spool, require_whole_spool
from runners.system.lock import locked
from runners.system.stop import StopRequest, on_signals

__all__ = ["drive", "execute", "finish_files"]

Placer = Callable[[Work], Outcome]


def drive(setting: Setting, out: Path, place: Placer, *, progress: ProgressChoice, notes: list[str]) -> Computed:
    """Do what is left of the job in ``out``, as the one process that places the ranks.

    Raises:
        RunError: the directory holds another job or is in use.
        DeploykitError: whatever else stopped it.
    """
    with locked(out) as lock:
        directory = setting.exchange.joined(partial(RunDirectory.prepare, out, setting.job))
        require_same_spool(setting.source, directory)
        save_index(directory.path, setting.source, directory.job.data)
        state = _looked_at(setting, directory, progress)
        missing = state.missing(directory.job.plan, from_parts=directory.job.keeps_parts)
        # An epoch job without rows has no rank and no file; its report says that it was done.
        if not missing and is_finished(directory, state) and is_reported(directory):
            write_failed(directory)  # It may have been removed.
            notes.append(f"run directory {directory.path}: the job is complete; nothing was left to do")
            discard_spool(setting.source)
            return Computed(skipped_shards=len(directory.job.plan))
        if missing:
            with setting.stoppable(directory, "while the rows that were drawn were checked"):
                require_whole_spool(setting.source, directory)
        # What is signed is read elsewhere, too.
        with signing(directory.path), naming(str(setting.place), directory.path):
            done = execute(setting, directory, missing, lock=lock, progress=progress, notes=notes, place=place)
            discard_spool(setting.source)
            return done


def _looked_at(setting: Setting, directory: RunDirectory, choice: ProgressChoice) -> State:
    """What is there of the job, every file read; that takes a while where much is."""
    kind, rows = "none" if callable(choice) else choice, directory.job.plan.rows
    shown = make_progress(kind, rows, 0, doing="checked", after_s=1.0)
    with setting.stoppable(directory, "while what is there was checked"), contextlib.closing(shown):
        return setting.exchange.checked(directory, Tally(lambda done, _: shown.update(done), rows))


def execute(
    setting: Setting,
    directory: RunDirectory,
    shards: Sequence[Shard],
    *,
    lock: int,
    progress: ProgressChoice,
    notes: list[str],
    place: Placer,
) -> Computed:
    """Predict the missing ``shards`` and finish the job's files.

    Raises:
        IncompleteRunError: a rank died or a signal came before every row was there.
        DataError: every row is there, but the data is not what it was at the beginning.
        DeploykitError: whatever else stopped it.
    """
    stop = StopRequest()
    assignments = _assignments(setting, directory, len(shards))
    _note_idle_cores(setting, assignments, notes)
    with change_told(setting.source, setting.job.data_source, directory.path) as changes:
        outcome = _run(setting, directory, assignments, shards, lock, stop, progress, place)
        notes.extend((*outcome.deaths, *notes_of_ranks(assignments, outcome.meters)))
        if stop.signal is None:  # Whoever is stopped has no time.
            setting.exchange.trade()
        missing = directory.missing(check_digests=False)
        directory.clean()  # What a rank left that died; every rank has ended.
        if not missing:
            setting.exchange.gather(directory)
            finish_files(setting, directory, inherit=[lock], notes=notes)
    notes.extend(changes)
    changed = "".join(changes)
    figures = Figures(
        seconds=monotonic() - setting.began_s,
        skipped_shards=len(directory.job.plan) - len(shards),
        complete=not (missing or changed),
        failed_rows=write_failed(directory),
        notes=[renamed(note, setting.place, directory.path) for note in notes],
    )
    report = write_report(directory, assignments, outcome.meters, figures, setting.environment())
    if missing:
        advice = changed or f"To resume, give the same command again: {setting.job.command}"
        raise _incomplete(directory, missing, outcome, stop, advice)
    if changed:
        raise DataError(changed)
    used = report["draws_used"]
    return Computed(
        rows=sum(shard.rows for shard in shards),
        draws_per_row=used and used["mean_per_row"],
        skipped_shards=figures.skipped_shards,
        spent_s=report["spent_s"],
    )


def finish_files(setting: Setting, directory: RunDirectory, *, inherit: Sequence[int], notes: list[str]) -> None:
    """What a job that has every part still lacks: the files of the ranks, and the calls of a Lightning writer.

    ``inherit`` are descriptors for the processes of the latter; they hold the run directory as long as these live.

    Raises:
        IncompleteRunError: a signal came.
    """
    if directory.job.has_epoch_files:
        with setting.stoppable(directory, "while the parts were joined"):
            finish_epoch(directory, setting.writing.writer)
    if not directory.is_delivered():
        text = "while the writer was called; every row is there, and its calls are made again from the first"
        with setting.stoppable(directory, text):
            notes.append(_deliver(setting, directory, inherit))


def _deliver(setting: Setting, directory: RunDirectory, inherit: Sequence[int]) -> str:
    from runners.lightning.engine import deliver  # only for those who have such a writer

    writing = setting.writing
    if writing.lightning is None:
        raise RunError(f"run directory {directory.path}: names a Lightning writer that this run does not have")
    return deliver(
        writing.lightning,
        writing.made,
        directory,
        writing.writer,
        artifact=setting.artifact,
        source=setting.source,
        inherit=inherit,
    )


def _assignments(setting: Setting, directory: RunDirectory, shards: int) -> list[Assignment]:
    """One rank per device, and no more ranks than there is work for."""
    devices = setting.devices[:shards]
    threads = setting.threads or setting.runner.default_threads(max(1, len(devices)))
    return [
        Assignment(
            artifact=str(setting.artifact.directory),
            data=setting.job.data_source,
            directory=str(directory.path),
            runner=setting.runner_name,
            rank=rank,
            device=device,
            threads=threads,
            group=None,
            origin_s=setting.began_s,
            place=str(setting.place),
        )
        for rank, device in enumerate(devices)
    ]


def _run(
    setting: Setting,
    directory: RunDirectory,
    assignments: Sequence[Assignment],
    shards: Sequence[Shard],
    lock: int,
    stop: StopRequest,
    choice: ProgressChoice,
    place: Placer,
) -> Outcome:
    if not assignments:
        return Outcome(meters={})
    done = directory.job.plan.rows - sum(shard.rows for shard in shards)
    progress = make_progress(choice, directory.job.plan.rows, done)
    work = Work(
        assignments=assignments,
        shards=shards,
        artifact=setting.artifact,
        source=setting.source,
        joins_group=setting.runner.joins_group,
        logs=directory.path / "logs",
        lock=lock,
        done=done,
        progress=progress,
        stop=stop,
    )
    try:
        data = watched(setting.source, setting.job.data_source, directory.path, progress.say)
        with on_signals(stop, tells=True), data:
            return place(work)
    finally:
        progress.close()


def _note_idle_cores(setting: Setting, assignments: Sequence[Assignment], notes: list[str]) -> None:
    cores, used = available_cores(), sum(assignment.threads for assignment in assignments)
    on_cpu = any(assignment.device.kind == "cpu" for assignment in assignments)
    if on_cpu and setting.threads is None and used < cores:
        notes.append(
            f"{used} of {cores} cores are used: by default the {setting.runner.format} runner takes "
            f"{assignments[0].threads} thread per rank, so that a part has the same bytes on any number of ranks; "
            f"--devices cpu:{cores} or --threads uses more"
        )


def _incomplete(
    directory: RunDirectory, missing: Sequence[Shard], outcome: Outcome, stop: StopRequest, advice: str
) -> IncompleteRunError:
    ranges = describe_ranges((shard.start, shard.stop) for shard in missing)
    here, why = len(directory.job.plan) - len(missing), list(outcome.deaths)
    if stop.signal is not None:
        why.insert(0, f"stopped by {signal.Signals(stop.signal).name}")
    # No rank died and all were told to do all: something else is at work in the directory.
    what = "; ".join(why) or "parts that were committed are gone, or have another size now"
    return IncompleteRunError(
        f"run directory {directory.path}: {what}\n"
        f"{here} of {len(directory.job.plan)} parts are there; missing: {ranges}. {advice}",
        signal=stop.signal,
    )
