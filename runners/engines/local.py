"""The local engine: one rank in this process, or several in processes of their own on this machine."""

import contextlib
import selectors
import subprocess
import tempfile
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import monotonic

from deploykit import errors
from deploykit.artifact import Artifact
from deploykit.errors import DeploykitError, RunError
from deploykit.plan import Shard
from deploykit.runs.commit import Commit
from deploykit.runs.feed import writing
from deploykit.runs.rundir import RunDirectory
from deploykit.sources import Source
from deploykit.storage.copies import renamed
from runners.engines.base import Engine
from runners.engines.execute import drive
from runners.engines.setting import Computed, ProgressChoice, Setting
from runners.engines.work import Outcome, Work
from runners.pipeline.loop import Pipeline
from runners.pipeline.shardqueue import ShardQueue
from runners.pipeline.sides import ShardFeed, Told
from runners.pipeline.timing import Meter
from runners.progress import Progress
from runners.ranks.assignment import Assignment
from runners.ranks.pace import behind, should_take
from runners.ranks.process import RankProcess
from runners.ranks.recorder import Recorder
from runners.store import Group
from runners.system.memory import peak_memory_bytes
from runners.system.stop import Stopped, StopRequest, end_process

__all__ = ["LocalEngine", "place", "rebuilt", "run_here"]

TICK_S = 0.1
PATIENCE_S = 10.0


class LocalEngine(Engine):
    """One rank in this process, or one process for each device of this machine."""

    def run(self, setting: Setting, out: Path, *, progress: ProgressChoice, notes: list[str]) -> Computed:
        return drive(setting, out, place, progress=progress, notes=notes)


def place(work: Work) -> Outcome:
    """Run the ranks on this machine.

    Raises:
        DeploykitError: whatever stopped them.
    """
    if len(work.assignments) > 1:
        return _run_ranks(work)
    (assignment,) = work.assignments
    feed, listener = ShardQueue(work.shards), _HereListener(work.progress, work.done)
    feed.end()
    meter = run_here(assignment, feed, artifact=work.artifact, source=work.source, listener=listener, stop=work.stop)
    return Outcome(meters={assignment.rank: meter})


class _HereListener:
    def __init__(self, progress: Progress, done: int) -> None:
        self._progress, self._done = progress, done

    def started(self, shard: Shard) -> None: ...

    def committed(self, commit: Commit) -> None: ...

    def predicted(self, rows: int) -> None:
        self._done += rows
        self._progress.update(self._done)


def run_here(
    assignment: Assignment,
    feed: ShardFeed,
    *,
    artifact: Artifact,
    source: Source,
    listener: Told,
    stop: StopRequest,
) -> Meter:
    """Run one rank in this process, and measure it; one that is stopped before it could begin has done nothing.

    Raises:
        DeploykitError: whatever stopped it.
    """
    meter = Meter(origin_s=assignment.origin_s)
    with contextlib.ExitStack() as stack:
        recorder = stack.enter_context(Recorder(assignment, listener, meter))
        directory = RunDirectory.open(assignment.directory)
        named = [
            renamed(text, assignment.place, directory.path) for text in (assignment.directory, directory.to_resume())
        ]
        stop.listen(end=partial(end_process, stop, *named))
        try:
            task = assignment.open(stack, artifact=artifact, source=source, stop=stop)
        except Stopped:
            return meter
        pipeline = Pipeline(task, feed, recorder, meter)
        stop.listen(finish=pipeline.finish, abandon=pipeline.abandon)
        if stop.finishing:
            pipeline.finish()
        meter.start_s = monotonic() - assignment.origin_s
        recorder.ready(meter.start_s)
        pipeline.run()
    meter.peak_memory_bytes = peak_memory_bytes()
    return meter


def _run_ranks(work: Work) -> Outcome:
    """Run every assignment in a process of its own, which holds the run directory as long as it lives.

    A rank that dies without a word keeps the shards that it had begun: whatever killed it may be in them. The others
    do the rest. An error that a rank reports stops all, as it would in one process.

    Raises:
        DeploykitError: the error that a rank reported.
    """
    assignments = work.assignments
    with writing(work.logs):
        work.logs.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        if work.joins_group:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="deploykit-"))
            store, world = Path(folder) / "store", len(assignments)
            assignments = [replace(a, group=Group(rank=a.rank, world_size=world, store=store)) for a in assignments]
        ranks = stack.enter_context(_Ranks(work))
        ranks.start(assignments)
        ranks.run()
        return ranks.outcome()


class _Ranks(contextlib.AbstractContextManager["_Ranks"]):
    def __init__(self, work: Work) -> None:
        self._work, self._waiting = work, deque(work.shards)
        self._ranks: list[RankProcess] = []
        self._deaths: list[str] = []
        self._error: DeploykitError | None = None
        self._told = 0
        self._selector = selectors.DefaultSelector()

    def start(self, assignments: Sequence[Assignment]) -> None:
        for assignment in assignments:
            log = self._work.logs / f"rank-{assignment.rank}.log"
            rank = RankProcess(assignment, log, inherit=[self._work.lock])
            self._ranks.append(rank)
            self._selector.register(rank.descriptor, selectors.EVENT_READ, rank)

    def run(self) -> None:
        while self._selector.get_map():
            for key, _ in self._selector.select(TICK_S):
                rank: RankProcess = key.data
                if not rank.hear():
                    self._selector.unregister(rank.descriptor)
                    self._gone(rank)
            self._pass_on_stop()
            self._hand_out()
            slow = behind(rank.pace() for rank in self._ranks if rank.descriptor in self._selector.get_map())
            self._work.progress.update(self._work.done + sum(rank.rows for rank in self._ranks), slow)

    def outcome(self) -> Outcome:
        if self._error is not None:
            raise self._error
        meters = {rank.rank: rank.meter for rank in self._ranks if rank.meter is not None}
        return Outcome(meters=meters, deaths=tuple(self._deaths))

    def _gone(self, rank: RankProcess) -> None:
        if rank.error is not None:
            self._fail(rebuilt(rank.error))
        elif rank.meter is not None or rank.was_ended:
            return
        elif self._work.joins_group and not rank.ready:
            # The others wait for it and would wait in vain.
            self._fail(RunError(f"{rank.how_it_died()}\nThe ranks could not meet; nothing was computed"))
            self._abandon()
        else:
            self._deaths.append(rank.how_it_died())
            self._work.progress.say(f"warning: {rank.death()}")
            self._waiting.extendleft(reversed(rank.unbegun))

    def _fail(self, error: DeploykitError) -> None:
        self._error = self._error or error
        self._tell_all(1, {"finish": True})

    def _abandon(self) -> None:
        self._tell_all(2, {"abandon": True})
        for rank in self._ranks:
            if not rank.ready:
                rank.terminate()

    def _pass_on_stop(self) -> None:
        stop = self._work.stop
        if stop.finishing and self._told < 1:
            self._tell_all(1, {"finish": True})
        if stop.abandoning and self._told < 2:
            self._abandon()
        if stop.ending:
            for rank in self._ranks:
                rank.kill()

    def _tell_all(self, level: int, message: dict[str, bool]) -> None:
        if self._told < level:
            self._told = level
            self._waiting.clear()
            for rank in self._ranks:
                rank.tell(message)

    def _hand_out(self) -> None:
        """Keep one shard ahead of each rank, so that its pipeline does not run dry at the end of a shard.

        A rank that still starts has its first shard put by: where there is one for each, no rank comes away empty. Near
        the end a slow rank comes away empty, so that nobody waits for it.
        """
        alive = [rank for rank in self._ranks if rank.descriptor in self._selector.get_map()]
        for rank in alive:
            has_place = not rank.unbegun and (rank.ready or not rank.given)
            if self._waiting and has_place and self._should_take(rank, alive):
                rank.give(self._waiting.popleft())
        # While a rank has a shard that it has not begun, its death would bring that shard back for the others.
        if not self._waiting and not any(rank.unbegun for rank in alive):
            for rank in alive:
                if rank.ready:
                    rank.end()

    def _should_take(self, rank: RankProcess, alive: Sequence[RankProcess]) -> bool:
        others = [other.load() for other in alive if other is not rank]
        shard_rows = self._waiting[0].rows
        return should_take(rank.load(), others, shard_rows, len(self._waiting) * shard_rows)

    def __exit__(self, *_: object) -> None:
        """Whatever happened, no rank is left behind."""
        self._selector.close()
        for rank in self._ranks:
            rank.close()
        deadline = monotonic() + PATIENCE_S
        for rank in self._ranks:
            try:
                rank.process.wait(max(0.0, deadline - monotonic()))
            except subprocess.TimeoutExpired:
                rank.kill()
                rank.process.wait()


def rebuilt(error: dict[str, str]) -> DeploykitError:
    """The error that a rank reported, of the type that it had there."""
    kind = getattr(errors, error["type"], RunError)
    rebuilt: DeploykitError = kind.__new__(kind)
    # Not through the type's own constructor, which may take other arguments than the text.
    Exception.__init__(rebuilt, error["message"])
    return rebuilt
