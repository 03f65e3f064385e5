"""One rank as a Ray actor: a pipeline that runs in a thread of its own, and calls that wait for their shard."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from deploykit.errors import DataError, DeploykitError, RunError
from deploykit.plan import Shard
from deploykit.runs.commit import Commit
from deploykit.runs.rundir import RUN_NAME
from deploykit.storage.stores import is_url
from runners.courier import Courier, sending, where
from runners.engines.shipping import unpacked
from runners.pipeline.loop import Pipeline
from runners.pipeline.shardqueue import ShardQueue
from runners.pipeline.timing import Meter
from runners.ranks.assignment import Assignment
from runners.ranks.recorder import Recorder
from runners.system.memory import peak_memory_bytes

__all__ = ["Home", "RayRank"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """What a rank on another machine must know of the process that started it.

    Attributes:
        began: when the run began, in seconds since 1970; monotonic clocks of two machines have nothing in common.
        folder: the working directory, for data that is named relative to it.
        path: where modules are found.
        digest: the artifact's digest.
    """

    began: float
    folder: str
    path: Sequence[str]
    digest: str


class RayRank:
    """Its methods answer with plain values; an error is ``{"error": {"type": ..., "message": ...}}``.

    Several calls of ``compute`` wait at the same time, so that one shard is read while another one is predicted.
    """

    def __init__(self, assignment: Assignment, home: Home, packed: "np.ndarray[Any, np.dtype[np.uint8]]") -> None:
        # Clocks of two machines differ, and one may be set back: nothing began later than now.
        origin = time.monotonic() - max(0.0, time.time() - home.began)
        self._assignment = replace(assignment, origin_s=origin)
        self._home, self._packed = home, packed
        self._feed = ShardQueue()
        self._meter = Meter(origin_s=origin)
        self._changed = threading.Condition()
        self._ready = self._ended = False
        self._committed: set[int] = set()
        self._error: dict[str, Any] = {}
        self._courier: Courier | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def ready(self) -> dict[str, Any]:
        """Answers when the model is loaded, or has failed to."""
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._ended)
        return self._error

    def compute(self, shard: Shard) -> dict[str, Any]:
        """Answers when the shard is committed, or will never be; to a URL it is sent later, before ``end`` answers.

        A ``note`` says why what is committed cannot be sent at this time.
        """
        self._feed.put(shard)
        with self._changed:
            self._changed.wait_for(lambda: shard.index in self._committed or self._ended)
        if shard.index not in self._committed:
            return self._error
        return {"note": self._courier.failing if self._courier is not None else ""}

    def end(self) -> dict[str, Any]:
        """Answers with the measurements, when all is done and sent."""
        self._feed.end()
        self._thread.join()
        return self._error or {"meter": self._meter.to_json()}

    def leave(self) -> None:
        """Leave nothing behind; for a rank that was not ready before all was done.

        Raises:
            RunError: the store cannot be written.
        """
        if self._courier is not None and not self._committed and not self._ended:
            self._courier.leave()

    def _work(self) -> None:
        # All in one thread: torch's number of threads belongs to the thread that sets it.
        try:
            with contextlib.ExitStack() as stack:
                assignment = self._placed(stack)
                _redirect(Path(assignment.directory) / "logs" / f"rank-{assignment.rank}.log")
                _settle(self._home)
                recorder = stack.enter_context(Recorder(assignment, self, self._meter))
                with _telling_where(assignment.rank):
                    artifact = stack.enter_context(unpacked(self._packed, self._home.digest))
                    task = assignment.open(stack, artifact=artifact)
                self._meter.start_s = time.monotonic() - self._meter.origin_s
                recorder.ready(self._meter.start_s)
                self._tell(ready=True)
                Pipeline(task, self._feed, recorder, self._meter).run()
            self._meter.peak_memory_bytes = peak_memory_bytes()
        except DeploykitError as error:
            self._error = {"error": {"type": type(error).__name__, "message": str(error)}}
        except Exception as error:  # noqa: BLE001 - it is raised again in the process that waits for the answer
            text = f"{where(self._assignment.rank)} failed with {type(error).__name__}: {error}; its log says more"
            self._error = {"error": {"type": "RunError", "message": text}}
        finally:
            self._tell(ended=True)

    def _placed(self, stack: contextlib.ExitStack) -> Assignment:
        """The assignment, with a directory on this machine where that of the run is at a URL."""
        if not is_url(self._assignment.place):
            return self._assignment
        self._courier = stack.enter_context(sending(self._assignment.place, self._assignment.rank))
        return replace(self._assignment, directory=str(self._courier.copy))

    def _tell(self, *, ready: bool = False, ended: bool = False, committed: int | None = None) -> None:
        with self._changed:
            self._ready, self._ended = self._ready or ready, self._ended or ended
            if committed is not None:
                self._committed.add(committed)
            self._changed.notify_all()

    def started(self, shard: Shard) -> None:  # noqa: ARG002
        """A shard is begun; not where another job has taken the place of this one."""
        if self._courier is not None:
            self._courier.require_job()

    def predicted(self, rows: int) -> None: ...

    def committed(self, commit: Commit) -> None:
        """A shard is on a disk; the pipeline says so."""
        self._tell(committed=commit.shard)


@contextlib.contextmanager
def _telling_where(rank: int) -> Iterator[None]:
    """Name this machine where something does not open: the command has found it in order on its own."""
    try:
        yield
    except DeploykitError as error:
        needed = "; the data must be on a file system that all machines share, or at a URL that all reach"
        error.args = (f"{where(rank)}: {error}{needed if isinstance(error, DataError) else ''}",)
        raise


def _redirect(log: Path) -> None:
    """What this process prints goes where the ranks of the local engine print, not into Ray's own files."""
    if not (log.parent.parent / RUN_NAME).is_file():
        raise RunError(
            f"run directory {log.parent.parent}: is not there on the machine {os.uname().nodename}; with --engine ray "
            "all machines of the cluster must share its file system; name a directory on a shared one, or a URL"
        )
    log.parent.mkdir(exist_ok=True)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def _settle(home: Home) -> None:
    """Find what the starting process finds: files by relative name, and modules."""
    if Path(home.folder).is_dir():
        os.chdir(home.folder)
    sys.path += [entry for entry in home.path if entry not in sys.path]
