"""The files of each rank at the end of a run, joined from the committed parts.

The order of steps makes a crash at any moment harmless: the files of a rank, its commit, and, when every rank has both
and the job keeps no parts, the commits of the parts and then the parts.
"""

import os
import shutil
from pathlib import Path

from deploykit.commit import RankCommit, part_name, rank_of_file
from deploykit.errors import IncompleteRunError, RunError
from deploykit.feed import writing
from deploykit.files import sync_directory, temporary_name
from deploykit.plan import Shard, describe_ranges
from deploykit.rundir import RunDirectory
from deploykit.runrows import RunRows
from deploykit.runstate import State
from deploykit.writers.base import Writer
from deploykit.writers.calling import calling

__all__ = ["finish_epoch", "publish", "refuse_misplaced"]


def finish_epoch(directory: RunDirectory, writer: Writer) -> list[RankCommit]:
    """Write ``predictions_{rank}`` for every rank that computed a shard, and its commit; safe to repeat.

    A shard belongs to the rank that its commit names; in the strided layout the rows decide instead, see
    ``deploykit.strided``. With the write interval ``epoch`` the parts are removed at last, unless
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
        from deploykit.strided import finish_strided  # it builds on this module

        finish_strided(directory, writer)
        return []
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
    return kept


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
    stage = directory.path / temporary_name(f"rank-{rank}")
    failed = {row: why for shard in shards for row, why in rows.state.failed_in(shard).items()}
    count = sum(shard.rows for shard in shards) - len(failed)
    with writing(writer.epoch_path(directory.path, rank)):
        try:
            stage.mkdir()
            with calling(writer, directory.job.writer, f"the file of rank {rank}", directory.to_resume()):
                files = writer.write_epoch(stage, rank, rows.of(shards), count)
            refuse_misplaced(writer, stage, rank, files)
            commit = RankCommit(
                rank=rank,
                shards=tuple(shard.index for shard in shards),
                rows=count,
                files=tuple(directory.digests.record(file, file.name) for file in files),
                failed=failed,
            )
            publish(files, directory.path)
            commit.save(directory.commits)
        finally:
            shutil.rmtree(stage, ignore_errors=True)
    return commit


def refuse_misplaced(writer: Writer, stage: Path, rank: int, files: list[Path]) -> None:
    """Refuse files that a writer put elsewhere, or did not write.

    Raises:
        RunError: a file of another name or in another folder.
    """
    for file in files:
        if file.parent != stage or rank_of_file(file.name) != rank or not file.is_file():
            raise RunError(
                f"writer {type(writer).__name__}: write_epoch gave {file.name}; it must write predictions_{rank} or "
                f"batch_indices_{rank} with its extension into the directory that it is given"
            )


def publish(files: list[Path], directory: Path) -> None:
    """Flush the files to the disk and move them into the directory."""
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    for file in files:
        os.replace(file, directory / file.name)
    sync_directory(directory)


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
