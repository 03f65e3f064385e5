"""How far a run is, read from its directory alone: cheap, at any time, and unnoticed by the run."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import time
from typing import Any, Literal

from deploykit.errors import IncompleteRunError, RunError
from deploykit.runs.datachange import CHANGED_NAME, data_change
from deploykit.runs.early import SPOOL_NAME, is_early
from deploykit.runs.epoch import pending
from deploykit.runs.looking import looking
from deploykit.runs.rundir import REPORT_NAME, RUN_NAME, RunDirectory
from deploykit.signs import STATUS_NAME, CallSign, RankSign, read_drawing, read_signs
from deploykit.storage.copies import at_hand, renamed
from deploykit.storage.paths import require_place

__all__ = ["RankStatus", "RunStatus", "run_status", "to_go_on"]

SILENT_S = 60.0
"""A call on another host, of which no rank has given a sign for so long, counts as interrupted."""

_OVER = ("ended", "failed")
_STOPPED = (None, IncompleteRunError.__name__, KeyboardInterrupt.__name__)

Condition = Literal["not started", "drawing", "running", "interrupted", "failed", "finished"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankStatus:
    """One rank of the last call.

    Attributes:
        state: ``starting``, ``working``, ``ending`` (under a launcher: it sends what it has, or makes the files of the
            whole job), ``ended``, ``failed``, or ``gone`` if it died without a word.
        rows: rows that it has predicted in this call.
        rows_per_s: of late, while it works; over the whole call when it is over.
        lag_s: seconds since its last sign of life; None when it has ended.
        error: what it failed with.
    """

    rank: int
    device: str
    host: str
    state: str
    rows: int
    rows_per_s: float
    lag_s: float | None
    error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """How far a run is.

    Attributes:
        state: ``not started``, ``drawing`` (data that comes but once is gone through, before the number of its rows is
            known), ``running``, ``interrupted`` (killed or stopped, or a rank died), ``failed`` (the last
            call ended with another ``error``, or the data was changed while it was read) or ``finished``.
        error: what the last call ended with, or that the data was changed, as is seen while it runs.
        rows: rows of the job.
        drawn_rows: rows that had come when the last sign was given, where the job has not begun.
        done_rows: rows in committed parts, those that failed included.
        failed_rows: rows that are recorded as failed.
        shards, done_shards: the same in shards.
        rows_per_s: of all ranks that work and have given a sign of late; None when none does.
        left_s: seconds that the rest takes at this rate; None where there is no rate.
        damage: one text for each commit that does not count. Digests are not read: ``deploykit verify`` does that.
        to_resume: how the run is taken up again, once there is a job and as long as it is not finished.
    """

    path: str
    state: Condition
    rows: int = 0
    drawn_rows: int | None = None
    done_rows: int = 0
    failed_rows: int = 0
    shards: int = 0
    done_shards: int = 0
    rows_per_s: float | None = None
    left_s: float | None = None
    ranks: tuple[RankStatus, ...] = ()
    damage: tuple[str, ...] = ()
    error: str | None = None
    to_resume: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def run_status(path: str | Path) -> RunStatus:
    """The status of a run directory, here or at a URL. Nothing is written, no lock is taken, no prediction is read.

    Raises:
        RunError: something else than a run directory, or one that cannot be read.
        UsageError: not the path of anything.
    """
    require_place("run directory", path)
    with at_hand(path, "run directory", RunError, needs=[RUN_NAME], whole=_is_small) as here, looking(here):
        found = _status(here)
    return replace(
        found,
        path=renamed(found.path, path, here),
        to_resume=renamed(found.to_resume, path, here),
        error=found.error and renamed(found.error, path, here),
    )


def _is_small(name: str) -> bool:
    """Whether a file of a run says how far it is; of the others the size is enough."""
    return name.startswith(("commits/", f"{STATUS_NAME}/")) or name in (RUN_NAME, CHANGED_NAME)


def _status(path: Path) -> RunStatus:
    if _is_untouched(path):
        return _before_the_job(path)
    directory = RunDirectory.open(path)
    now = time()
    # Before the commits: what is committed meanwhile is counted rather than missed.
    call, signs = read_signs(path)
    state, plan = directory.state(check_digests=False), directory.job.plan
    missing = state.missing(plan, from_parts=False)
    left = sum(shard.rows for shard in missing)
    finished = not (missing or state.damage) and not any(pending(directory, state, check_digests=False))
    # The report is written last: without one, what the last call failed with stands, though every part may be there.
    finished &= (path / REPORT_NAME).exists() or not _error(call, signs)
    condition = _condition(call, signs, finished=finished, now=now)
    running = condition == "running"
    error = _error(call, signs) if condition in {"failed", "interrupted"} else None
    if change := data_change(path):
        condition, error = "running" if running else "failed", f"{change}; {directory.to_resume()}"
    ranks = [_rank(sign, now, running=running) for sign in signs]
    rate = sum(rank.rows_per_s for rank in ranks if rank.state == "working" and (rank.lag_s or 0.0) < SILENT_S)
    return RunStatus(
        path=str(path),
        state=condition,
        rows=plan.rows,
        done_rows=plan.rows - left,
        failed_rows=len(state.failed()),
        shards=len(plan),
        done_shards=len(plan) - len(missing),
        rows_per_s=rate or None,
        left_s=left / rate if rate else None,
        ranks=tuple(ranks),
        damage=state.damage,
        to_resume="" if condition == "finished" else f"{_if_none_comes(call, signs)}{directory.to_resume()}",
        error=error,
    )


def _if_none_comes(call: CallSign | None, signs: Sequence[RankSign]) -> str:
    """Ranks that a launcher starts may come one after the other, as those of a job array do; each is a call alone."""
    between = call is None and bool(signs) and all(sign.state == "ended" for sign in signs)
    return "if no other rank is to come, " if between else ""


def _before_the_job(path: Path) -> RunStatus:
    sign = read_drawing(path / SPOOL_NAME)
    if sign is None:
        return RunStatus(path=str(path), state="not started")
    alive = sign.is_alive()
    if alive is None:
        alive = time() - sign.at < SILENT_S
    return RunStatus(path=str(path), state="drawing" if alive else "interrupted", drawn_rows=sign.rows)


def _is_untouched(path: Path) -> bool:
    """Nothing there yet, or no more than the first moments of a run leave."""
    if path.exists() and not path.is_dir():
        raise RunError(f"run directory {path}: is a file; name a directory that deploykit run made")
    return not path.exists() or all(entry.name == SPOOL_NAME or is_early(entry) for entry in path.iterdir())


def to_go_on(directory: RunDirectory) -> str:
    """What a person does about rows that are missing: wait as long as a run is at work on them, else resume it.

    Behind it what the last call has failed with, if it has.
    """
    call, signs = read_signs(directory.path)
    condition = _condition(call, signs, finished=False, now=time())
    if condition == "running" and not data_change(directory.path):
        return "as the run is at work, wait until it ends (deploykit status says how far it is)"
    why = _error(call, signs) if condition == "failed" else None
    return directory.to_resume() + (f". The last call ended with: {why}" if why else "")


def _is_at_work(call: CallSign | None, signs: Sequence[RankSign], now: float) -> bool:
    alive = None if call is None else call.is_alive()
    if alive is not None:
        return alive
    working = (sign for sign in signs if sign.state not in _OVER and now - sign.at < SILENT_S)
    return any(sign.is_alive() is not False for sign in working)


def _condition(call: CallSign | None, signs: Sequence[RankSign], *, finished: bool, now: float) -> Condition:
    if _is_at_work(call, signs, now):
        return "running"
    if finished:
        return "finished"
    if call is None:
        return "failed" if _error(call, signs) else "interrupted"
    return "interrupted" if call.error_type in _STOPPED else "failed"


def _error(call: CallSign | None, signs: Sequence[RankSign]) -> str | None:
    """What ended the run; ranks that a launcher has started speak for themselves."""
    errors = [sign.error for sign in signs] if call is None else [call.error]
    return next(filter(None, errors), None)


def _rank(sign: RankSign, now: float, *, running: bool) -> RankStatus:
    over = sign.state in _OVER
    works = running and not over and sign.is_alive() is not False  # The others of a run go on without one that died.
    seconds = sign.working_s or sign.at - sign.began  # The clock of the machine may have been set back meanwhile.
    mean = sign.rows / seconds if seconds > 0 else 0.0
    return RankStatus(
        rank=sign.rank,
        device=sign.device,
        host=sign.host,
        state=sign.state if over or works else "gone",
        rows=sign.rows,
        rows_per_s=sign.rows_per_s if works else mean,
        lag_s=None if over else max(0.0, now - sign.at),
        error=sign.error,
    )
