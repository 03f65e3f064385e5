"""Tests of randomness for masks: statistics with a known null distribution, each giving a p-value.

A mask is a table of bits, (rows, columns) bool, true where a unit is dropped; under the null hypothesis every bit is
independent and true with probability p. Each statistic states what it sees. ``examine`` runs all of them.

* ``counts_fit``: do the sums of rows, columns or elements follow the binomial distribution (bias, popcounts)?
* ``dispersion``: do these sums spread as they should (a small bias of each row or unit, or too much balance)?
* ``pairs``: are any two rows, or any two columns, correlated (all pairs together, and the worst pair alone)?
* ``patterns``: do disjoint windows of a few rows and columns, at several strides, show every pattern
  as often as they should? A window of 1 x 8 is a serial and runs test, one of 2 x 2 holds all joint moments to
  the fourth order, one of 2 x 3 to the sixth.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

Bits = NDArray[np.bool_]

SERIAL_STRIDES = (1, 2, 4, 8, 16, 32, 64)
RECTANGLE_STRIDES = (1, 2, 8, 32, 128)
RARE = 20.0
"""Cells of a chi-square test that expect fewer than this are pooled, so that its p-value holds far out in the tail."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One statistic of one mask: the probability of a value at least as extreme if the mask is random."""

    name: str
    p_value: float


def examine(drop: Bits, p: float) -> list[Finding]:
    """All statistics of one table: drop (rows, columns) bool, 0 < p < 1."""
    return [Finding(name=name, p_value=float(value)) for name, value in _all(drop, p)]


def _all(drop: Bits, p: float) -> Iterator[tuple[str, float]]:
    rows, columns = drop.shape
    yield "mean", stats.binomtest(int(drop.sum()), drop.size, p).pvalue
    for axis, name, trials in ((1, "row", columns), (0, "column", rows)):
        counts = drop.sum(axis=axis)
        yield f"{name} counts", counts_fit(counts, trials, p)
        yield f"{name} dispersion", dispersion(counts, trials, p)
    for table, name in ((drop, "row"), (drop.T, "column")):
        together, worst = pairs(table)
        yield f"{name} pairs", together
        yield f"worst {name} pair", worst
    for shape, strides in windows():
        yield f"pattern {shape} strides {strides}", patterns(drop, p, shape, strides)


def windows() -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Shapes and strides of the windows that ``examine`` looks through."""
    for stride in SERIAL_STRIDES:
        yield (1, 8), (1, stride)
        yield (8, 1), (stride, 1)
    for down in RECTANGLE_STRIDES:
        for across in RECTANGLE_STRIDES:
            yield (2, 2), (down, across)
    for shape in ((2, 3), (3, 2), (3, 3)):
        for strides in ((1, 1), (1, 16), (16, 1), (64, 64)):
            yield shape, strides


def counts_fit(counts: NDArray[Any], trials: int, p: float) -> float:
    """Chi-square p-value that counts (n) of dropped units among ``trials`` are binomial."""
    values = np.arange(trials + 1)
    expected = stats.binom.pmf(values, trials, p) * counts.size
    observed = np.bincount(counts.ravel(), minlength=trials + 1)
    return _chi_square(*_merge_neighbours(observed, expected))


def dispersion(counts: NDArray[Any], trials: int, p: float) -> float:
    """Two-sided p-value of the variance of counts (n), each binomial with ``trials``."""
    variance = trials * p * (1 - p)
    squares = ((counts - trials * p) ** 2 / variance).sum()
    excess = (1 - 6 * p * (1 - p)) / variance
    return _two_sided((squares - counts.size) / np.sqrt(counts.size * (2 + excess)))


def pairs(table: Bits, candidates: int = 64) -> tuple[float, float]:
    """Correlations between all pairs of rows of a table (n, m): p-values of their mean square and of the worst pair.

    Given how many bits each row has, the overlap of two independent rows is hypergeometric, so the moments of a
    correlation, and the tail of the worst one, are known without an approximation at small p.
    """
    length = table.shape[1]
    ones = table.sum(axis=1)
    usable = (ones > 0) & (ones < length)
    if usable.sum() < 2:  # Constant rows show in the counts; correlations they have none.
        return 1.0, 1.0
    share = ones[usable] / length
    values = (table[usable] - share[:, None]) / np.sqrt(share * (1 - share))[:, None]
    scaled = np.asarray(values, np.float32)
    z = (scaled @ scaled.T)[np.triu_indices(len(scaled), 1)] * (np.sqrt(length - 1) / length)
    excess = (1 - 6 * share * (1 - share)) / (share * (1 - share))
    fourth = (excess.sum() ** 2 - (excess**2).sum()) / 2 / length
    squares = np.square(z, dtype=np.float64).sum()
    together = _two_sided((squares - z.size) / np.sqrt(2 * z.size + fourth))
    return together, _worst_pair(table[usable], z, min(candidates, z.size))


def _worst_pair(table: Bits, z: NDArray[np.float32], candidates: int) -> float:
    first, second = np.triu_indices(len(table), 1)
    chosen = np.argpartition(np.abs(z), z.size - candidates)[-candidates:]
    a, b = table[first[chosen]], table[second[chosen]]
    overlap, law = (a & b).sum(axis=1), stats.hypergeom(table.shape[1], a.sum(axis=1), b.sum(axis=1))
    tail = np.minimum(law.sf(overlap - 1), law.cdf(overlap))
    return min(1.0, 2 * z.size * float(tail.min()))


def patterns(drop: Bits, p: float, shape: tuple[int, int], strides: tuple[int, int]) -> float:
    """Chi-square p-value of the patterns in disjoint windows, whose rows and columns lie ``strides`` apart."""
    codes = np.zeros((1,), np.uint16)
    for bit, window in enumerate(_cut(drop.view(np.uint8), shape, strides)):
        codes = codes | np.left_shift(window, np.uint16(bit), dtype=np.uint16)
    size = shape[0] * shape[1]
    observed = np.bincount(codes.ravel(), minlength=1 << size)
    ones = np.bitwise_count(np.arange(1 << size))
    expected = p**ones * (1 - p) ** (size - ones) * codes.size
    return _chi_square(*_pool_rare(observed, expected))


def _cut(drop: NDArray[np.uint8], shape: tuple[int, int], strides: tuple[int, int]) -> Iterator[NDArray[np.uint8]]:
    """The bits of all windows, one position in the window at a time."""
    blocks = [size // (length * stride) for size, length, stride in zip(drop.shape, shape, strides, strict=True)]
    kept = drop[: blocks[0] * shape[0] * strides[0], : blocks[1] * shape[1] * strides[1]]
    split = kept.reshape(blocks[0], shape[0], strides[0], blocks[1], shape[1], strides[1])
    for row in range(shape[0]):
        for column in range(shape[1]):
            yield split[:, row, :, :, column, :]


def _pool_rare(observed: NDArray[Any], expected: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    rare = expected < RARE
    if not rare.any() or expected[rare].sum() < RARE:  # What is too rare to judge even together joins the largest cell.
        rare = rare | (expected == expected.max()) if rare.any() else rare
    pooled = [np.append(cells[~rare], cells[rare].sum()) for cells in (observed, expected)]
    return (pooled[0], pooled[1]) if rare.any() else (observed, expected)


def _merge_neighbours(observed: NDArray[Any], expected: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Join neighbouring cells, from the left, until each expects enough."""
    edges, total = [0], 0.0
    left = expected.sum() - np.concatenate([[0.0], np.cumsum(expected)])
    for index, value in enumerate(expected):
        total += value
        if total >= RARE and left[index + 1] >= RARE:
            edges.append(index + 1)
            total = 0.0
    return np.add.reduceat(observed, edges), np.add.reduceat(expected, edges)


def _chi_square(observed: NDArray[Any], expected: NDArray[Any]) -> float:
    if observed.size < 2:
        return 1.0
    return float(special.chdtrc(observed.size - 1, ((observed - expected) ** 2 / expected).sum()))


def _two_sided(z: float) -> float:
    return float(2 * special.ndtr(-abs(z)))
