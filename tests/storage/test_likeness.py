"""What stands for a row in the comparison of two processes: of large rows, and of rows that are near zero."""

import tracemalloc

import numpy as np
import pytest

from deploykit.sources.likeness import likeness, unlike

PIECE = 2**16


@pytest.mark.parametrize("size", [0, 1, PIECE, PIECE + 1, 3 * PIECE + 5])
def test_the_sums_are_those_of_the_whole_row(size: int) -> None:
    row = np.random.default_rng(1).normal(size=size).astype(np.float32)
    values = row.astype(np.float64)
    wanted = [np.abs(values).sum(), (values * np.cos(np.arange(size))).sum()]
    np.testing.assert_allclose(likeness({"x": row})["x"]["sums"], wanted, rtol=1e-12, atol=1e-7)


def test_elements_that_change_places_far_apart_make_another_row() -> None:
    row = np.zeros((4, PIECE), np.float32)
    row[1, 2] = 1
    swapped = np.zeros_like(row)
    swapped[2, 1] = 1
    assert unlike(likeness({"x": row}), likeness({"x": swapped})) == ["x"]
    rolled = np.roll(row, PIECE, axis=None)
    assert unlike(likeness({"x": row}), likeness({"x": rolled})) == ["x"]


def test_a_large_row_is_looked_at_piece_by_piece() -> None:
    row = np.ones((256, 256, 64), np.float32)
    tracemalloc.start()
    likeness({"x": row})
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < row.nbytes / 2


@pytest.mark.parametrize(
    ("one", "other", "is_like"),
    [
        (0.0, 5e-13, True),  # Equal values less their mean, which is rounded.
        (0.0, 1e-9, False),
        (1e-21, 2e-21, False),  # Some data are that small, and no rounding.
        (1.0, 1.0 + 1e-7, True),
    ],
)
def test_zeros_may_be_rounded_and_small_values_count(one: float, other: float, is_like: bool) -> None:
    looks = [likeness({"x": np.full(8, value, np.float32)}) for value in (one, other)]
    for first, second in (looks, looks[::-1]):
        assert unlike(first, second) == ([] if is_like else ["x"])
