"""Tables to look at masks in: rows (seed, sample id, draw) and columns (site, unit) with dangerous structure."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deploykit import masks

Int = NDArray[np.int64]

ROWS, COLUMNS = 2048, 512
FIRST_HUGE = 2**63 - ROWS
"""The last sample ids that an int64 holds begin here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Rows (n) and columns (m) of one table of mask bits, all int64."""

    name: str
    seeds: Int
    ids: Int
    draws: Int
    sites: Int
    units: Int


Generator = Callable[[Layout], NDArray[Any]]
"""Gives one 32-bit word, int32, for every row and column of a layout: (n, m). A unit is dropped below the threshold."""


def reference(layout: Layout) -> NDArray[np.int32]:
    """The words of ``deploykit.masks`` for a layout."""
    rows = np.empty((layout.ids.size, 2), np.int32)
    for seed in np.unique(layout.seeds):
        for draw in np.unique(layout.draws[layout.seeds == seed]):
            here = (layout.seeds == seed) & (layout.draws == draw)
            rows[here] = masks.row_keys(int(seed), layout.ids[here], [draw])[0]
    columns = np.empty((layout.units.size, 2), np.int32)
    for site in np.unique(layout.sites):
        columns[layout.sites == site] = masks.unit_keys(int(site), layout.units[layout.sites == site])
    return masks.words(rows, columns)


def dropped(generator: Generator, layout: Layout, p: float) -> NDArray[np.bool_]:
    """The table of dropped units, (n, m) bool."""
    return np.asarray(generator(layout) < masks.threshold(p), np.bool_)


def _rows(seed: ArrayLike = 0, sample: ArrayLike = 0, draw: ArrayLike = 0) -> tuple[Int, Int, Int]:
    seeds, ids, draws = np.broadcast_arrays(*(np.asarray(part, np.int64) for part in (seed, sample, draw)))
    return seeds.ravel(), ids.ravel(), draws.ravel()


def _columns(site: ArrayLike = 0, unit: ArrayLike = 0) -> tuple[Int, Int]:
    sites, units = np.broadcast_arrays(np.asarray(site, np.int64), np.asarray(unit, np.int64))
    return sites.ravel(), units.ravel()


def _outer(first: ArrayLike, second: ArrayLike) -> tuple[Int, Int]:
    return np.asarray(first, np.int64)[:, None], np.asarray(second, np.int64)[None, :]


def _multiples(count: int, shifts: tuple[int, ...]) -> Int:
    """1, 2, ... ``count`` times each power of two, without repetition."""
    return np.unique(np.arange(1, count + 1)[None, :] << np.asarray(shifts, np.int64)[:, None])


ROW_SETS: dict[str, tuple[Int, Int, Int]] = {
    "ids": _rows(sample=np.arange(ROWS)),
    "huge ids": _rows(sample=FIRST_HUGE + np.arange(ROWS)),
    "id multiples": _rows(sample=_multiples(255, (0, 8, 16, 24, 32, 40, 48, 54))),
    "draws": _rows(sample=5, draw=np.arange(ROWS)),
    "ids x draws": _rows(0, *_outer(np.arange(40), np.arange(50))),
    "powers x powers": _rows(0, *_outer(1 << np.arange(62), 1 << np.arange(31))),
    "seeds": _rows(seed=np.arange(-ROWS // 2, ROWS // 2), sample=3),
    "seed multiples": _rows(seed=np.concatenate([-_multiples(63, (0, 6, 20, 40)), _multiples(63, (0, 6, 20, 40))])),
    "seeds x ids": _rows(*_outer(np.arange(-32, 32), np.arange(32))),
}

COLUMN_SETS: dict[str, tuple[Int, Int]] = {
    "units": _columns(unit=np.arange(COLUMNS)),
    "unit multiples": _columns(unit=_multiples(63, (0, 6, 12, 18, 24, 30, 36, 42))),
    "sites": _columns(site=np.arange(COLUMNS)),
    "sites x units": _columns(*_outer(np.arange(8), np.arange(COLUMNS // 8))),
}


def layout(rows: str, columns: str) -> Layout:
    """The table with these sets of rows and columns."""
    seeds, ids, draws = ROW_SETS[rows]
    sites, units = COLUMN_SETS[columns]
    return Layout(name=f"{rows} | {columns}", seeds=seeds, ids=ids, draws=draws, sites=sites, units=units)
