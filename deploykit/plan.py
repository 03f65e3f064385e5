"""How the rows of a job are cut into shards: the same for the same job, however many ranks share the work."""

import ast
import math
import operator
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploykit.counts import require_whole
from deploykit.errors import UsageError
from deploykit.tensors import TensorSpec
from deploykit.wording import row_range

__all__ = [
    "USUAL_BATCH", "Plan", "Shard",
    "describe_ranges", "make_plan", "merge_ranges", "remaining", "row_bytes", "usual_batch",
]  # fmt: skip

TARGET_BYTES = 64 * 2**20
MOST_ROWS = 65_536
FEWEST_SHARDS = 8
MANY_SHARDS, MANY_ROWS = 64, 8192
"""A shard of more rows than the second only where there are as many shards as the first: the rank that ends last has a
shard more than the others, which is little of many."""
USUAL_BATCH, MANY_BATCHES = 256, 64
"""Rows of a batch, and fewer where there would not be so many batches: ranks share them, and a kill costs some."""

USUAL_RANKS, NEARLY_EVEN = (2, 4, 8), 1.01
"""So many equal ranks should end together. A cut does not know how many there are, and a resume may have others."""
_SHOWN = 8

_OPERATIONS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.FloorDiv: operator.floordiv,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """The rows ``[start, stop)``: the unit of work, of commit and of resume."""

    index: int
    start: int
    stop: int

    @property
    def rows(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The shards of ``rows`` rows: all have ``shard_rows`` rows, the last one what is left.

    ``shard_rows`` is a multiple of ``batch_size``, so a batch never crosses a shard.

    Raises:
        UsageError: a number that is too small, or a shard size that is not a multiple of the batch size.
    """

    rows: int
    shard_rows: int
    batch_size: int

    def __post_init__(self) -> None:
        require_whole("batch size", self.batch_size)
        require_whole("shard rows", self.shard_rows)
        if self.rows < 0:
            raise UsageError(f"plan: {self.rows} rows; the number of rows cannot be negative")
        if self.batch_size < 1:
            raise UsageError(f"batch size {self.batch_size}: must be 1 or more")
        if self.shard_rows < 1 or self.shard_rows % self.batch_size:
            nearest = max(1, round(self.shard_rows / self.batch_size)) * self.batch_size
            raise UsageError(
                f"shard rows {self.shard_rows}: must be a multiple of the batch size {self.batch_size}; use {nearest}"
            )

    def __len__(self) -> int:
        return -(-self.rows // self.shard_rows)

    def shard(self, index: int) -> Shard:
        """The shard with that number.

        Raises:
            IndexError: there is no such shard.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"shard {index}: the plan has {len(self)} shards")
        start = index * self.shard_rows
        return Shard(index=index, start=start, stop=min(start + self.shard_rows, self.rows))

    def shards(self) -> Iterator[Shard]:
        """All shards, in the order of the rows."""
        return map(self.shard, range(len(self)))

    def batches(self, shard: Shard) -> Iterator[tuple[int, int]]:
        """The ``(start, stop)`` rows of the batches of one shard."""
        for start in range(shard.start, shard.stop, self.batch_size):
            yield start, min(start + self.batch_size, shard.stop)

    def to_json(self) -> dict[str, int]:
        return {"rows": self.rows, "shard_rows": self.shard_rows, "batch_size": self.batch_size}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Plan":
        return cls(rows=data["rows"], shard_rows=data["shard_rows"], batch_size=data["batch_size"])


def make_plan(
    rows: int,
    batch_size: int,
    row_bytes: int,
    shard_rows: int | None = None,
    *,
    rows_together: int = 1,
    held: Plan | None = None,
) -> Plan:
    """Cut ``rows`` rows into shards of at most 8,192 rows, or up to 65,536 where there would be more than 64 shards.

    There are at least eight where there are eight batches, and their files have at most about 64 MiB. Of the sizes down
    to half of the largest that is allowed, the one is taken with which equal ranks end together.

    Args:
        rows: all of them.
        batch_size: rows of a batch.
        row_bytes: the size of one row of predictions.
        shard_rows: overrides the choice.
        rows_together: so many rows are read at once. A shard has no fewer, if it may have so many, so that ranks which
            take turns do not read the same ones.
        held: that of the run that is taken up again, whose shards stay where no size is asked for: another version may
            have chosen it, or the user.

    Raises:
        UsageError: a number that is too small, or ``shard_rows`` is not a multiple of ``batch_size``.
    """
    require_whole("batch size", batch_size)
    if shard_rows is None:
        if held is not None and (held.rows, held.batch_size) == (rows, batch_size):
            return held
        shard_rows = batch_size * _batches_per_shard(rows, max(batch_size, 1), row_bytes, rows_together)
    return Plan(rows=rows, shard_rows=shard_rows, batch_size=batch_size)


def usual_batch(rows: int) -> int:
    """Rows of a batch where nobody asks for a number, of a job of ``rows`` rows: a power of two.

    >>> [usual_batch(rows) for rows in (0, 100, 1000, 10_000, 1_000_000)]
    [1, 1, 8, 128, 256]
    """
    return min(USUAL_BATCH, 1 << max(rows // MANY_BATCHES, 1).bit_length() - 1)


def _batches_per_shard(rows: int, batch_size: int, row_bytes: int, rows_together: int) -> int:
    by_size = min(TARGET_BYTES // max(row_bytes, 1), MOST_ROWS) // batch_size
    batches = -(-rows // batch_size)
    together = -(-rows_together // batch_size)
    by_share = max(batches // MANY_SHARDS, MANY_ROWS // batch_size, together if together <= by_size else 0)
    most = max(1, min(by_size, batches // FEWEST_SHARDS, by_share))
    return _most_even(batches, min(most, max(together, -(-most // 2))), most)


def _most_even(batches: int, least: int, most: int) -> int:
    """The largest number of batches in ``[least, most]`` with which the busiest of the usual ranks does least, nearly.

    Equal ranks that take shards in turn differ by one. Of 15 shards one of two ranks has eight, and the other waits for
    all of the last; of 16 smaller ones each has eight.
    """
    sizes = np.arange(most, least - 1, -1)
    busiest = np.sum([ranks * _batches_of_busiest(batches, sizes, ranks) for ranks in USUAL_RANKS], axis=0)
    return int(sizes[np.argmax(busiest <= NEARLY_EVEN * busiest.min())])


def _batches_of_busiest(batches: int, sizes: NDArray[np.int64], ranks: int) -> NDArray[np.int64]:
    """What the first rank has, int64 as ``sizes``: a shard of each round, and all or some of one in the last."""
    whole, left = np.divmod(batches, sizes * ranks)
    found: NDArray[np.int64] = whole * sizes + np.minimum(left, sizes)
    return found


def row_bytes(outputs: Sequence[TensorSpec], largest: Mapping[str, int]) -> int:
    """Size of one row of predictions with its sample id; a dynamic dimension has the ``largest`` size of its name or 1.

    >>> row_bytes([TensorSpec(name="y", dtype="float32", shape=("batch", "time", 3))], {"time": 5})
    68
    >>> row_bytes([TensorSpec(name="y", dtype="float32", shape=("batch", "2*((time//2)) + 1"))], {"time": 5})
    28
    """
    total = np.dtype(np.int64).itemsize
    for spec in outputs:
        sizes = (size if isinstance(size, int) else _computed(size, largest) for size in spec.row_shape)
        total += math.prod(sizes) * spec.numpy_dtype.itemsize
    return total


def _computed(size: str, largest: Mapping[str, int]) -> int:
    """The size that a formula of the manifest gives, which may be the name of a dimension alone; 1 if none."""
    try:
        return max(1, _value(ast.parse(size, mode="eval").body, largest))
    except (SyntaxError, ValueError, ZeroDivisionError):
        return 1


def _value(part: ast.expr, largest: Mapping[str, int]) -> int:
    match part:
        case ast.Constant(value=int(number)):
            return number
        case ast.Name(id=name):
            return largest.get(name, 1)
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return -_value(inner, largest)
        case ast.BinOp(left=left, op=operation, right=right) if type(operation) in _OPERATIONS:
            return _OPERATIONS[type(operation)](_value(left, largest), _value(right, largest))
    raise ValueError(f"{ast.unparse(part)}: is no number, name, sum, difference, product or quotient")


def remaining(start: int, stop: int, left_out: Collection[int]) -> NDArray[np.int64]:
    """The sample ids ``[start, stop)`` in order, without those left out.

    >>> remaining(4, 8, {5}).tolist()
    [4, 6, 7]
    """
    ids = np.arange(start, stop, dtype=np.int64)
    return ids[~np.isin(ids, list(left_out))] if left_out else ids


def merge_ranges(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join half-open ranges that touch or overlap; the result is sorted.

    >>> merge_ranges([(4, 6), (0, 2), (2, 4), (9, 10)])
    [(0, 6), (9, 10)]
    """
    joined: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    return joined


def describe_ranges(ranges: Iterable[tuple[int, int]]) -> str:
    """Ranges of rows as people read them, both ends included, cut after the first eight.

    >>> describe_ranges([(0, 256), (512, 513)])
    'rows 0 to 255, row 512'
    """
    joined = merge_ranges(ranges)
    texts = [row_range(start, stop) for start, stop in joined[:_SHOWN]]
    if len(joined) > _SHOWN:
        texts.append(f"and {len(joined) - _SHOWN} more ranges")
    return ", ".join(texts)
