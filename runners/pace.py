"""Which ranks fall behind the others, in words for a line of progress."""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

__all__ = ["Pace", "behind"]

SILENT_S = 5.0
"""A rank that has work and says nothing for so long is named."""

SLOW_SHARE = 0.5
"""So is one that does less than this share of the median rate, once all have worked for so long."""


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
