"""What a run directory holds that counts, and what it holds that does not, with the reason."""

import contextlib
import fnmatch
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploykit.errors import RunError
from deploykit.plan import Plan, Shard
from deploykit.runs.commit import Commit, Digests, FileDigest, RankCommit, part_name
from deploykit.runs.job import Job
from deploykit.tally import Tally

__all__ = ["Look", "State", "read_state"]

Look = Callable[[Commit | RankCommit], None]
"""Is called with each commit that counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """The commits of a run directory.

    Attributes:
        parts: shard number to its valid commit.
        ranks: rank to its valid commit.
        damage: one text for each commit that does not count, with the reason.
        failed_of_ranks: shard number to its failed rows, of the commits of ranks.
    """

    parts: Mapping[int, Commit]
    ranks: Mapping[int, RankCommit]
    damage: tuple[str, ...]
    failed_of_ranks: Mapping[int, Mapping[int, str]]

    def rank_of(self) -> dict[int, int]:
        """Shard number to the rank whose file holds it; the lowest, should there be two."""
        return {shard: rank for rank in sorted(self.ranks, reverse=True) for shard in self.ranks[rank].shards}

    def failed(self) -> dict[int, str]:
        """Sample ids of the rows that failed and are in no file, in order, and why."""
        of_ranks = (item for commit in self.ranks.values() for item in commit.failed.items())
        return dict(sorted([*of_ranks, *(item for commit in self.parts.values() for item in commit.failed.items())]))

    def failed_in(self, shard: Shard) -> Mapping[int, str]:
        """The same of one shard."""
        if shard.index in self.parts:
            return self.parts[shard.index].failed
        return self.failed_of_ranks.get(shard.index, {})

    def missing(self, plan: Plan, *, from_parts: bool) -> list[Shard]:
        """The shards that no valid commit holds; ``from_parts`` looks at parts alone."""
        held = self.parts.keys() if from_parts else self.parts.keys() | self.rank_of().keys()
        return [shard for shard in plan.shards() if shard.index not in held]


def read_state(
    root: Path,
    job: Job,
    digests: Digests,
    *,
    check_digests: bool,
    tally: Tally | None = None,
    look: Look | None = None,
) -> State:
    """Read every commit below ``root`` and hold it against its files.

    Args:
        root: the run directory.
        job: that of the directory; commits of another one do not count.
        digests: those that are known.
        check_digests: whether files are read, and not just their sizes.
        tally: is told of the rows of the files that are read.
        look: is called when the files of a commit have just been read.
    """
    commits, plan = root / "commits", job.plan
    of_ranks = job.has_epoch_files and not job.is_strided  # else files of the ranks hold no rows
    # One listing, not a question for each shard: it is faster, and a network file system may answer such a question
    # from its memory, in which the commits of other machines are not.
    names = set(os.listdir(commits)) if commits.is_dir() else set()
    damage: list[str] = []
    parts: dict[int, Commit] = {}
    ranks: dict[int, RankCommit] = {}
    for shard in plan.shards():
        path = commits / f"{part_name(shard.index)}.json"
        with _noting(damage):
            if path.name in names:
                part = Commit.load(path, shard, job.id)
                _require_whole(root, [part.part], part.rows, digests, check_digests, tally)
                parts[shard.index] = part
        if look is not None and shard.index in parts:
            look(parts[shard.index])
    for path in (commits / name for name in sorted(fnmatch.filter(names, "rank-*.json")) if of_ranks):
        rank: RankCommit | None = None
        with _noting(damage):
            rank = RankCommit.load(path, plan, job.id)
            _require_whole(root, rank.files, rank.rows, digests, check_digests, tally)
            ranks[rank.rank] = rank
        if look is not None and rank is not None and ranks.get(rank.rank) is rank:
            look(rank)
    return State(parts=parts, ranks=ranks, damage=tuple(damage), failed_of_ranks=_by_shard(ranks.values(), plan))


def _by_shard(ranks: Iterable[RankCommit], plan: Plan) -> dict[int, dict[int, str]]:
    found: dict[int, dict[int, str]] = {}
    for row, why in (item for commit in ranks for item in commit.failed.items()):
        found.setdefault(row // plan.shard_rows, {})[row] = why
    return found


def _require_whole(
    root: Path, files: Sequence[FileDigest], rows: int, digests: Digests, check_digests: bool, tally: Tally | None
) -> None:
    size = sum(file.size_bytes for file in files)
    read = None if tally is None else tally.of_bytes(rows, size)
    for file in files:
        wrong = digests.damage(root, file, check_digest=check_digests, read=read)
        if wrong is not None:
            raise RunError(wrong)


@contextlib.contextmanager
def _noting(damage: list[str]) -> Iterator[None]:
    """A commit that does not count is no error here: its rows are missing, which the caller sees."""
    try:
        yield
    except RunError as error:
        damage.append(str(error))
