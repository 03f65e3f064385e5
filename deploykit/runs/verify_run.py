"""Proof that a run is complete: every sample id is there once, and every digest holds."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deploykit.errors import IncompleteRunError, RunError
from deploykit.plan import Shard, describe_ranges, merge_ranges, remaining
from deploykit.runs.commit import Commit, RankCommit
from deploykit.runs.datachange import data_change
from deploykit.runs.epoch import pending
from deploykit.runs.looking import looking
from deploykit.runs.rundir import RunDirectory
from deploykit.runs.runstate import State
from deploykit.runs.strided import strided_wrong_ids
from deploykit.runs.watching import to_go_on
from deploykit.tally import Tally, Told
from deploykit.writers import Batch
from deploykit.writers.calling import reading

__all__ = ["RunCheck", "check_run", "verify_run"]

Ranges = tuple[tuple[int, int], ...]

_MOST_STRAYS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCheck:
    """What a check found. Ranges are half-open rows.

    Attributes:
        rows: rows of the job.
        committed_rows: of these, how many are there.
        failed: sample ids of the rows that failed and were left out on request, and why.
        missing: rows that no valid file holds.
        duplicates: rows that more than one file of the ranks holds.
        damaged: one text per commit or file that is not what it should be.
        pending: what is left to do although no row is missing.
        data_change: what is known of data that was changed while it was read; then no row counts.
        notes: what was not checked, and why; and what lies there and is none of the run.
        are_ids_read: whether the sample ids in the files were compared with the commits, as of a
            writer without ``read`` they are not.
        to_resume: how the run is taken up again, or that it is at work.
    """

    rows: int
    committed_rows: int
    missing: Ranges
    duplicates: Ranges
    damaged: tuple[str, ...]
    pending: tuple[str, ...]
    notes: tuple[str, ...]
    failed: Mapping[int, str] = field(default_factory=dict)
    to_resume: str = ""
    data_change: str = ""
    are_ids_read: bool = True

    @property
    def ok(self) -> bool:
        """Whether the run is complete and sound."""
        return not (self.missing or self.duplicates or self.damaged or self.pending or self.data_change)

    def problems(self) -> list[str]:
        """One text per kind of problem."""
        texts = [self.data_change] if self.data_change else []
        if self.missing:
            texts.append(f"missing: {describe_ranges(self.missing)}")
        if self.duplicates:
            texts.append(f"more than once: {describe_ranges(self.duplicates)}")
        return [*texts, *(f"damaged: {text}" for text in self.damaged), *self.pending]


def verify_run(path: str | Path, *, progress: Told | None = None) -> RunCheck:
    """Check a run directory; return the proof. ``progress`` is called with the rows that were checked, and all rows.

    Raises:
        IncompleteRunError: rows are missing, or the last step was not reached; running again completes it.
        RunError: no run directory, or rows that are there more than once, or files that hold other rows, or data that
            was changed while it was read.
    """
    check = check_run(path, progress=progress)
    if not check.ok:
        incomplete = bool(check.missing or check.pending) and not check.data_change
        kind = IncompleteRunError if incomplete else RunError
        again = incomplete or bool(check.duplicates or check.data_change)
        advice = check.to_resume if again else "run again into a new directory"
        raise kind(
            f"run directory {path}: {check.committed_rows} of {check.rows} rows are there; "
            f"{'; '.join(check.problems())}; {advice}"
        )
    return check


def check_run(path: str | Path, *, progress: Told | None = None) -> RunCheck:
    """The same check, without an error for what it finds.

    Raises:
        RunError: no run directory, or one that cannot be read.
    """
    directory = RunDirectory.open(path)
    with looking(directory.path):
        return _checked(directory, progress)


def _checked(directory: RunDirectory, progress: Told | None) -> RunCheck:
    job = directory.job
    # The digest of a file and its sample ids: two passes, and where there are parts and files of ranks, over both.
    both = job.keeps_parts and job.has_epoch_files and not job.is_strided
    tally = Tally(progress, job.plan.rows, passes=4 if both else 2)
    contents = _Contents(directory, tally)
    state = directory.state(tally=tally, look=contents.look)
    missing = state.missing(job.plan, from_parts=job.keeps_parts)
    wrong = contents.wrong
    failed = state.failed()
    if job.is_strided and job.has_epoch_files and not missing:
        wrong += strided_wrong_ids(directory, directory.writer())
    return RunCheck(
        rows=job.plan.rows,
        committed_rows=job.plan.rows - sum(shard.rows for shard in missing) - len(failed),
        missing=_ranges(missing),
        duplicates=_ranges(_held_twice(directory, state)),
        damaged=(*state.damage, *wrong),
        pending=() if missing else tuple(pending(directory, state)),
        notes=(*contents.notes, *_strays(directory)),
        failed=failed,
        to_resume=to_go_on(directory),
        data_change=data_change(directory.path),
        are_ids_read=contents.are_ids_read,
    )


def _ranges(shards: Iterable[Shard]) -> Ranges:
    return tuple(merge_ranges((shard.start, shard.stop) for shard in shards))


def _held_twice(directory: RunDirectory, state: State) -> list[Shard]:
    counts = Counter(index for commit in state.ranks.values() for index in commit.shards)
    return [directory.job.plan.shard(index) for index, count in counts.items() if count > 1]


def _strays(directory: RunDirectory) -> Iterator[str]:
    for name in directory.strays()[:_MOST_STRAYS]:
        yield f"commits/{name}: is none of this run's, and nothing goes by it; remove it"


class _Contents:
    """Holds the sample ids in every file against its commit, right after its digest: it is at hand then.

    Attributes:
        wrong: what is wrong.
        notes: what could not be read.
        are_ids_read: whether the files can be read at all.
    """

    def __init__(self, directory: RunDirectory, tally: Tally) -> None:
        self._directory, self._tally = directory, tally
        self._writer = directory.writer()
        self.wrong: list[str] = []
        self.notes: tuple[str, ...] = ()
        self.are_ids_read = self._writer.can_read()
        if not self.are_ids_read:
            name = directory.job.writer
            self.notes = (f"the writer {name!r} cannot read its files: their sample ids were not read",)

    def look(self, commit: Commit | RankCommit) -> None:
        """Read the file of the commit."""
        if not self.are_ids_read:
            self._tally.add(commit.rows)
            return
        path, plan = self._directory.path, self._directory.job.plan
        if isinstance(commit, Commit):
            shards, name = [plan.shard(commit.shard)], commit.part.file
            read = partial(self._writer.read, path / name)
        else:
            shards, name = [plan.shard(index) for index in commit.shards], commit.files[0].file
            read = partial(self._writer.read_epoch, path, commit.rank)
        wrong = _wrong_ids(name, shards, self._tally.of_batches(reading(self._writer, read, name)), commit)
        self.wrong += [] if wrong is None else [wrong]


def _wrong_ids(name: str, shards: list[Shard], batches: Iterator[Batch], commit: Commit | RankCommit) -> str | None:
    """What is wrong with the sample ids of one file, or None."""
    failed = np.array(sorted(commit.failed), np.int64)
    expected = (_ids_of(shard, failed) for shard in shards)
    ids = np.empty(0, np.int64)  # what comes next, of the shards that are begun
    read = 0
    for batch in batches:
        if read + len(batch) > commit.rows:
            return f"{name}: more rows than the {commit.rows} of its commit"
        begun, have = [ids], len(ids)
        while have < len(batch):
            begun.append(next(expected))
            have += len(begun[-1])
        ids = np.concatenate(begun)
        wrong = np.flatnonzero(batch.sample_ids != ids[: len(batch)])
        if len(wrong):
            return f"{name}: place {read + wrong[0]} holds the sample id {batch.sample_ids[wrong[0]]}, not its own"
        read, ids = read + len(batch), ids[len(batch) :]
    return None if read == commit.rows else f"{name}: {read} rows, its commit says {commit.rows}"


def _ids_of(shard: Shard, failed: NDArray[np.int64]) -> NDArray[np.int64]:
    """The sample ids of a shard without those that failed, which are in order."""
    first, last = np.searchsorted(failed, [shard.start, shard.stop])
    return remaining(shard.start, shard.stop, failed[first:last].tolist())
