import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from deploykit.errors import DataError
from deploykit.sources import check_finite, count_nan_rows
from deploykit.sources.finite import odd_rows

FLOATS = st.sampled_from([np.float16, np.float32, np.float64]).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=6))
)


@given(FLOATS)
def test_nan_is_found_if_and_only_if_it_is_there(array: np.ndarray) -> None:  # type: ignore[type-arg]
    bad = np.isnan(array)
    rows = int(bad.reshape(len(array), -1).any(axis=1).sum()) if array.size else 0
    assert count_nan_rows({"ids": np.arange(3), "x": array}) == rows
    if not rows:
        check_finite({"x": array}, 0)
        return
    row = int(np.flatnonzero(bad.reshape(len(array), -1).any(axis=1))[0])
    with pytest.raises(DataError, match=f"input 'x', row {100 + row}[ :]"):
        check_finite({"ids": np.arange(3), "x": array}, 100)


def test_the_message_names_the_place() -> None:
    x = np.zeros((4, 2, 3), np.float32)
    x[2, 1, 0] = np.nan
    with pytest.raises(
        DataError,
        match=r"input 'x', row 1002 at \[1, 0\]: NaN; clean the data and name .* --nan allow, .*--on-error skip",
    ):
        check_finite({"x": x}, 1000)


def test_infinities_and_extremes_pass() -> None:
    for dtype in (np.float16, np.float32, np.float64):
        top = np.finfo(dtype).max
        check_finite({"x": np.array([[np.inf, -np.inf, top, -top]], dtype)}, 0)
    check_finite({"x": np.array([[True]]), "y": np.array([1])}, 0)


def test_rows_with_nan_in_several_inputs_count_once() -> None:
    a, b = np.zeros((3, 2), np.float32), np.zeros(3, np.float64)
    a[1] = b[1] = b[2] = np.nan
    assert count_nan_rows({"a": a, "b": b}) == 2


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_rows_that_are_not_finite_are_found(dtype: type) -> None:
    array = np.full((6, 2, 3), np.finfo(dtype).max, dtype)
    array[4:] = np.finfo(dtype).min
    assert odd_rows(array) == []
    array[1, 0, 2], array[3, 1, 1], array[5, 1, 0] = np.nan, np.inf, -np.inf
    assert odd_rows(array) == [1, 3, 5]
    assert odd_rows(array[:, 0]) == [1]
    assert odd_rows(array[:0]) == odd_rows(np.arange(3)) == []
