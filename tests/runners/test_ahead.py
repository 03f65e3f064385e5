"""Shards on their way to a pipeline, and what a source that reads ahead is told of them."""

import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.plan import Plan, Shard
from runners.pipeline.ahead import Ahead
from runners.pipeline.shardqueue import ShardQueue

PLAN = Plan(rows=50, shard_rows=20, batch_size=5)
SHARDS = list(PLAN.shards())


def test_a_queue_gives_what_was_put_and_then_nothing() -> None:
    queue = ShardQueue(SHARDS[:1])
    queue.put(SHARDS[1])
    queue.end()
    queue.put(SHARDS[2])
    assert [queue.peek(), queue.next(), queue.next(), queue.peek(), queue.next(), queue.next()] == [
        SHARDS[0], SHARDS[0], SHARDS[1], None, None, None
    ]  # fmt: skip


@pytest.mark.parametrize("how", ["put", "end", "close"])
def test_who_waits_for_a_shard_is_woken(how: str) -> None:
    queue = ShardQueue()
    found: list[Shard | None] = []
    waiting = threading.Thread(target=lambda: found.append(queue.next()))
    waiting.start()
    queue.put(SHARDS[0]) if how == "put" else getattr(queue, how)()
    waiting.join(10)
    assert found == [SHARDS[0] if how == "put" else None]


def test_a_closed_queue_gives_nothing_more() -> None:
    queue = ShardQueue(SHARDS)
    queue.close()
    assert (queue.peek(), queue.next()) == (None, None)


class Source:
    """Keeps what it was told, and refuses a read that was not announced or is out of order."""

    def __init__(self, depth: int) -> None:
        self.depth, self.waiting = depth, list[tuple[int, int]]()

    def expect(self, ranges: list[tuple[int, int]]) -> None:
        self.waiting += ranges

    def read(self, piece: tuple[int, int]) -> None:
        assert self.waiting.pop(0) == piece


def read_all(source: Any, queue: ShardQueue) -> list[tuple[int, int]]:
    ahead, found = Ahead(source, PLAN, queue.peek), []
    while (shard := queue.next()) is not None:
        for piece in ahead.ranges(shard):
            source.read(piece)
            found.append(piece)
    return found


@given(st.integers(0, 12), st.lists(st.sampled_from(SHARDS), max_size=4))
def test_every_read_is_announced_in_order(depth: int, shards: list[Shard]) -> None:
    queue = ShardQueue(shards)
    queue.end()
    source = Source(depth)
    assert read_all(source, queue) == [piece for shard in shards for piece in PLAN.batches(shard)]
    assert source.waiting == []


@pytest.mark.parametrize(("depth", "when"), [(0, None), (1, 3), (3, 1), (4, 0), (9, 0)])
def test_the_next_shard_is_announced_before_the_readers_run_dry(depth: int, when: int | None) -> None:
    source, queue = Source(depth), ShardQueue(SHARDS)
    shard = queue.next()
    assert shard is not None
    for number, piece in enumerate(Ahead(source, PLAN, queue.peek).ranges(shard)):
        known = 4 - number + (4 if when is not None and number >= when else 0)
        assert len(source.waiting) == known
        source.read(piece)
    assert queue.peek() == SHARDS[1], "it was looked at, not taken"


def test_a_shard_that_comes_late_is_announced_when_it_comes() -> None:
    source, queue = Source(2), ShardQueue(SHARDS[:1])
    shard = queue.next()
    assert shard is not None
    for number, piece in enumerate(Ahead(source, PLAN, queue.peek).ranges(shard)):
        source.read(piece)
        if number == 2:
            queue.put(SHARDS[1])
    assert source.waiting == list(PLAN.batches(SHARDS[1]))
