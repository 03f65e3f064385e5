"""Engines whose ranks are already there: a launcher starts the same command once for each of them.

No rank is special, and none waits for another but where data comes once: whoever comes first draws it. Whoever comes
first creates the run directory, each computes its shards, and whoever finds the last part committed writes the files of
the whole job. So ranks may start late, one after the other, or again, as those of job arrays do.
"""

import abc
import contextlib
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from time import monotonic

from deploykit.devices import Device, available_cores, parse_devices
from deploykit.errors import DataError, DeviceError, IncompleteRunError, UsageError
from deploykit.plan import Shard, describe_ranges
from deploykit.runs.commit import Commit
from deploykit.runs.rundir import RunDirectory
from deploykit.signs import forget_call, signing_end
from deploykit.storage.copies import naming
from runners.base import Runner
from runners.changed import change_told, watched
from runners.engines.base import Engine
from runners.engines.claims import Claims, counted, share
from runners.engines.finish import finish_together, is_over
from runners.engines.launch import Launch, array, slurm, torchrun
from runners.engines.local import run_here
from runners.engines.measured import Measured
from runners.engines.setting import Computed, ProgressChoice, Setting
from runners.pipeline.timing import Meter
from runners.progress import Progress, make_progress
from runners.ranks.assignment import Assignment
from runners.report import spent
from runners.spooling import require_same_spool, require_whole_spool
from runners.store import Group, LauncherStore
from runners.system.lock import locked
from runners.system.stop import StopRequest, on_signals

__all__ = ["ArrayEngine", "LaunchedEngine", "SlurmEngine", "TorchrunEngine"]


LOOK_S = 2.0


class LaunchedEngine(Engine):
    """One rank of several; a subclass says how to read its place from the environment.

    Raises:
        UsageError: this process was not started by that launcher.
    """

    prepares_alone = False

    def __init__(self) -> None:
        self.launch = self.read(os.environ)
        self.rank = self.launch.rank

    @staticmethod
    @abc.abstractmethod
    def read(environment: Mapping[str, str]) -> Launch:
        """The place of this process, from what its launcher has put into the environment."""

    def devices(self, text: str, runner: type[Runner]) -> tuple[Device, ...]:
        """The one device of this rank: of those that ``text`` names, the one with the number of the local rank."""
        if text.partition(":")[0] == "cpu" and ":" in text:
            raise UsageError(
                f"devices {text!r}: with --engine {self.launch.launcher} each process is one rank; use --devices cpu, "
                "and let the launcher start as many processes as there are to be ranks"
            )
        named = parse_devices(text, runner.cuda_count, runtime=runner.described)
        local = self.launch.local_rank
        if named[0].kind == "cpu":
            return (Device(index=local),)
        if len(named) == 1 and self.launch.launcher != "torchrun":
            return named  # The scheduler shows each process its own device only.
        if local >= len(named):
            raise DeviceError(
                f"devices {text!r}: local rank {local} has none, there are {len(named)} for "
                f"{self.launch.local_world_size} ranks on this machine; start one process for each device"
            )
        return (named[local],)

    def ranks_here(self, devices: Sequence[Device]) -> int:  # noqa: ARG002 - each process has the one of its rank
        if self.launch.cores is None:
            return self.launch.local_world_size
        # Where the scheduler pins, the cores of this process are all it sees; where it does not, they are a share.
        return max(1, available_cores() // self.launch.cores)

    def _watching(
        self, setting: Setting, directory: RunDirectory, progress: Progress
    ) -> contextlib.AbstractContextManager[None]:
        """One rank of each machine looks at the data meanwhile: all of them would ask much of a file server."""
        if self.launch.local_rank:
            return contextlib.nullcontext()
        return watched(setting.source, setting.job.data_source, directory.path, progress.say)

    def shown(self, progress: ProgressChoice) -> ProgressChoice:
        """One rank speaks for all; a function of the caller's is called in each."""
        return progress if callable(progress) or self.launch.rank == 0 else "none"

    def run(self, setting: Setting, out: Path, *, progress: ProgressChoice, notes: list[str]) -> Computed:
        """Compute this rank's shards, and finish the job's files if no part is missing then."""
        began, stop = time.time(), StopRequest()
        with locked(out, shared=True) as lock:
            directory = setting.exchange.joined(partial(RunDirectory.join, out, setting.job, cut=setting.cut))
            if (size := directory.job.plan.batch_size) != setting.job.plan.batch_size:
                notes.append(f"batch size {size} all the same, as another rank found it first")
            if directory.job.on_error != setting.job.on_error:
                notes.append("rows that fail are left out, as another rank was asked to (--on-error skip)")
            require_same_spool(setting.source, directory)
            forget_call(out, self.launch.rank, self.launch.world_size)
            assignment = self._assignment(setting, directory)
            claims = Claims(self._numbers(assignment, len(directory.job.plan)), directory, setting.exchange.bring)
            with change_told(setting.source, setting.job.data_source, directory.path) as changes:
                meter = self._compute(setting, directory, assignment, claims, stop, progress)
            Measured(
                run=self.launch.run,
                world_size=self.launch.world_size,
                assignment=assignment,
                meter=meter,
                shards=len(claims.taken),
                began=began,
            ).save(out)
            end = signing_end(out, self.launch.rank, str(assignment.device))
            with end, naming(str(setting.place), directory.path):  # What is signed is read elsewhere, too.
                missing = self._end(setting, directory, claims, stop, "".join(changes), notes, lock)
        return Computed(
            rows=meter.rows,
            draws_per_row=meter.draws_used / meter.rows if meter.draws_used else None,
            skipped_shards=len(directory.job.plan) - len(claims.taken) - len(missing),
            missing_shards=len(missing),
            spent_s=spent([meter]),
        )

    def _end(
        self,
        setting: Setting,
        directory: RunDirectory,
        claims: Claims,
        stop: StopRequest,
        changed: str,
        notes: list[str],
        lock: int,
    ) -> list[Shard]:
        """Say which shards are missing, or finish the job's files if none is; these shards."""
        if stop.signal is None:  # Whoever is stopped has no time; what it did is sent when it ends.
            setting.exchange.trade()
        missing = directory.missing(check_digests=False)
        if stop.signal is not None:
            raise self._stopped(directory, missing, stop.signal, changed or self._advice(setting))
        if missing and not changed:
            notes.append(self._text(directory, missing, self._advice(setting)))
        elif not missing and (claims.taken or self.launch.rank == 0 or not is_over(directory)):
            finish_together(setting, directory, self.launch, lock=lock, worked=bool(claims.taken), notes=notes)
        if changed:
            raise DataError(changed)
        return missing

    def _assignment(self, setting: Setting, directory: RunDirectory) -> Assignment:
        launch, runner = self.launch, setting.runner
        here = launch.local_world_size == launch.world_size
        meets = launch.meets and launch.world_size > 1 and runner.joins_group
        return Assignment(
            artifact=str(setting.artifact.directory),
            data=setting.job.data_source,
            directory=str(directory.path),
            runner=setting.runner_name,
            rank=launch.rank,
            device=setting.devices[0],
            threads=setting.threads or runner.default_threads(self.ranks_here(setting.devices)),
            group=Group(rank=launch.rank, world_size=launch.world_size, store=LauncherStore(), here=here)
            if meets
            else None,
            origin_s=setting.began_s,
            place=str(setting.place),
        )

    def _numbers(self, assignment: Assignment, shards: int) -> Iterator[int]:
        if assignment.group is None:
            return share(self.launch.rank, self.launch.world_size, shards)
        return counted(assignment.group, shards)

    def _compute(
        self,
        setting: Setting,
        directory: RunDirectory,
        assignment: Assignment,
        claims: Claims,
        stop: StopRequest,
        choice: ProgressChoice,
    ) -> Meter:
        # Ranks that meet must all come, even one that finds nothing left to do.
        if assignment.group is None and self._has_nothing(setting, directory, claims):
            return Meter(origin_s=assignment.origin_s)
        with setting.stoppable(directory, "while the rows that were drawn were checked"):
            require_whole_spool(setting.source, directory)
        plan = directory.job.plan
        progress = make_progress(self.shown(choice), plan.rows, directory.committed_rows())
        listener = _Listener(progress, directory, claims)
        try:
            with on_signals(stop, tells=self.launch.rank == 0), self._watching(setting, directory, progress):
                return run_here(
                    assignment,
                    claims,
                    artifact=setting.artifact,
                    source=setting.source,
                    listener=listener,
                    stop=stop,
                )
        finally:
            listener.look()
            progress.close()

    def _has_nothing(self, setting: Setting, directory: RunDirectory, claims: Claims) -> bool:
        """Whether all of its parts are there; they are read, and from a store copied, which takes a while."""
        with setting.stoppable(directory, "while what is there was checked"):
            claims.expect(share(self.launch.rank, self.launch.world_size, len(directory.job.plan)))
            return claims.peek() is None

    def _stopped(
        self, directory: RunDirectory, missing: Sequence[Shard], number: int, advice: str
    ) -> IncompleteRunError:
        why = f"stopped by {signal.Signals(number).name}"
        text = f"run directory {directory.path}: {why}\n{self._text(directory, missing, advice)}"
        return IncompleteRunError(text, signal=number)

    def _advice(self, setting: Setting) -> str:
        return f"If no other rank is at work on these, {self.launch.to_resume(setting.job.command)}"

    def _text(self, directory: RunDirectory, missing: Sequence[Shard], advice: str) -> str:
        total = len(directory.job.plan)
        ranges = describe_ranges((shard.start, shard.stop) for shard in missing) or "the last files of the job"
        return f"{self.launch} ends; {total - len(missing)} of {total} parts are there; missing: {ranges}. {advice}"


class TorchrunEngine(LaunchedEngine):
    """Started by torchrun, or by whatever sets the same variables."""

    read = staticmethod(torchrun)


class SlurmEngine(LaunchedEngine):
    """Started by ``srun``."""

    read = staticmethod(slurm)


class ArrayEngine(LaunchedEngine):
    """One of a Slurm array, of a Kubernetes indexed Job, or of any other set of jobs that know their number."""

    read = staticmethod(array)


class _Listener:
    """Counts this rank's rows as they are predicted, and those of the other ranks as their parts are committed."""

    def __init__(self, progress: Progress, directory: RunDirectory, claims: Claims) -> None:
        self._progress, self._directory, self._claims = progress, directory, claims
        self._own = self._others = 0
        self._looked = -LOOK_S

    def started(self, shard: Shard) -> None: ...

    def committed(self, commit: Commit) -> None: ...

    def predicted(self, rows: int) -> None:
        self._own += rows
        if monotonic() - self._looked >= LOOK_S:
            self.look()
        self._progress.update(self._own + self._others)

    def look(self) -> None:
        """See what the others have done by now."""
        self._looked = monotonic()
        self._others = self._directory.committed_rows(without=self._claims.taken)
        self._progress.update(self._own + self._others)
