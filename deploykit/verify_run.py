"""Proof that a run is complete: every sample id is there once, and every digest holds."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from deploykit.errors import IncompleteRunError, RunError
from deploykit.plan import Shard, describe_ranges, merge_ranges, remaining
from deploykit.rundir import RunDirectory
from deploykit.runstate import State
from deploykit.strided import strided_problems, strided_wrong_ids
from deploykit.writers import Batch, Writer, make_writer
from deploykit.writers.calling import reading

__all__ = ["RunCheck", "check_run", "verify_run"]

Ranges = tuple[tuple[int, int], ...]


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
        notes: what was not checked, and why.
        to_resume: how the run is taken up again.
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

    @property
    def ok(self) -> bool:
        """Whether the run is complete and sound."""
        return not (self.missing or self.duplicates or self.damaged or self.pending)

    def problems(self) -> list[str]:
        """One text per kind of problem."""
        texts = [f"missing: {describe_ranges(self.missing)}"] if self.missing else []
        if self.duplicates:
            texts.append(f"more than once: {describe_ranges(self.duplicates)}")
        return [*texts, *(f"damaged: {text}" for text in self.damaged), *self.pending]


def verify_run(path: str | Path) -> RunCheck:
    """Check a run directory; return the proof.

    Raises:
        IncompleteRunError: rows are missing, or the last step was not reached; running again completes it.
        RunError: no run directory, or rows that are there more than once, or files that hold other rows.
    """
    check = check_run(path)
    if not check.ok:
        kind = IncompleteRunError if check.missing or check.pending else RunError
        again = kind is IncompleteRunError or bool(check.duplicates)
        advice = check.to_resume if again else "run again into a new directory"
        raise kind(
            f"run directory {path}: {check.committed_rows} of {check.rows} rows are there; "
            f"{'; '.join(check.problems())}; {advice}"
        )
    return check


def check_run(path: str | Path) -> RunCheck:
    """The same check, without an error for what it finds.

    Raises:
        RunError: no run directory.
    """
    directory = RunDirectory.open(path)
    job, state = directory.job, directory.state()
    missing = state.missing(job.plan, from_parts=job.keeps_parts)
    wrong, notes = _contents(directory, state)
    failed = state.failed()
    if job.is_strided and job.has_epoch_files and not missing:
        wrong += strided_wrong_ids(directory, make_writer(job.writer, job.outputs))
    return RunCheck(
        rows=job.plan.rows,
        committed_rows=job.plan.rows - sum(shard.rows for shard in missing) - len(failed),
        missing=_ranges(missing),
        duplicates=_ranges(_held_twice(directory, state)),
        damaged=(*state.damage, *wrong),
        pending=() if missing else tuple(_pending(directory, state)),
        notes=tuple(notes),
        failed=failed,
        to_resume=directory.to_resume(),
    )


def _ranges(shards: Iterable[Shard]) -> Ranges:
    return tuple(merge_ranges((shard.start, shard.stop) for shard in shards))


def _held_twice(directory: RunDirectory, state: State) -> list[Shard]:
    counts = Counter(index for commit in state.ranks.values() for index in commit.shards)
    return [directory.job.plan.shard(index) for index, count in counts.items() if count > 1]


def _pending(directory: RunDirectory, state: State) -> Iterator[str]:
    job = directory.job
    if not directory.is_delivered():
        yield f"the writer {(job.lightning or {})['writer']} was not called to its end"
    if not job.has_epoch_files:
        return
    if job.is_strided:
        yield from strided_problems(directory)
        return
    if len(state.rank_of()) < len(job.plan):
        yield "the files of the ranks are not written yet"
    elif state.parts and not job.keeps_parts:
        yield "the parts are not removed yet"


def _contents(directory: RunDirectory, state: State) -> tuple[list[str], list[str]]:
    """Hold the sample ids in every file against its commit; what is wrong, and what could not be read."""
    writer = make_writer(directory.job.writer, directory.job.outputs)
    if not writer.can_read():
        return [], [f"the writer {directory.job.writer!r} cannot read its files: their sample ids were not read"]
    files = [*_part_files(directory, state, writer), *_rank_files(directory, state, writer)]
    found = (_wrong_ids(name, shards, batches, state) for name, shards, batches in files)
    return [text for text in found if text is not None], []


_File = tuple[str, list[Shard], Iterator[Batch]]


def _part_files(directory: RunDirectory, state: State, writer: Writer) -> Iterator[_File]:
    for commit in state.parts.values():
        shards = [directory.job.plan.shard(commit.shard)]
        name = commit.part.file
        yield name, shards, reading(writer, partial(writer.read, directory.path / name), name)


def _rank_files(directory: RunDirectory, state: State, writer: Writer) -> Iterator[_File]:
    for commit in state.ranks.values():
        shards = [directory.job.plan.shard(index) for index in commit.shards]
        name = commit.files[0].file
        yield name, shards, reading(writer, partial(writer.read_epoch, directory.path, commit.rank), name)


def _wrong_ids(name: str, shards: list[Shard], batches: Iterator[Batch], state: State) -> str | None:
    """What is wrong with the sample ids of one file, or None."""
    rows = sum(shard.rows - len(state.failed_in(shard)) for shard in shards)
    expected = (remaining(shard.start, shard.stop, state.failed_in(shard)) for shard in shards)
    ids = np.empty(0, np.int64)  # what comes next, of the shards that are begun
    read = 0
    for batch in batches:
        if read + len(batch) > rows:
            return f"{name}: more rows than the {rows} of its commit"
        while len(ids) < len(batch):
            ids = np.concatenate([ids, next(expected)])
        wrong = np.flatnonzero(batch.sample_ids != ids[: len(batch)])
        if len(wrong):
            return f"{name}: place {read + wrong[0]} holds the sample id {batch.sample_ids[wrong[0]]}, not its own"
        read, ids = read + len(batch), ids[len(batch) :]
    return None if read == rows else f"{name}: {read} rows, its commit says {rows}"
