"""What a run directory holds that counts, and what it holds that does not, with the reason."""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploykit.commit import Commit, Digests, FileDigest, RankCommit, part_name
from deploykit.errors import RunError
from deploykit.plan import Plan, Shard

__all__ = ["State", "read_state"]


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """The commits of a run directory.

    Attributes:
        parts: shard number to its valid commit.
        ranks: rank to its valid commit.
        damage: one text for each commit that does not count, with the reason.
    """

    parts: Mapping[int, Commit]
    ranks: Mapping[int, RankCommit]
    damage: tuple[str, ...]

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
        of_ranks = (item for commit in self.ranks.values() for item in commit.failed.items())
        return {row: why for row, why in of_ranks if shard.start <= row < shard.stop}

    def missing(self, plan: Plan, *, from_parts: bool) -> list[Shard]:
        """The shards that no valid commit holds; ``from_parts`` looks at parts alone."""
        held = self.parts.keys() if from_parts else self.parts.keys() | self.rank_of().keys()
        return [shard for shard in plan.shards() if shard.index not in held]


def read_state(root: Path, plan: Plan, digests: Digests, *, check_digests: bool) -> State:
    """Read every commit below ``root`` and hold it against its files."""
    commits = root / "commits"
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
                part = Commit.load(path, shard)
                _require_whole(root, [part.part], digests, check_digests)
                parts[shard.index] = part
    for path in sorted(commits.glob("rank-*.json")):
        with _noting(damage):
            rank = RankCommit.load(path, plan)
            _require_whole(root, rank.files, digests, check_digests)
            ranks[rank.rank] = rank
    return State(parts=parts, ranks=ranks, damage=tuple(damage))


def _require_whole(root: Path, files: Sequence[FileDigest], digests: Digests, check_digests: bool) -> None:
    for file in files:
        wrong = digests.damage(root, file, check_digest=check_digests)
        if wrong is not None:
            raise RunError(wrong)


@contextlib.contextmanager
def _noting(damage: list[str]) -> Iterator[None]:
    """A commit that does not count is no error here: its rows are missing, which the caller sees."""
    try:
        yield
    except RunError as error:
        damage.append(str(error))
