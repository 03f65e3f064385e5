from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.errors import UsageError
from deploykit.plan import Plan, describe_ranges, make_plan, merge_ranges


@given(st.integers(0, 10**7), st.integers(1, 100_000), st.integers(0, 10**9))
def test_shards_cover_each_row_once_in_batches_that_stay_inside(rows: int, batch_size: int, row_bytes: int) -> None:
    plan = make_plan(rows, batch_size, row_bytes)
    assert plan.shard_rows % batch_size == 0
    assert plan == Plan.from_json(plan.to_json())
    shards = [plan.shard(i) for i in sorted({0, len(plan) // 2, len(plan) - 1})] if len(plan) else []
    assert plan.shard_rows <= max(65_536, batch_size)
    assert plan.shard_rows * row_bytes <= max(64 * 2**20, batch_size * row_bytes)
    for shard in shards:
        batches = list(plan.batches(shard))
        assert batches[0][0] == shard.start
        assert batches[-1][1] == shard.stop
        assert all(a[1] == b[0] for a, b in pairwise(batches))
        assert all(stop - start == batch_size for start, stop in batches[:-1])
    if rows:
        assert (plan.shard(0).start, plan.shard(len(plan) - 1).stop) == (0, rows)
        assert sum(s.rows for s in plan.shards()) == rows if len(plan) < 1000 else True
    if -(-rows // batch_size) >= 8:
        assert len(plan) >= 8
    if len(plan) < 64:
        assert plan.shard_rows <= max(8192, batch_size)


def test_shards_that_are_held_stay_where_no_size_is_asked_for() -> None:
    held = Plan(rows=1000, shard_rows=40, batch_size=4)
    assert make_plan(1000, 4, 8, held=held) == held != make_plan(1000, 4, 8)
    assert make_plan(1000, 4, 8, 20, held=held).shard_rows == 20
    for rows, batch_size in ((999, 4), (1000, 8)):
        assert make_plan(rows, batch_size, 8, held=held) == make_plan(rows, batch_size, 8)


def busiest_rank(plan: Plan, ranks: int) -> int:
    """Its rows, where equal ranks take shards in turn."""
    return max(sum(plan.shard(index).rows for index in range(rank, len(plan), ranks)) for rank in range(ranks))


@pytest.mark.parametrize(("batch_size", "rows"), [(1, 75_000), (16, 120_000), (32, 74_000), (256, 1_000_000)])
@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_equal_ranks_end_together(batch_size: int, rows: int, ranks: int) -> None:
    assert busiest_rank(make_plan(rows, batch_size, 40), ranks) <= 1.02 * rows / ranks


@given(st.integers(256, 20_000), st.sampled_from([1, 64, 256]), st.sampled_from([2, 4, 8]))
def test_no_rank_has_much_more_than_its_share(batches: int, batch_size: int, ranks: int) -> None:
    rows = batches * batch_size
    assert busiest_rank(make_plan(rows, batch_size, 40), ranks) <= 1.11 * rows / ranks


def test_plans_of_usual_sizes() -> None:
    assert make_plan(12_000, 8, 40).shard_rows == 187 * 8
    assert make_plan(200_000, 256, 40) == Plan(rows=200_000, shard_rows=6400, batch_size=256)
    assert len(make_plan(600_000, 1024, 40)) == 84
    assert make_plan(2_000_000, 256, 40).shard_rows == 122 * 256
    assert make_plan(10_000_000, 1024, 40).shard_rows == 61 * 1024
    assert make_plan(2_000_000, 256, 4096).shard_rows == 63 * 256
    assert len(make_plan(0, 256, 40)) == 0
    # Row groups of 65,536 rows are not read by two ranks.
    assert make_plan(2_000_000, 256, 40, rows_together=65_536).shard_rows == 65_536
    assert make_plan(2_000_000, 256, 40, rows_together=20_000).shard_rows == 122 * 256
    assert make_plan(500_000, 256, 40, rows_together=20_000).shard_rows == 79 * 256
    # Of larger ones all ranks read the same in any case.
    assert make_plan(2_000_000, 256, 40, rows_together=10**9).shard_rows == 122 * 256
    assert make_plan(200_000, 256, 40, rows_together=65_536).shard_rows == 97 * 256
    assert make_plan(2_000_000, 256, 40, rows_together=100).shard_rows == 122 * 256
    assert [(s.start, s.stop) for s in make_plan(1, 256, 40).shards()] == [(0, 1)]


@pytest.mark.parametrize(
    ("rows", "batch_size", "shard_rows", "said"),
    [
        (10, 4, 6, "multiple of the batch size 4; use 8"),
        (10, 4, 1, "use 4"),
        (10, 4, 0, "use 4"),
        (10, 4, -4, "use 4"),
        (10, 0, None, "batch size 0: must be 1 or more"),
        (-1, 4, None, "cannot be negative"),
    ],
)
def test_impossible_plans(rows: int, batch_size: int, shard_rows: int | None, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make_plan(rows, batch_size, 40, shard_rows)


def test_there_is_no_shard_outside() -> None:
    plan = make_plan(10, 2, 4, 4)
    for index in (-1, 3):
        with pytest.raises(IndexError):
            plan.shard(index)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 9)).map(lambda p: (p[0], p[0] + p[1]))))
def test_merged_ranges_hold_the_same_rows(ranges: list[tuple[int, int]]) -> None:
    merged = merge_ranges(ranges)
    rows = [row for start, stop in merged for row in range(start, stop)]
    assert rows == sorted({row for start, stop in ranges for row in range(start, stop)})
    assert all(a[1] < b[0] for a, b in pairwise(merged))


def test_long_lists_of_ranges_are_cut() -> None:
    shown = "row 0, row 2, row 4, row 6, row 8, row 10, row 12, row 14, and 12 more ranges"
    assert describe_ranges([(i, i + 1) for i in range(0, 40, 2)]) == shown
