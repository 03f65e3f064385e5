"""One rank in a process of its own: ``python -m runners.ranks.rank IN OUT LOCK``, two pipes to the run, and its lock.

It is told its assignment, then one shard after another, and answers with what it has begun, predicted and committed.
When the run is gone, its pipe ends, and the rank ends at once: its unfinished shard is as if never begun.
"""

import atexit
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from time import monotonic
from typing import Any

from deploykit.errors import DeploykitError
from deploykit.plan import Shard
from deploykit.runs.commit import Commit
from deploykit.runs.job import Job
from runners.pipeline.loop import Pipeline
from runners.pipeline.shardqueue import ShardQueue
from runners.pipeline.timing import Meter
from runners.ranks.assignment import Assignment
from runners.ranks.recorder import Recorder
from runners.ranks.wire import Wire
from runners.system.descriptors import keep
from runners.system.memory import peak_memory_bytes

__all__ = ["main"]

REPORT_S = 0.1
ORPHANED = 3


class _WireListener:
    """Tells the run; rows at most every tenth of a second."""

    def __init__(self, wire: Wire) -> None:
        self._wire, self._rows, self._last = wire, 0, 0.0

    def started(self, shard: Shard) -> None:
        self._wire.send(started=shard.index)

    def predicted(self, rows: int) -> None:
        self._rows += rows
        if monotonic() - self._last > REPORT_S:
            self._last = monotonic()
            self._wire.send(rows=self._rows)

    def committed(self, commit: Commit) -> None:
        self._wire.send(committed=commit.shard)


class _Rank:
    def __init__(self, wire: Wire) -> None:
        self._wire, self._feed = wire, ShardQueue()
        self._pipeline: Pipeline | None = None

    def listen(self, messages: Iterator[dict[str, Any]]) -> None:
        """Follow the run's messages; runs in a thread of its own until the run is gone."""
        for message in messages:
            if "shard" in message:
                self._feed.put(Shard(**message["shard"]))
            elif "end" in message:
                self._feed.end()
            elif self._pipeline is None:
                self._feed.close()
            elif "finish" in message:
                self._pipeline.finish()
            else:
                self._pipeline.abandon()
        os._exit(ORPHANED)

    def work(self, assignment: Assignment) -> Job:
        """Do the rank's share; gives the job that it is of."""
        meter = Meter(origin_s=assignment.origin_s)
        with contextlib.ExitStack() as stack:
            recorder = stack.enter_context(Recorder(assignment, _WireListener(self._wire), meter))
            task = assignment.open(stack)
            self._pipeline = Pipeline(task, self._feed, recorder, meter)
            meter.start_s = monotonic() - assignment.origin_s
            recorder.ready(meter.start_s)
            self._wire.send(ready=True)
            self._pipeline.run()
        meter.peak_memory_bytes = peak_memory_bytes()
        self._wire.send(done=meter.to_json())
        return task.directory.job


class _Ending:
    """Ends the process without taking the interpreter apart, for which a short run would wait.

    Exit handlers that are registered later run before. It is for ranks whose files are all the kit's own: only the
    taking apart closes what a user's code has left open.
    """

    def __init__(self) -> None:
        self._at_once = False
        atexit.register(self._leave)

    def allow(self, assignment: Assignment, job: Job) -> None:
        """The rank is done with this job."""
        named = (assignment.data, assignment.runner, job.writer)
        # A colon is in the name of every target that is code of the user's.
        self._at_once = not any(":" in name for name in named)

    def _leave(self) -> None:
        if self._at_once:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)


def main(arguments: list[str], ending: _Ending) -> int:
    """Run one rank; the exit code is 0, or that of the error that was reported."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The run hears Ctrl-C and says what to do.
    incoming, outgoing, *locks = map(int, arguments)
    keep(incoming, outgoing, *locks)
    wire = Wire(incoming, outgoing)
    messages = wire.receive()
    assignment = Assignment.from_json(next(messages))
    rank = _Rank(wire)
    threading.Thread(target=rank.listen, args=(messages,), daemon=True).start()
    try:
        job = rank.work(assignment)
    except DeploykitError as error:
        wire.send(error={"type": type(error).__name__, "message": str(error)})
        return error.exit_code
    ending.allow(assignment, job)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], _Ending()))
