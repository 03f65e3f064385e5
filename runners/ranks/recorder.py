"""What a rank leaves for those who look on: a line per event in ``logs/rank-N.jsonl``, and its sign of life."""

import contextlib
import json
import os
import platform
import socket
import threading
from collections import deque
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic, time
from types import TracebackType
from typing import Any, Self

from deploykit.plan import Shard
from deploykit.runs.commit import Commit
from deploykit.signs import RankSign, RankState, leave_sign
from deploykit.storage.copies import renamed
from deploykit.version import __version__
from runners.pipeline.sides import Told
from runners.pipeline.timing import Meter
from runners.ranks.assignment import Assignment

__all__ = ["Recorder"]

SIGN_S = 0.5
"""A sign of life is left so often at most."""

RATE_S = 10.0
"""The rate is that of so long ago until now."""


class Recorder:
    """Stands between the pipeline and the engine's listener; a context manager around the whole work of a rank.

    Lines are appended, so that a resumed run adds to what the run before it left. A disk that cannot take a line
    stops nothing: the part that does not fit either says so.
    """

    def __init__(self, assignment: Assignment, told: Told, meter: Meter) -> None:
        self._assignment, self._told, self._meter = assignment, told, meter
        self._directory = Path(assignment.directory)
        self._lock = threading.Lock()
        self._log: int | None = None
        self._state: RankState = "starting"
        self._rows, self._began, self._signed = 0, time(), 0.0
        self._origin = monotonic()
        self._rates: deque[tuple[float, int]] = deque([(monotonic(), 0)])
        self._shards: dict[int, float] = {}

    def __enter__(self) -> Self:
        self._log = _open(self._directory / "logs" / f"rank-{self._assignment.rank}.jsonl")
        self._line(
            "start",
            pid=os.getpid(),
            host=socket.gethostname(),
            device=str(self._assignment.device),
            threads=self._assignment.threads,
            deploykit=__version__,
            python=platform.python_version(),
        )
        self._sign(self._state)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            text = self._named(str(error))
            self._line("error", type=type(error).__name__, message=text)
            self._sign("failed", text)
        else:
            meter = self._meter
            parts = ("read_s", "infer_s", "write_s", "wait_input_s", "wait_output_s")
            spent = {name: round(getattr(meter, name), 6) for name in parts}
            self._line(
                "end", rows=meter.rows, batches=meter.batches, seconds=round(monotonic() - self._origin, 6), **spent
            )
            self._sign("ended")
        if self._log is not None:
            os.close(self._log)
            self._log = None

    def ready(self, seconds: float) -> None:
        """The model is loaded, so many seconds after the run began."""
        self._state = "working"
        self._line("ready", seconds=round(seconds, 6))
        self._sign(self._state)

    def started(self, shard: Shard) -> None:
        """Reading of the shard begins."""
        self._shards[shard.index] = monotonic()
        self._line("begun", shard=shard.index, start=shard.start, stop=shard.stop)
        self._told.started(shard)

    def predicted(self, rows: int) -> None:
        """So many rows more went through the model."""
        self._rows += rows
        if monotonic() - self._signed >= SIGN_S:
            self._sign(self._state)
        self._told.predicted(rows)

    def committed(self, commit: Commit) -> None:
        """A shard is on the disk and counts."""
        seconds = monotonic() - self._shards.pop(commit.shard, monotonic())
        timings = {name: round(value, 6) for name, value in commit.timings.items()}
        self._line(
            "committed", shard=commit.shard, rows=commit.rows, failed=len(commit.failed), seconds=round(seconds, 6),
            **timings,
        )  # fmt: skip
        self._told.committed(commit)

    def warned(self, text: str) -> None:
        """Something that people should know, and that stops nothing."""
        self._line("warning", text=self._named(text))

    def _named(self, text: str) -> str:
        """Others read it, on other machines too, where nobody knows the copy of a URL."""
        return renamed(text, self._assignment.place, self._directory)

    def _line(self, event: str, **values: Any) -> None:
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"at": at, "event": event, "rank": self._assignment.rank, **values}) + "\n"
        # One call writes one line, so that no other thread's line ends up inside it.
        with self._lock, contextlib.suppress(OSError):
            if self._log is not None:
                os.write(self._log, line.encode())

    def _sign(self, state: RankState, error: str | None = None) -> None:
        self._signed = now = monotonic()
        self._rates.append((now, self._rows))
        while len(self._rates) > 2 and self._rates[1][0] < now - RATE_S:
            self._rates.popleft()
        (then, before) = self._rates[0]
        sign = RankSign(
            rank=self._assignment.rank,
            device=str(self._assignment.device),
            host=socket.gethostname(),
            pid=os.getpid(),
            state=state,
            rows=self._rows,
            rows_per_s=(self._rows - before) / max(now - then, 1e-9),
            began=self._began,
            at=time(),
            working_s=now - self._origin,
            error=error,
        )
        with self._lock:
            leave_sign(self._directory, sign)


def _open(path: Path) -> int | None:
    with contextlib.suppress(OSError):
        path.parent.mkdir(exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            os.write(descriptor, b"\n")  # A rank that was killed may have left half a line.
        return descriptor
    return None
