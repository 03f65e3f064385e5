"""Batches that go through a pipeline together: read in one call, and predicted one by one all the same."""

import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploykit.errors import RunError
from deploykit.plan import Plan
from runners.pipeline import loop
from runners.pipeline.ahead import joined
from tests.runners.test_loop import Case, Source

Rows = list[tuple[int, int]]


class Joining(Source):
    joins = True


def watched(path: Path, plan: Plan, **options: Any) -> tuple[Case, Rows]:
    """A pipeline, and the batches that its runner gets, as they come."""
    case, seen = Case(path, plan, **{"source": Joining, **options}), Rows()
    predict = case.runner.predict

    def spy(inputs: Any, *, sample_ids: Any, **controls: Any) -> Any:
        seen.append((int(sample_ids[0]), int(sample_ids[-1]) + 1))
        return predict(inputs, sample_ids=sample_ids, **controls)

    case.runner.predict = spy  # type: ignore[method-assign]
    return case, seen


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 200), st.integers(1, 9), st.integers(1, 9), st.integers(1, 100))
def test_the_batches_of_the_model_are_those_of_the_plan(
    tmp_path_factory: pytest.TempPathFactory, rows: int, batch: int, batches: int, most: int
) -> None:
    plan = Plan(rows=rows, shard_rows=batch * batches, batch_size=batch)
    case, seen = watched(tmp_path_factory.mktemp("run") / "r", plan)
    case.pipeline._most_rows = lambda: most  # type: ignore[method-assign]
    case.pipeline.run()
    assert seen == [piece for shard in plan.shards() for piece in plan.batches(shard)]
    assert [row for piece in case.source.reads for row in range(*piece)] == list(range(rows))
    assert all(stop - start <= max(most, batch) for start, stop in case.source.reads)
    shards = [(shard.start, shard.stop) for shard in plan.shards()]
    assert all(any(a <= start and stop <= b for a, b in shards) for start, stop in case.source.reads)
    found = case.values()
    assert found["sample_id"].tolist() == list(range(rows))
    assert found["y"].tolist() == [2.0 * i for i in range(rows)] if rows else not len(found)
    assert case.meter.rows == rows
    assert case.meter.batches == len(seen)
    assert [n for kind, n in case.listener.events if kind == "predicted"] == [stop - start for start, stop in seen]


@given(st.lists(st.integers(1, 9), max_size=20), st.integers(0, 30))
def test_joined_pieces_are_as_large_as_they_may_be(sizes: list[int], most: int) -> None:
    edges = [sum(sizes[:n]) for n in range(len(sizes) + 1)]
    pieces = list(pairwise(edges))
    found = list(joined(pieces, lambda: most))
    assert [row for piece in found for row in range(*piece)] == list(range(edges[-1]))
    assert {edge for piece in found for edge in piece} <= set(edges)
    assert all(piece in pieces or piece[1] - piece[0] <= most for piece in found)
    following = dict(pieces)
    assert all(following[after[0]] - before[0] > most for before, after in pairwise(found))


def test_quick_batches_are_read_together_up_to_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "TOGETHER_S", 1e9)
    monkeypatch.setattr(loop, "TOGETHER_BYTES", 4 * 40)  # 40 rows of a float32
    case, _ = watched(tmp_path / "r", Plan(rows=2000, shard_rows=2000, batch_size=10))
    case.pipeline.run()
    sizes = [stop - start for start, stop in case.source.reads]
    assert sizes[0] == 10, "nothing is measured yet"
    assert max(sizes) == 40


@pytest.mark.parametrize("slow", ["source", "runner"])
def test_slow_batches_are_read_one_by_one(tmp_path: Path, slow: str) -> None:
    case, _ = watched(tmp_path / "r", Plan(rows=120, shard_rows=60, batch_size=10))
    getattr(case, slow).hook = lambda _: time.sleep(loop.TOGETHER_S)
    case.pipeline.run()
    assert {stop - start for start, stop in case.source.reads} == {10}


@pytest.mark.parametrize("options", [{"source": Source}, {"on_error": "skip"}, {"lanes": 2}])
def test_what_cannot_be_joined_is_read_batch_by_batch(tmp_path: Path, options: dict[str, Any]) -> None:
    case, _ = watched(tmp_path / "r", Plan(rows=60, shard_rows=30, batch_size=5), **options)
    case.pipeline._most_rows = lambda: 1000  # type: ignore[method-assign]
    case.pipeline.run()
    assert {stop - start for start, stop in case.source.reads} == {5}
    assert case.values()["sample_id"].tolist() == list(range(60))


def test_a_batch_that_fails_is_named_and_not_those_read_with_it(tmp_path: Path) -> None:
    case, _ = watched(tmp_path / "r", Plan(rows=60, shard_rows=60, batch_size=10))
    case.pipeline._most_rows = lambda: 1000  # type: ignore[method-assign]

    def fail(start: int) -> None:
        if start == 30:
            raise ValueError("bad")

    case.runner.hook = fail
    with pytest.raises(RunError, match="rows 30 to 39: the model failed with ValueError: bad"):
        case.pipeline.run()
    assert [shard.index for shard in case.directory.missing()] == [0]
