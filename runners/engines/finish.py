"""The end of a job whose ranks know nothing of each other: whoever finds every part there writes the job's files."""

import time
from collections.abc import Sequence

from deploykit.errors import DataError
from deploykit.runs.epoch import is_finished
from deploykit.runs.failed import write_failed
from deploykit.runs.rundir import RunDirectory
from deploykit.storage.copies import renamed
from runners.changed import look_for_change
from runners.engines.execute import finish_files
from runners.engines.launch import Launch
from runners.engines.measured import Measured, load_measured
from runners.engines.setting import Setting
from runners.report import Figures, is_reported, write_report
from runners.spooling import discard_spool
from runners.system.lock import alone, finishing

__all__ = ["finish_together", "is_over"]


def is_over(directory: RunDirectory) -> bool:
    """Whether a job with every part is finished, as far as is seen without a look into its files.

    Where parts are joined and removed, none is left; one that was computed again may be.
    """
    removes = directory.job.has_epoch_files and not directory.job.keeps_parts
    return is_reported(directory) and not (removes and directory.committed_rows())


def finish_together(
    setting: Setting, directory: RunDirectory, launch: Launch, *, lock: int, worked: bool, notes: list[str]
) -> None:
    """Write the last files and the report of a job that has every part; safe to do twice.

    Two ranks may both find the last part there: one at a time where they share the directory. The second writes the
    report again, with the measurements of both. A rank that has not ``worked`` leaves a finished job as it is. What a
    killed one left half-written is removed if no other holds the ``lock`` of the run directory: it may be writing.

    Raises:
        RunError: the disk is full or not writable.
        IncompleteRunError: a signal came.
        DataError: every row is there, but the data is not what it was at the beginning.
    """
    with finishing(directory.path):
        with alone(lock) as is_alone:
            if is_alone:
                directory.clean()
        if not worked and is_reported(directory) and _is_finished(setting, directory):
            write_failed(directory)  # It may have been removed.
            notes.append(f"run directory {directory.path}: the job is complete; nothing was left to do")
            discard_spool(setting.source)
            return
        setting.exchange.gather(directory)
        finish_files(setting, directory, inherit=(), notes=notes)
        changed = look_for_change(setting.source, setting.job.data_source, directory.path)
        notes.extend(filter(None, [changed]))
        _report(setting, directory, launch, notes, complete=not changed)
        discard_spool(setting.source)
    if changed:
        raise DataError(changed)
    notes.append(f"{launch} found every part there and finished the job: report.json, report.html")


def _is_finished(setting: Setting, directory: RunDirectory) -> bool:
    # Parts, and files of ranks without parts, are not read again: each rank has read its own.
    unread = directory.job.has_epoch_files and directory.job.keeps_parts
    if unread:
        setting.exchange.gather(directory)
    with setting.stoppable(directory, "while what is there was checked"):
        return is_finished(directory, directory.state(check_digests=unread))


def _report(setting: Setting, directory: RunDirectory, launch: Launch, notes: Sequence[str], *, complete: bool) -> None:
    found = load_measured(directory.path, launch)
    figures = Figures(
        # A clock that was set back meanwhile must not give a negative time.
        seconds=max(time.time() - min(each.began for each in found), time.monotonic() - setting.began_s),
        skipped_shards=len(directory.job.plan) - sum(each.shards for each in found),
        complete=complete,
        failed_rows=write_failed(directory),
        notes=[renamed(note, setting.place, directory.path) for note in [*notes, *_absent(found, launch)]],
    )
    assignments = [each.assignment for each in found]
    meters = {each.assignment.rank: each.meter for each in found}
    # Another rank may have added --on-error skip since this one came.
    directory = RunDirectory.open(directory.path)
    write_report(directory, assignments, meters, figures, setting.environment())


def _absent(found: Sequence[Measured], launch: Launch) -> list[str]:
    absent = sorted(set(range(launch.world_size)) - {each.assignment.rank for each in found})
    if not absent:
        return []
    names = ", ".join(map(str, absent))
    return [f"no measurements of rank {names} of {launch.world_size}: it died, or had not ended yet"]
