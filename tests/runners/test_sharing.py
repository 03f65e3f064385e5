"""Who takes the next shard: in a simulation of ranks of any speed, all work is done, and no slow rank is waited for."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runners.ranks.pace import Load, should_take

ROWS = 100


@dataclass
class Rank:
    speed: float
    left: list[float] = field(default_factory=list)
    done: float = 0.0

    def load(self, now: float) -> Load:
        return Load(rows=round(sum(self.left)), rate=self.done / now if now else 0.0)

    def work(self, seconds: float) -> None:
        rows = self.speed * seconds
        while self.left and rows > 0:
            taken = min(rows, self.left[0])
            self.left[0] -= taken
            self.done += taken
            rows -= taken
            if self.left[0] <= 1e-9:
                self.left.pop(0)


def simulated(speeds: list[float], shards: int, *, fair: bool = True) -> float:
    """Seconds until all is done; a rank has at most one shard that it has not begun, as in the local engine."""
    ranks, waiting, now, step = [Rank(speed) for speed in speeds], shards, 0.0, ROWS / max(speeds) / 20
    while waiting or any(rank.left for rank in ranks):
        for rank in ranks:
            others = [other.load(now) for other in ranks if other is not rank]
            has_place = waiting and len(rank.left) < 2
            if has_place and (not fair or should_take(rank.load(now), others, ROWS, waiting * ROWS)):
                rank.left.append(ROWS)
                waiting -= 1
        for rank in ranks:
            rank.work(step)
        now += step
        assert now < 100 * shards * ROWS / min(speeds), "a shard waits for ever"
    return now


@given(st.lists(st.floats(0.05, 1), min_size=1, max_size=5), st.integers(1, 60))
def test_all_is_done_soon_whatever_the_speeds(speeds: list[float], shards: int) -> None:
    ideal = shards * ROWS / sum(speeds)
    # Nobody's speed is known at the beginning, when each rank gets two shards; after that nothing is worse than one
    # shard of a rank that is no slower than its share of the work.
    worst = max(ideal + 2 * ROWS / max(speeds), 2 * ROWS / min(speeds))
    assert simulated(speeds, shards) <= 1.1 * worst


def test_a_rank_at_a_quarter_of_the_speed_is_not_waited_for() -> None:
    ideal = 46 * ROWS / 1.25
    assert simulated([0.25, 1.0], 46) <= 1.05 * ideal
    assert simulated([0.25, 1.0], 46, fair=False) > 1.05 * ideal


def test_equal_ranks_share_as_ever() -> None:
    assert simulated([1.0, 1.0], 40) <= 1.02 * simulated([1.0, 1.0], 40, fair=False)


@pytest.mark.parametrize(
    ("one", "other", "waiting", "takes"),
    [
        (Load(rows=0, rate=0.0), Load(rows=100, rate=9.0), 100, True),
        (Load(rows=0, rate=1.0), Load(rows=100, rate=4.0), 1000, True),
        (Load(rows=0, rate=1.0), Load(rows=100, rate=4.0), 100, False),
        (Load(rows=100, rate=4.0), Load(rows=100, rate=1.0), 100, True),
        (Load(rows=0, rate=1.0), Load(rows=300, rate=4.0), 100, True),
        (Load(rows=0, rate=1.0), Load(rows=250, rate=4.0), 300, True),
        (Load(rows=0, rate=1.0), Load(rows=100, rate=4.0, silent_s=60.0), 100, True),
        (Load(rows=100, rate=4.99), Load(rows=100, rate=5.0), 100, True),
    ],
    ids=[
        "nothing is known",
        "plenty is left",
        "the other is sooner",
        "it is sooner itself",
        "the other has much to do",
        "all have more to do together",
        "the other hangs",
        "as fast but for a moment",
    ],
)
def test_who_takes_a_shard(one: Load, other: Load, waiting: int, takes: bool) -> None:
    assert should_take(one, [other], 100, waiting) == takes
