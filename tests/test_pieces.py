"""Draws in pieces, another number of them for each row, against the same statistics of all draws at once."""

from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from deploykit.errors import ArtifactError
from deploykit.manifest import OutputSpec
from deploykit.pieces import Pieces
from deploykit.statistics import summarize

CLASSES = ("mean", "std", "probs", "probs_std", "entropy", "mutual_information")


def specs(
    statistics: Any, row_shape: tuple[int, ...] = (3,), dtype: str = "float64", class_axis: int | None = 1
) -> list[OutputSpec]:
    return [
        OutputSpec(
            name=f"y.{name}", dtype=dtype, shape=("batch", *row_shape), source="y", statistic=name,
            class_axis=class_axis if name in ("mean", "std", "probs", "probs_std") else None,
        )
        for name in statistics
    ]  # fmt: skip


def outputs(
    draws: np.ndarray[Any, Any], statistics: Any, class_axis: int | None = 1
) -> dict[str, np.ndarray[Any, Any]]:
    """What an exported file gives for these draws (draws, batch, ...)."""
    found = summarize(draws, classification=True, class_axis=class_axis)
    return {f"y.{statistic}": found[statistic] for statistic in statistics}


def _deviation(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.sqrt(((values - values.mean(0)) ** 2).sum(0) / np.float64(len(values) - 1)))


@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    rows=st.integers(1, 4),
    shape=st.sampled_from([((), None), ((1,), 1), ((3,), 1), ((3, 2), 1), ((2, 3), 2), ((3,), None)]),
    stops=st.data(),
    seed=st.integers(0, 2**32 - 1),
)
def test_pieces_equal_all_draws_at_once_row_by_row(
    sizes: list[int], rows: int, shape: tuple[tuple[int, ...], int | None], stops: st.DataObject, seed: int
) -> None:
    row_shape, axis = shape
    draws = np.random.default_rng(seed).normal(size=(sum(sizes), rows, *row_shape)) * 5 + 20
    last = [stops.draw(st.integers(1, len(sizes))) for _ in range(rows)]
    pieces = Pieces(specs(CLASSES, row_shape, class_axis=axis), rows)
    for number, size in enumerate(sizes):
        active = np.array([row for row in range(rows) if last[row] > number], np.int64)
        first = sum(sizes[:number])
        pieces.add(active, outputs(draws[first : first + size][:, active], CLASSES, axis), size)
    assert pieces.counts.tolist() == [sum(sizes[:n]) for n in last]
    found = pieces.outputs()
    error = pieces.standard_error()
    for row in range(rows):
        own = draws[: pieces.counts[row], row : row + 1]
        want = outputs(own, CLASSES, axis)
        for name, value in want.items():
            np.testing.assert_allclose(found[name][row], value[0], rtol=1e-9, atol=1e-9, err_msg=f"{name}, row {row}")
        np.testing.assert_allclose(error[row], want["y.probs_std"].max() / np.sqrt(len(own)), rtol=1e-9, atol=1e-9)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 2**32 - 1))
def test_pieces_of_probabilities_which_have_no_mean(sizes: list[int], seed: int) -> None:
    values = np.random.default_rng(seed).dirichlet((0.3, 0.3, 0.3), size=(sum(sizes), 2))
    values[0, 0] = 0, 1, 0
    names = ("probs", "probs_std", "entropy", "mutual_information")
    pieces, first = Pieces(specs(names), 2), 0
    for size in sizes:
        part = values[first : first + size]
        total, each = scipy.stats.entropy(part.mean(0), axis=1), scipy.stats.entropy(part, axis=2).mean(0)
        found = {"probs": part.mean(0), "probs_std": _deviation(part), "entropy": total}
        found["mutual_information"] = total - each
        pieces.add(np.arange(2), {f"y.{name}": value for name, value in found.items()}, size)
        first += size
    result, total = pieces.outputs(), scipy.stats.entropy(values.mean(0), axis=1)
    assert list(result) == [f"y.{name}" for name in names]
    np.testing.assert_allclose(result["y.probs"], values.mean(0), rtol=1e-9)
    np.testing.assert_allclose(result["y.probs_std"], _deviation(values), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(result["y.entropy"], total, rtol=1e-9)
    np.testing.assert_allclose(
        result["y.mutual_information"], total - scipy.stats.entropy(values, axis=2).mean(0), rtol=1e-6, atol=1e-12
    )
    error = _deviation(values).max(axis=1) / np.sqrt(len(values))
    np.testing.assert_allclose(pieces.standard_error(), error, rtol=1e-9, atol=1e-12)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 2**32 - 1))
def test_aleatoric_and_total_deviation_of_pieces(sizes: list[int], seed: int) -> None:
    random = np.random.default_rng(seed)
    total = sum(sizes)
    values, variances = random.normal(size=(total, 2, 3)), random.uniform(0, 4, size=(total, 2, 3))
    pieces = Pieces(specs(("mean", "std", "aleatoric_std", "total_std")), 2)
    first = 0
    for size in sizes:
        part = slice(first, first + size)
        noise, spread = np.sqrt(variances[part].mean(0)), _deviation(values[part])
        found = {
            "mean": values[part].mean(0),
            "std": spread,
            "aleatoric_std": noise,
            "total_std": np.hypot(noise, spread),
        }
        pieces.add(np.arange(2), {f"y.{name}": value for name, value in found.items()}, size)
        first += size
    result = pieces.outputs()
    noise, spread = np.sqrt(variances.mean(0)), _deviation(values)
    np.testing.assert_allclose(result["y.aleatoric_std"], noise, rtol=1e-9)
    np.testing.assert_allclose(result["y.total_std"], np.sqrt(noise**2 + spread**2), rtol=1e-9)


def test_kept_draws_are_joined_and_plain_values_taken_once() -> None:
    draws = np.arange(24.0).reshape(2, 4, 3)  # (batch, draws, ...)
    plain = OutputSpec(name="z", dtype="int64", shape=("batch",), source="z", statistic="value")
    pieces = Pieces([*specs(("draws",)), plain], 2)
    for part in (slice(0, 3), slice(3, 4)):
        pieces.add(np.arange(2), {"y.draws": draws[:, part], "z": np.array([2**60 + 1, 5])}, part.stop - part.start)
    found = pieces.outputs()
    assert np.array_equal(found["y.draws"], draws)
    assert found["z"].tolist() == [2**60 + 1, 5]
    assert found["z"].dtype == np.int64


def test_minus_infinity_and_nan_stay_where_they_are() -> None:
    """A class that is masked out has the logit -inf in every draw; its probability is 0 and its deviation too."""
    draws = np.random.default_rng(0).normal(size=(6, 2, 3))
    draws[:, 0, 1] = -np.inf
    draws[4, 1, 2] = np.nan
    pieces = Pieces(specs(CLASSES), 2)
    with np.errstate(invalid="ignore"):
        for part in (slice(0, 4), slice(4, 6)):
            pieces.add(np.arange(2), outputs(draws[part], CLASSES), 2 if part.start else 4)
        want = outputs(draws, CLASSES)
    found = pieces.outputs()
    for name, value in want.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-9, atol=1e-12, err_msg=name)
    assert found["y.mean"][0, 1] == -np.inf
    error = pieces.standard_error()
    assert np.isfinite(error[0])
    assert np.isnan(error[1])


@pytest.mark.parametrize(
    ("statistics", "text"),
    [
        (("std",), "y.mean"),
        (("mean", "mutual_information"), "y.probs, y.entropy"),
        (("median",), "'median'.*cannot be combined"),
    ],
)
def test_what_cannot_be_combined_is_refused_by_name(statistics: tuple[str, ...], text: str) -> None:
    with pytest.raises(ArtifactError, match=text):
        Pieces(specs(statistics), 1)


def test_dtypes_are_those_of_the_manifest() -> None:
    pieces = Pieces(specs(CLASSES, dtype="float32"), 1)
    pieces.add(np.arange(1), outputs(np.random.default_rng(1).normal(size=(4, 1, 3)), CLASSES), 4)
    assert {array.dtype for array in pieces.outputs().values()} == {np.dtype("float32")}
    assert list(pieces.outputs()) == [f"y.{statistic}" for statistic in CLASSES]
