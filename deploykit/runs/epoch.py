"""The files of each rank at the end of a run, joined from the committed parts.

The order of steps makes a crash at any moment harmless: the files of a rank, its commit, and, when every rank has both
and the job keeps no parts, the commits of the parts and then the parts.
"""

from collections.abc import Iterator

from deploykit.errors import IncompleteRunError, RunError
from deploykit.plan import Shard, describe_ranges
from deploykit.runs.commit import RankCommit, part_name, rank_of_file
from deploykit.runs.feed import writing
from deploykit.runs.rankfiles import write_rank_files
from deploykit.runs.rundir import RunDirectory
from deploykit.runs.runrows import RunRows
from deploykit.runs.runstate import State
from deploykit.runs.strided import finish_strided, strided_problems
from deploykit.storage.files import sync_directory
from deploykit.writers.base import Writer

__all__ = ["finish_epoch", "is_finished", "pending"]


def finish_epoch(directory: RunDirectory, writer: Writer) -> None:
    """Write ``predictions_{rank}`` for every rank that computed a shard, and its commit; safe to repeat.

    A shard belongs to the rank that its commit names; in the strided layout the rows decide instead, see
    ``deploykit.runs.strided``. With the write interval ``epoch`` the parts are removed at last, unless
    that layout needs them.

    Raises:
        IncompleteRunError: shards are missing.
        RunError: the job has no epoch files, or the disk is full or not writable.
    """
    if not directory.job.has_epoch_files:
        raise RunError(f"run directory {directory.path}: its write interval is batch; it has no file for each rank")
    state = directory.state()
    _refuse_missing(directory, state)
    if directory.job.is_strided:
        finish_strided(directory, writer)
        return
    groups = _groups(directory, state)
    rows = RunRows(directory.path, state, writer, directory.job.plan.batch_size)
    kept = [
        commit
        if (commit := state.ranks.get(rank)) and commit.shards == tuple(shard.index for shard in shards)
        else _write_rank(directory, writer, rows, rank, shards)
        for rank, shards in groups.items()
    ]
    with writing(directory.path):
        _remove_strays(directory, kept, writer.extension)
        if not directory.job.keeps_parts:
            _remove_parts(directory)


def is_finished(directory: RunDirectory, state: State | None = None) -> bool:
    """Whether nothing is left to do: every shard is there, and every rank file if the job has them.

    ``state`` is that of the directory, if the caller has it.
    """
    job, state = directory.job, state or directory.state()
    if state.damage or state.missing(job.plan, from_parts=job.keeps_parts) or any(pending(directory, state)):
        return False
    is_joined = job.has_epoch_files and not job.is_strided
    return not is_joined or sum(len(commit.shards) for commit in state.ranks.values()) == len(job.plan)


def pending(directory: RunDirectory, state: State, *, check_digests: bool = True) -> Iterator[str]:
    """What is left to do of a job whose rows are all there, a text for each step.

    Without ``check_digests`` no file is read.
    """
    job = directory.job
    if not directory.is_delivered():
        yield f"the writer {(job.lightning or {})['writer']} was not called to its end"
    if not job.has_epoch_files:
        return
    if job.is_strided:
        yield from strided_problems(directory, check_digests=check_digests)
    elif len(state.rank_of()) < len(job.plan):
        yield "the files of the ranks are not written yet"
    elif state.parts and not job.keeps_parts:
        yield "the parts are not removed yet"
    elif state.damage:
        yield "what holds none of the rows is not removed yet"


def _refuse_missing(directory: RunDirectory, state: State) -> None:
    missing = state.missing(directory.job.plan, from_parts=directory.job.keeps_parts)
    if missing:
        ranges = describe_ranges((shard.start, shard.stop) for shard in missing)
        raise IncompleteRunError(f"run directory {directory.path}: {ranges} missing; {directory.to_resume()}")


def _groups(directory: RunDirectory, state: State) -> dict[int, list[Shard]]:
    """The shards of each rank. Where a rank's file holds a shard already, it stays there."""
    rank_of = {index: commit.rank for index, commit in state.parts.items()} | state.rank_of()
    groups: dict[int, list[Shard]] = {}
    for shard in directory.job.plan.shards():
        groups.setdefault(rank_of[shard.index], []).append(shard)
    return dict(sorted(groups.items()))


def _write_rank(directory: RunDirectory, writer: Writer, rows: RunRows, rank: int, shards: list[Shard]) -> RankCommit:
    failed = {row: why for shard in shards for row, why in rows.state.failed_in(shard).items()}
    count, numbers = sum(shard.rows for shard in shards) - len(failed), tuple(shard.index for shard in shards)
    files = write_rank_files(directory, writer, rank, rows.of(shards), count)
    job = directory.job.id
    commit = RankCommit(rank=rank, shards=numbers, rows=count, files=files, job=job, failed=failed)
    with writing(writer.epoch_path(directory.path, rank)):
        commit.save(directory.commits)
    return commit


def _remove_strays(directory: RunDirectory, kept: list[RankCommit], extension: str) -> None:
    """Remove rank files that are not part of the result: whoever globs for ``predictions_*`` must see each row once."""
    ranks = {RankCommit.path(directory.commits, commit.rank) for commit in kept}
    for path in directory.commits.glob("rank-*.json"):
        if path not in ranks:
            path.unlink()
    files = {file.file for commit in kept for file in commit.files}
    for path in directory.path.glob(f"*.{extension}"):
        if rank_of_file(path.name) is not None and path.name not in files:
            path.unlink()


def _remove_parts(directory: RunDirectory) -> None:
    sync_directory(directory.commits)
    for shard in directory.job.plan.shards():
        (directory.commits / f"{part_name(shard.index)}.json").unlink(missing_ok=True)
    for path in directory.parts.glob("part-*"):
        path.unlink()
