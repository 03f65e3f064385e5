"""Generators of mask words that look random and are not: each has one defect that the battery must see at p = 0.5.

They answer to ``tests.layouts.Generator``. Many are ways in which the real one was, or could have been, got wrong.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from deploykit import masks
from tests.layouts import Generator, Int, Layout, reference

Word = NDArray[np.uint32]


def _finalise(values: Int) -> Word:
    """A well-known 32-bit scrambler: shifts, exclusive ors and multiplications."""
    x = np.asarray(values & 0xFFFFFFFF, np.uint32)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
    return np.asarray(x ^ (x >> np.uint32(16)), np.uint32)


def _good_keys(layout: Layout) -> tuple[Word, Word, Word, Word]:
    """Two row keys (n, 1) and two unit keys (m) without a defect."""
    row = layout.seeds * 40503 + layout.ids * 2654435 + layout.draws * 7919
    unit = layout.sites * 104729 + layout.units
    keys = [_finalise(part) for part in (row, row * 5 + 99, unit + 77, unit * 3 + 1)]
    return keys[0][:, None], keys[1][:, None], keys[2], keys[3]


def _signed(words: NDArray[np.uint32]) -> NDArray[np.int32]:
    """The same 32 bits, so that comparison with a threshold decides by the top bits."""
    return np.asarray(words, np.uint32).view(np.int32)


def sum_of_keys(layout: Layout) -> NDArray[np.int32]:
    """Scrambled keys that are only added."""
    r, _, u, _ = _good_keys(layout)
    return _signed(r + u)


def fourth_power(layout: Layout) -> NDArray[np.int32]:
    """``(r + u) ** 4``: the word depends on a single sum."""
    r, _, u, _ = _good_keys(layout)
    return _signed((r + u) ** 4)


def product_of_keys(layout: Layout) -> NDArray[np.int32]:
    """``r * (u | 1)``: half of the structure of a multiplication table."""
    r, _, u, _ = _good_keys(layout)
    return _signed(r * (u | np.uint32(1)))


def exclusive_or(layout: Layout) -> NDArray[np.int32]:
    """Good keys joined by an exclusive or: four corners of a rectangle always cancel."""
    r, _, u, _ = _good_keys(layout)
    return _signed(r ^ u)


def unscrambled_keys(layout: Layout) -> NDArray[np.int32]:
    """The real mixer on plain counters."""
    r, u = layout.ids * 50 + layout.draws + layout.seeds, layout.units + layout.sites * 1000
    rows, units = (np.stack([key, key + 1], axis=-1).astype(np.int32) for key in (r, u))
    return masks.words(rows, units)


def consecutive_seeds(layout: Layout) -> NDArray[np.int32]:
    """A linear congruential generator started anew from consecutive integers, one row each."""
    state = np.asarray((layout.seeds + layout.ids + layout.draws) & 0xFFFFFFFF, np.uint64)
    place = {unit: index for index, unit in enumerate(np.unique(layout.units + (layout.sites << 40)).tolist())}
    steps: list[NDArray[np.uint64]] = []
    for _ in place:
        state = (state * np.uint64(1664525) + np.uint64(1013904223)) & np.uint64(0xFFFFFFFF)
        steps.append(state)
    order = [place[unit] for unit in (layout.units + (layout.sites << 40)).tolist()]
    return _signed(np.stack(steps, axis=1).astype(np.uint32)[:, order])


def _changed(**changes: Callable[[Layout], Int]) -> Generator:
    """The real generator, given other seeds, ids, draws, sites or units than it was asked for."""

    def generate(layout: Layout) -> NDArray[np.int32]:
        parts = {name: getattr(layout, name) for name in ("seeds", "ids", "draws", "sites", "units")}
        return reference(Layout(name=layout.name, **{**parts, **{name: f(layout) for name, f in changes.items()}}))

    return generate


def _edited(edit: Callable[[NDArray[np.int32], np.random.Generator], None]) -> Generator:
    """The real words with a planted defect of known size."""

    def generate(layout: Layout) -> NDArray[np.int32]:
        words = reference(layout).copy()
        edit(words, np.random.default_rng(11))
        return words

    return generate


def _copy_neighbour(words: NDArray[np.int32], random: np.random.Generator) -> None:
    chosen = random.random(words[:, 1:].shape) < 0.03
    words[:, 1:][chosen] = words[:, :-1][chosen]


def _copy_row(words: NDArray[np.int32], random: np.random.Generator) -> None:
    words[1234] = words[77]


def _bias(words: NDArray[np.int32], random: np.random.Generator) -> None:
    words[random.random(words.shape) < 0.01] = -(2**31)


def _bias_of_columns(words: NDArray[np.int32], random: np.random.Generator) -> None:
    share = random.random(words.shape[1]) * 0.06
    words[random.random(words.shape) < share] = -(2**31)


def _too_balanced(words: NDArray[np.int32], random: np.random.Generator) -> None:
    steps = np.arange(words.shape[0]) * 0x9E3779B9
    words[:] = (words[0] + steps[:, None]).astype(np.uint32).view(np.int32)


WEAK: dict[str, tuple[Generator, str, str]] = {
    "sum of keys": (sum_of_keys, "ids", "units"),
    "fourth power": (fourth_power, "ids", "units"),
    "product of keys": (product_of_keys, "ids", "units"),
    "exclusive or": (exclusive_or, "ids", "units"),
    "unscrambled keys": (unscrambled_keys, "ids", "units"),
    "consecutive seeds": (consecutive_seeds, "seeds", "units"),
    "sites share a mask": (_changed(sites=lambda a: a.sites * 0), "ids", "sites x units"),
    "sites shift the units": (
        _changed(sites=lambda a: a.sites * 0, units=lambda a: a.units + a.sites),
        "ids",
        "sites x units",
    ),
    "draw ignored": (_changed(draws=lambda a: a.draws * 0), "ids x draws", "units"),
    "draw added to the id": (
        _changed(draws=lambda a: a.draws * 0, ids=lambda a: a.ids + a.draws),
        "ids x draws",
        "units",
    ),
    "seed added to the id": (
        _changed(seeds=lambda a: a.seeds * 0, ids=lambda a: a.ids + a.seeds),
        "seeds x ids",
        "units",
    ),
    "seed without its sign": (_changed(seeds=lambda a: abs(a.seeds)), "seeds", "units"),
    "ids of 32 bits": (_changed(ids=lambda a: a.ids % 2**32), "id multiples", "units"),
    "ids of float64's precision": (_changed(ids=lambda a: a.ids >> 10 << 10), "huge ids", "units"),
    "ids of 10 bits": (_changed(ids=lambda a: a.ids % 1024), "ids", "units"),
    "units of 24 bits": (_changed(units=lambda a: a.units % 2**24), "ids", "unit multiples"),
    "units in pairs": (_changed(units=lambda a: a.units // 2), "ids", "units"),
    "3 % copy a neighbour": (_edited(_copy_neighbour), "ids", "units"),
    "one row twice": (_edited(_copy_row), "ids", "units"),
    "1 % biased": (_edited(_bias), "ids", "units"),
    "columns up to 6 % biased": (_edited(_bias_of_columns), "ids", "units"),
    "too balanced": (_edited(_too_balanced), "ids", "units"),
}
"""Each weak generator with the rows and columns on which its defect shows."""
