"""Which shards a rank of a launcher is given: each once, and not those of which a whole file is there."""

from collections.abc import Callable
from pathlib import Path

import pytest

from deploykit.runs.rundir import RunDirectory
from runners.engines.claims import Claims, counted, share
from runners.store import Group, LauncherStore
from tests.storage.helpers import batches_of, make_job, run_all, writer_of

DAMAGES: dict[str, Callable[[Path], object]] = {
    "another byte": lambda part: part.write_bytes(part.read_bytes()[:-1] + b"?"),
    "another size": lambda part: part.write_bytes(part.read_bytes()[:-1]),
    "no file": Path.unlink,
}


def given(directory: RunDirectory, numbers: list[int]) -> list[int]:
    claims = Claims(iter(numbers), directory)
    found = []
    while (shard := claims.next()) is not None:
        found.append(shard.index)
    assert claims.taken == set(found)
    return found


def with_parts(path: Path, numbers: list[int], interval: str = "batch") -> RunDirectory:
    """A job of five shards, some of which are there."""
    job = make_job(write_interval=interval)
    directory = RunDirectory.prepare(path, job)
    for shard in map(job.plan.shard, numbers):
        directory.write_part(shard, writer_of(job), batches_of(job.plan, shard), rank=0, timings={})
    return RunDirectory.open(path)


def test_shares_are_given_once_in_their_order_without_what_is_there(tmp_path: Path) -> None:
    directory = with_parts(tmp_path, [1, 4])
    assert [given(directory, list(share(rank, 2, 5))) for rank in (0, 1)] == [[0, 2], [3]]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_part_that_is_not_what_its_commit_says_is_given_again(tmp_path: Path, damage: str) -> None:
    directory = with_parts(tmp_path, [0, 1, 2, 3, 4])
    DAMAGES[damage](directory.parts / "part-000003.npy")
    assert given(directory, [0, 1, 2, 3, 4]) == [3]


@pytest.mark.parametrize("damage", DAMAGES)
def test_files_of_ranks_count_where_they_alone_are_left(tmp_path: Path, damage: str) -> None:
    directory = run_all(tmp_path, make_job(write_interval="epoch"), ranks=2)
    assert given(directory, [0, 1, 2, 3, 4]) == []
    DAMAGES[damage](tmp_path / "predictions_1.npy")
    assert given(RunDirectory.open(tmp_path), [0, 1, 2, 3, 4]) == [1, 3]


def test_where_parts_are_kept_the_files_of_ranks_stand_for_none(tmp_path: Path) -> None:
    directory = run_all(tmp_path, make_job(write_interval="batch_and_epoch"), ranks=2)
    (directory.parts / "part-000003.npy").unlink()
    assert given(directory, [0, 1, 2, 3, 4]) == [3]


def test_what_was_looked_at_is_given_next_and_nothing_after_the_end(tmp_path: Path) -> None:
    claims = Claims(iter([0, 1, 2]), with_parts(tmp_path, [0]))
    shards = list(make_job().plan.shards())
    assert [claims.peek(), claims.peek()] == [shards[1], shards[1]]
    assert claims.taken == set(), "looked at is not taken"
    assert claims.next() == shards[1]
    assert claims.peek() == shards[2]
    claims.close()
    assert [claims.peek(), claims.next()] == [None, None]
    assert claims.taken == {1}


def test_what_is_there_is_copied_some_at_a_time_and_no_more_is_taken_than_one_that_is_missing(tmp_path: Path) -> None:
    asked: list[list[str]] = []
    numbers = iter([0, 1, 2, 3, 4])
    claims = Claims(numbers, with_parts(tmp_path, [0, 1, 3, 4]), asked.append)
    assert claims.next() == make_job().plan.shard(2)
    assert asked == [["parts/part-000000.npy", "parts/part-000001.npy"]]
    assert next(numbers) == 3, "which another rank may take"


class Counter(LauncherStore):
    """A store that needs no host: it is gone, or fails, after so many numbers."""

    def __init__(self, *, gone_after: int = 99, fails_after: int = 99) -> None:
        super().__init__()
        self.numbers, self.gone_after, self.fails_after = 0, gone_after, fails_after

    def met(self, group: Group) -> "Counter":
        return self

    def is_gone(self) -> bool:
        return self.numbers >= self.gone_after

    def add(self, key: str, step: int) -> int:
        if self.numbers >= self.fails_after:
            raise RuntimeError("the host is gone")
        self.numbers += step
        return self.numbers


def test_ranks_that_count_in_one_store_share_all_numbers() -> None:
    group = Group(rank=0, world_size=2, store=Counter())
    one, other = counted(group, 5), counted(group, 5)
    assert [next(one), next(other), next(other)] == [0, 1, 2]
    assert (list(one), list(other)) == ([3, 4], [])


def test_where_the_store_is_gone_nothing_more_is_counted_and_nothing_raised() -> None:
    for store in (Counter(gone_after=2), Counter(fails_after=2)):
        assert list(counted(Group(rank=0, world_size=2, store=store), 5)) == [0, 1]
    with pytest.raises(TypeError, match="only the ranks of a launcher"):
        next(counted(Group(rank=0, world_size=2, store=Path("store")), 5))
