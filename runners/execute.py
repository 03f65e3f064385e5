"""Carry out what is left of a job: place the ranks, run them, finish the files, write the report."""

import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic

from deploykit.artifact import Artifact
from deploykit.devices import Device, available_cores
from deploykit.errors import IncompleteRunError, RunError
from deploykit.failed import write_failed
from deploykit.job import Job
from deploykit.plan import Shard, describe_ranges
from deploykit.rundir import RunDirectory
from deploykit.sources import Source
from runners.assignment import Assignment
from runners.base import Runner
from runners.engine_local import Outcome, run_here, run_ranks
from runners.environment import environment
from runners.progress import ProgressMode, make_progress
from runners.report import Figures, halving_notes, make_report, write_report
from runners.stop import StopRequest, on_signals
from runners.writing import Writing

__all__ = ["Computed", "ProgressChoice", "Setting", "execute"]

ProgressChoice = ProgressMode | Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A request for a run, checked, with everything open that it names.

    Attributes:
        runner_name: the runner as the user named it, for the ranks to find it again.
        threads: CPU threads per rank, or None for the runner's choice.
        began_s: when the call came, on the monotonic clock.
        resume: the command that takes the job up again.
        notes: what was chosen, for people to read.
    """

    artifact: Artifact
    source: Source
    writing: Writing
    runner: type[Runner]
    runner_name: str
    devices: tuple[Device, ...]
    threads: int | None
    job: Job
    began_s: float
    resume: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Computed:
    """What one call predicted: its rows, their mean number of draws where a bound decided it, and the time it took."""

    rows: int = 0
    draws_per_row: float | None = None
    spent_s: Mapping[str, float] = field(default_factory=dict)


def execute(
    setting: Setting,
    directory: RunDirectory,
    shards: Sequence[Shard],
    *,
    lock: int,
    progress: ProgressChoice,
    notes: list[str],
) -> Computed:
    """Predict the missing ``shards`` and finish the job's files.

    Raises:
        IncompleteRunError: a rank died or a signal came before every row was there.
        DeploykitError: whatever else stopped it.
    """
    stop = StopRequest()
    assignments = _assignments(setting, directory, len(shards))
    _note_idle_cores(setting, assignments, notes)
    outcome = _run(setting, directory, assignments, shards, lock, stop, progress)
    notes.extend(outcome.deaths)
    notes.extend(halving_notes(assignments, outcome.meters))
    missing = directory.missing(check_digests=False)
    if not missing and directory.job.has_epoch_files:
        directory.finish_epoch(setting.writing.writer)
    failed_rows = write_failed(directory) if directory.job.on_error == "skip" else 0
    if not missing and not directory.is_delivered():
        notes.append(_deliver(setting, directory, lock))
    figures = Figures(
        seconds=monotonic() - setting.began_s,
        skipped_shards=len(directory.job.plan) - len(shards),
        complete=not missing,
        failed_rows=failed_rows,
        notes=notes,
    )
    where = environment(setting.runner.runtime, setting.runner.check_installed())
    report = make_report(directory, assignments, outcome.meters, figures, where)
    write_report(directory, report)
    if missing:
        raise _incomplete(setting, directory, missing, outcome, stop)
    used = report["draws_used"]
    return Computed(
        rows=sum(shard.rows for shard in shards),
        draws_per_row=used and used["mean_per_row"],
        spent_s=report["spent_s"],
    )


def _deliver(setting: Setting, directory: RunDirectory, lock: int) -> str:
    from runners.lightning_engine import deliver  # only for those who have such a writer

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
        inherit=[lock],
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
) -> Outcome:
    if not assignments:
        return Outcome(meters={})
    done = directory.job.plan.rows - sum(shard.rows for shard in shards)
    progress = make_progress(choice, directory.job.plan.rows, done)
    try:
        with on_signals(stop):
            if len(assignments) == 1:
                artifact, source = setting.artifact, setting.source
                return run_here(
                    assignments[0], shards, artifact=artifact, source=source, done=done, progress=progress, stop=stop
                )
            return run_ranks(
                assignments,
                shards,
                logs=directory.path / "logs",
                joins_group=setting.runner.joins_group,
                inherit=[lock],
                done=done,
                progress=progress,
                stop=stop,
            )
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
    setting: Setting, directory: RunDirectory, missing: Sequence[Shard], outcome: Outcome, stop: StopRequest
) -> IncompleteRunError:
    ranges = describe_ranges((shard.start, shard.stop) for shard in missing)
    here = len(directory.job.plan) - len(missing)
    why = "; ".join(outcome.deaths)
    if stop.signal is not None:
        why = f"stopped by {signal.Signals(stop.signal).name}"
    error = IncompleteRunError(
        f"run directory {directory.path}: {why}\n"
        f"{here} of {len(directory.job.plan)} parts are there and count; missing: {ranges}. "
        f"To resume, give the same command again: {setting.resume}"
    )
    if stop.signal is not None:
        error.exit_code = 128 + stop.signal
    return error
