"""How fast the ranks are: which fall behind the others, and which should take the next shard."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

__all__ = ["Load", "Pace", "behind", "should_take"]

SILENT_S = 5.0
"""A rank that has work and says nothing for so long is named."""

SLOW_SHARE = 0.5
"""So is one that does less than this share of the median rate, once all have worked for so long."""

NEARLY = 1.02
"""Equal ranks never measure quite the same rate: one that would be done so little later counts as in time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How one rank does.

    Attributes:
        rows: rows that it has predicted.
        working_s: seconds since its model was loaded.
        silent_s: seconds since it last said anything; 0 where it has nothing to do.
    """

    rank: int
    rows: int
    working_s: float
    silent_s: float


def behind(paces: Iterable[Pace]) -> str:
    """The ranks that fall behind; empty where none does.

    >>> behind([Pace(rank=0, rows=90, working_s=9.0, silent_s=0.1), Pace(rank=1, rows=9, working_s=9.0, silent_s=7.2)])
    'rank 1 silent for 7 s, at 18% of the median rate'
    """
    paces = list(paces)
    rates = {pace.rank: pace.rows / pace.working_s for pace in paces if pace.working_s >= SILENT_S}
    middle = median(rates.values()) if len(rates) > 1 else 0.0
    texts = []
    for pace in paces:
        said = [f"silent for {pace.silent_s:.0f} s"] if pace.silent_s >= SILENT_S else []
        if pace.rank in rates and rates[pace.rank] < SLOW_SHARE * middle:
            said.append(f"at {rates[pace.rank] / middle:.0%} of the median rate")
        if said:
            texts.append(f"rank {pace.rank} {', '.join(said)}")
    return "; ".join(texts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What one rank has still to do.

    Attributes:
        rows: rows of its shards that it has not predicted.
        rate: rows per second; 0 as long as nothing is known of it.
        silent_s: as of ``Pace``.
    """

    rows: int
    rate: float
    silent_s: float = 0.0

    def seconds(self, more: int) -> float:
        """How long its rows and so many more take it."""
        return (self.rows + more) / self.rate


def should_take(one: Load, others: Sequence[Load], shard_rows: int, waiting_rows: int) -> bool:
    """Whether a rank should be given the next shard now.

    Yes, as long as it will be done before all ranks together are done with all rows. Near the end of a job a slow rank
    would not be: then the shard is for the rank that would finish it first, though that may have no place for it yet.
    A silent rank does not count: nobody knows whether it will ever do what it has.

    Args:
        one: the rank's load, without the shard.
        others: those of the other ranks that live.
        shard_rows: rows of the shard.
        waiting_rows: rows that no rank has been given, the shard's included.
    """
    others = [other for other in others if other.silent_s < SILENT_S]
    loads = [one, *others]
    if not all(load.rate for load in loads):
        return True
    needed = one.seconds(shard_rows) / NEARLY
    together = (waiting_rows + sum(load.rows for load in loads)) / sum(load.rate for load in loads)
    return needed <= together or all(needed <= other.seconds(shard_rows) for other in others)
