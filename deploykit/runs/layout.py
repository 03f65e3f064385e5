"""Which rank gets which rows, where files or calls are made for each rank.

``contiguous``: neighbours stay together. ``strided``: what Lightning's sampler gives, rank r of W has the rows r,
r + W, r + 2W ... Both are the same for the same job, whoever computed the rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from deploykit.devices import MOST_RANKS
from deploykit.errors import UsageError

__all__ = ["CONTIGUOUS", "Layout", "parse_layout"]

CONTIGUOUS, STRIDED = "contiguous", "strided"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The rows of each of ``ranks`` ranks. Its text is ``strided:2``; it is part of what makes a job the same job."""

    kind: str
    ranks: int

    def __str__(self) -> str:
        return f"{self.kind}:{self.ranks}"

    @property
    def is_strided(self) -> bool:
        return self.kind == STRIDED

    def rows(self, rank: int, rows: int, batch_size: int) -> range:
        """The rows of one rank, of ``rows`` rows; contiguous ones begin with a batch.

        >>> [list(Layout(kind="strided", ranks=2).rows(rank, 5, 2)) for rank in (0, 1)]
        [[0, 2, 4], [1, 3]]
        >>> [list(Layout(kind="contiguous", ranks=2).rows(rank, 5, 2)) for rank in (0, 1)]
        [[0, 1], [2, 3, 4]]
        """
        if self.is_strided:
            return range(rank, rows, self.ranks)
        batches = -(-rows // batch_size)
        start, stop = (batches * edge // self.ranks * batch_size for edge in (rank, rank + 1))
        return range(start, min(stop, rows))

    def batches(self, rank: int, rows: int, batch_size: int) -> Iterator[range]:
        """The same, cut into batches; the last one has what is left."""
        own = self.rows(rank, rows, batch_size)
        return (own[first : first + batch_size] for first in range(0, len(own), batch_size))


def parse_layout(text: str, ranks: int) -> Layout:
    """Read ``contiguous`` or ``strided``, for ``ranks`` ranks unless the text names their number: ``strided:4``.

    Raises:
        UsageError: another kind, or a number that is none.
    """
    kind, colon, number = text.partition(":")
    if kind not in (CONTIGUOUS, STRIDED) or (colon and not (number.isdecimal() and number.strip("0"))):
        raise UsageError(
            f"layout {text!r}: known are {CONTIGUOUS} and {STRIDED}, with a number of ranks if it is not that of the "
            f"devices; for example {STRIDED}:4"
        )
    if len(number) > len(str(MOST_RANKS)) or (colon and int(number) > MOST_RANKS):
        raise UsageError(
            f"layout {text[:40]!r}: each rank gets a file or calls of its own, and at most {MOST_RANKS} are allowed; "
            "name the number of ranks that you have"
        )
    return Layout(kind=kind, ranks=int(number) if colon else ranks)
