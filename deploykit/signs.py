"""Signs of life of a run: small files below ``status/`` that are replaced as it goes on, for ``deploykit status``.

::

    status/run.json       of the call that works, or worked last, in the directory
    status/rank-0.json    of each of its ranks
    spool/drawing.json    of a call that goes through data that comes but once, before the job begins

They are no part of the result: nothing but ``deploykit status`` reads them, and where they cannot be written the run
goes on.
"""

import contextlib
import json
import os
import socket
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import time
from typing import Any, Literal, TypeVar

from deploykit.errors import DeploykitError, IncompleteRunError
from deploykit.storage.files import TEMPORARY_PREFIX

__all__ = [
    "DRAWING_NAME", "STATUS_NAME", "CallSign", "DrawingSign", "RankSign", "RankState", "forget_call", "leave_drawing",
    "leave_sign", "read_drawing", "read_signs", "signing", "signing_end",
]  # fmt: skip

T = TypeVar("T")

STATUS_NAME, DRAWING_NAME = "status", "drawing.json"

_CALL = "run.json"

AGAIN_S = 10.0
"""So often a sign is left where nothing else happens."""

RankState = Literal["starting", "working", "ending", "ended", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankSign:
    """What a rank is doing. Times in seconds since 1970.

    Attributes:
        state: ``starting``, ``working``, ``ending`` (it has predicted what it could, and sends it, or makes the files
            of the whole job), ``ended`` or ``failed``.
        rows: rows that it has predicted in this call.
        rows_per_s: the same per second, of late.
        at: when this was so.
        working_s: seconds since it began, by a clock that nobody sets; 0 where an older version does not say.
        error: what it failed with.
    """

    rank: int
    device: str
    host: str
    pid: int
    state: RankState
    rows: int
    rows_per_s: float
    began: float
    at: float
    working_s: float = 0.0
    error: str | None = None

    def is_alive(self) -> bool | None:
        """Whether its process is there; None where that cannot be told, because it is on another host."""
        return _is_there(self.pid, self.host)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSign:
    """One call of ``run``, by its process.

    Attributes:
        birth: when the process was born, as the kernel counts; numbers of processes are given out again.
        ended: None while it works, and for ever if it was killed.
        error: the text of what ended it, ``error_type`` the name of its type.
    """

    host: str
    pid: int
    birth: str | None
    began: float
    ended: float | None = None
    error: str | None = None
    error_type: str | None = None

    def is_alive(self) -> bool | None:
        """Whether its process works on; None where that cannot be told, because it is on another host."""
        if self.ended is not None:
            return False
        there = _is_there(self.pid, self.host)
        return there and _birth(self.pid) == self.birth


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawingSign(CallSign):
    """A call that draws rows.

    Attributes:
        rows: rows that have come.
        at: when this was so.
    """

    rows: int
    at: float


@contextlib.contextmanager
def signing(directory: Path) -> Iterator[None]:
    """Say that a call works in the run directory as long as the block does; what earlier ones left is removed."""
    call, folder = CallSign(**_process(), began=time()), directory / STATUS_NAME
    with contextlib.suppress(OSError):
        for old in folder.glob("rank-*.json"):
            old.unlink()
    _replace(folder, _CALL, asdict(call))
    try:
        yield
    except BaseException as error:  # Told and raised again, whatever it is.
        failed = replace(call, ended=time(), error=str(error), error_type=type(error).__name__)
        _replace(folder, _CALL, asdict(failed))
        raise
    _replace(folder, _CALL, asdict(replace(call, ended=time())))


def forget_call(directory: Path, rank: int, world_size: int) -> None:
    """Remove what earlier calls said of themselves, of this rank, and of ranks that there are no more.

    Ranks that a launcher starts speak for themselves alone, and the others may be at work.
    """
    over = [sign.rank for sign in read_signs(directory)[1] if sign.rank >= world_size]
    for name in (_CALL, *(f"rank-{number}.json" for number in (rank, *over))):
        with contextlib.suppress(OSError):
            (directory / STATUS_NAME / name).unlink()


def leave_sign(directory: Path, sign: RankSign) -> None:
    """Replace the rank's sign of life."""
    _replace(directory / STATUS_NAME, f"rank-{sign.rank}.json", asdict(sign))


@contextlib.contextmanager
def signing_end(directory: Path, rank: int, device: str) -> Iterator[None]:
    """Say that a rank which a launcher has started is ending, as long as the block does; then what it said before.

    Of an error that is none of a signal's or of missing rows it says that.
    """
    host, pid, now = socket.gethostname(), os.getpid(), time()
    said = _read(directory / STATUS_NAME / f"rank-{rank}.json", RankSign) or RankSign(
        rank=rank, device=device, host=host, pid=pid, state="ended", rows=0, rows_per_s=0.0, began=now, at=now
    )
    sign, over = replace(said, host=host, pid=pid, state="ending", at=now), threading.Event()

    def say_again() -> None:
        while not over.wait(AGAIN_S):
            leave_sign(directory, replace(sign, at=time()))

    leave_sign(directory, sign)
    thread = threading.Thread(target=say_again, name="sign", daemon=True)
    thread.start()
    try:
        yield
    except DeploykitError as error:
        if not isinstance(error, IncompleteRunError):
            said = replace(sign, state="failed", error=str(error), at=time())
        raise
    finally:
        over.set()
        thread.join()
        leave_sign(directory, said)


def leave_drawing(spool: Path, rows: int, *, began: float) -> None:
    """Say that this process draws rows into the spool, and how many there are."""
    _replace(spool, DRAWING_NAME, asdict(DrawingSign(**_process(), began=began, rows=rows, at=time())))


def read_drawing(spool: Path) -> DrawingSign | None:
    """The sign of who draws into the spool, or did when it was killed."""
    return _read(spool / DRAWING_NAME, DrawingSign)


def read_signs(directory: Path) -> tuple[CallSign | None, list[RankSign]]:
    """The last call's sign, if it left one, and those of its ranks, by rank."""
    folder = directory / STATUS_NAME
    call = _read(folder / _CALL, CallSign)
    ranks = [_read(path, RankSign) for path in folder.glob("rank-*.json")]
    return call, sorted((rank for rank in ranks if rank is not None), key=lambda rank: rank.rank)


def _read(path: Path, kind: type[T]) -> T | None:
    # A file that another version wrote, or that is gone since it was listed, says nothing.
    with contextlib.suppress(OSError, ValueError, TypeError):
        return kind(**json.loads(path.read_text(encoding="utf-8")))
    return None


def _is_there(pid: int, host: str) -> bool | None:
    if host != socket.gethostname():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return _birth(pid) != "dead"


def _process() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "birth": _birth(os.getpid())}


def _birth(pid: int) -> str | None:
    """When a process was born; "dead" for one that only waits to be buried; None where the kernel does not say."""
    with contextlib.suppress(OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return "dead" if fields[0] in "ZX" else fields[19]
    return None


def _replace(folder: Path, name: str, data: Mapping[str, Any]) -> None:
    """Without a flush to the disk: after a power cut nobody asks how a rank was."""
    temporary = folder / f"{TEMPORARY_PREFIX}{os.getpid()}-{name}"
    # A disk that is full stops the parts, with its own message; looking on must not be what fails first.
    with contextlib.suppress(OSError):
        folder.mkdir(exist_ok=True)
        try:
            temporary.write_text(json.dumps(data), encoding="utf-8")
            os.replace(temporary, folder / name)
        except OSError:
            temporary.unlink(missing_ok=True)
            (folder / name).unlink(missing_ok=True)  # What is no longer so is worse than no sign.
