"""The run's view of one rank's process."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import Any

from deploykit.plan import Shard
from deploykit.runs.feed import writing
from runners.pipeline.timing import Meter
from runners.ranks.assignment import Assignment
from runners.ranks.pace import Load, Pace
from runners.ranks.wire import Lines, send
from runners.system.descriptors import forget, keep
from runners.system.memory import available_memory_bytes

__all__ = ["RankProcess", "import_path", "log_ending"]

TAIL_LINES = 8
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class RankProcess:
    """A rank that was started fresh, never forked from a process in which a runtime lives.

    Attributes:
        given: shards that it was given and has not committed, by index.
        begun: indices of those that it has begun to read.
        rows: rows that it has predicted.
        committed: rows of the shards that it has committed.
        ready: whether it has loaded its model.
        heard_s, ready_s: when it last said anything, and when it was ready, on the monotonic clock.
        meter: its measurements, once it is done.
        error: type and text of the error that it reported.
        was_ended: whether the run has ended it, which no rank dies of.
        descriptor: where its messages come from.
    """

    def __init__(self, assignment: Assignment, log: Path, *, inherit: Sequence[int]) -> None:
        self.assignment, self.log = assignment, log
        self.given: dict[int, Shard] = {}
        self.begun: set[int] = set()
        self.rows = self.committed = 0
        self.ready = self.ended = self.was_ended = False
        self.heard_s = self.ready_s = monotonic()
        self.meter: Meter | None = None
        self.error: dict[str, str] | None = None
        child_in, self._to_child = os.pipe()
        self.descriptor, child_out = os.pipe()
        keep(self._to_child, self.descriptor)
        self._lines = Lines()
        try:
            self.process = _start(assignment, log, child_in, child_out, inherit)
        except BaseException:  # Closed and raised again, whatever it is.
            self.close()
            raise
        finally:
            os.close(child_in)
            os.close(child_out)
        self.tell(assignment.to_json())

    @property
    def rank(self) -> int:
        return self.assignment.rank

    @property
    def unbegun(self) -> list[Shard]:
        return [shard for index, shard in self.given.items() if index not in self.begun]

    def tell(self, message: dict[str, Any]) -> None:
        """Send a message; a rank that is gone does not hear it."""
        send(self._to_child, message)

    def give(self, shard: Shard) -> None:
        """Hand out one shard."""
        self.given[shard.index] = shard
        self.tell({"shard": {"index": shard.index, "start": shard.start, "stop": shard.stop}})

    def end(self) -> None:
        """Say that no more shards come."""
        if not self.ended:
            self.ended = True
            self.tell({"end": True})

    def hear(self) -> bool:
        """Take in what the rank says; false when it has fallen silent for good."""
        data = os.read(self.descriptor, 1 << 16)
        self.heard_s = monotonic()
        for message in self._lines.feed(data):
            self._take(message)
        return bool(data)

    def _take(self, message: dict[str, Any]) -> None:
        if "ready" in message:
            self.ready, self.ready_s = True, self.heard_s
        self.rows = message.get("rows", self.rows)
        if "started" in message:
            self.begun.add(message["started"])
        if "committed" in message:
            self.committed += self.given.pop(message["committed"]).rows
        if "done" in message:
            self.meter = Meter.from_json(message["done"])
            self.rows = self.committed  # rows that failed are in it, too
        self.error = message.get("error", self.error)

    def how_it_died(self) -> str:
        """Its death, and the last lines of its log."""
        return f"{self.death()}; {log_ending(self.log)}"

    def death(self) -> str:
        """``rank 1 on cpu died, killed by SIGKILL``, or ``exited with code 1``."""
        code = self.process.wait()
        hint = "" if self.was_ended else _hint(-code)
        how = f"killed by {signal.Signals(-code).name}{hint}" if code < 0 else f"exited with code {code}"
        return f"rank {self.rank} on {self.assignment.device} died, {how}"

    def pace(self) -> Pace:
        """How it does. A rank without a shard is not expected to say anything."""
        now = monotonic()
        silent_s = now - self.heard_s if self.ready and self.given else 0.0
        return Pace(
            rank=self.rank, rows=self.rows, working_s=now - self.ready_s if self.ready else 0.0, silent_s=silent_s
        )

    def load(self) -> Load:
        """What it has still to do, and how fast it has been since it was ready."""
        pace, given = self.pace(), sum(shard.rows for shard in self.given.values())
        return Load(
            rows=max(0, given - (self.rows - self.committed)),
            rate=pace.rows / pace.working_s if pace.working_s else 0.0,
            silent_s=pace.silent_s,
        )

    def terminate(self) -> None:
        """End it while it has nothing to lose: it may be stuck in loading or meeting."""
        if self.process.poll() is None:
            self.was_ended = True
            self.process.terminate()

    def kill(self) -> None:
        """End it at once, and what it has started in its process group: a rank that hangs hears nothing."""
        with contextlib.suppress(ProcessLookupError):
            if self.process.poll() is None:
                self.was_ended = True
                os.killpg(self.process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Close the pipes: a rank that still lives ends itself."""
        forget(self._to_child, self.descriptor)
        os.close(self._to_child)
        os.close(self.descriptor)


def log_ending(log: Path) -> str:
    """The last lines of a rank's log, as a message ends with them."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    said = "".join(f"\n    {line}" for line in text.splitlines()[-TAIL_LINES:])
    return f"{log} ends with{said}" if said else f"{log} is empty"


def _hint(number: int) -> str:
    size = available_memory_bytes()
    if number != signal.SIGKILL or size is None:
        return ""
    return (
        f" (as the system does when memory runs out; here are {size / 1e9:.1f} GB: try a smaller batch or fewer ranks)"
    )


def _start(
    assignment: Assignment, log: Path, child_in: int, child_out: int, inherit: Sequence[int]
) -> "subprocess.Popen[bytes]":
    with writing(log):
        file = log.open("wb")
    with file:
        return subprocess.Popen(  # noqa: S603 - our own interpreter and module
            # -P: a file of the working directory must not stand in for a module of ours.
            [sys.executable, "-P", "-m", "runners.ranks.rank", *map(str, (child_in, child_out, *inherit))],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=_environment(assignment.threads),
            pass_fds=(child_in, child_out, *inherit),
            process_group=0,  # The terminal's Ctrl-C and Ctrl-\ are for the run alone.
        )


def _environment(threads: int) -> dict[str, str]:
    """The environment of this process, with the rank's share of the cores and the import path."""
    return {**os.environ, **dict.fromkeys(_THREAD_VARIABLES, str(threads)), "PYTHONPATH": import_path()}


def import_path() -> str:
    """Where this process finds modules, as ``PYTHONPATH`` tells it to one that is started."""
    return os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
