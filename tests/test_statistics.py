"""The numpy definitions against direct formulas, and the statistics of pieces against those of the whole."""

import math
from typing import Any

import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from deploykit.statistics import class_entropy, combine, probabilities, summarize

VALUES = st.floats(-20, 20)


@st.composite
def drawn(draw: st.DrawFn, *, minimum: int = 2) -> tuple[np.ndarray, int]:
    """(draws, batch, ...) and a class axis of one draw, counted from either end."""
    count = draw(st.integers(minimum, 7))
    shape = (count, *draw(st.lists(st.integers(1, 4), min_size=2, max_size=4)))
    axis = draw(st.integers(1, len(shape) - 2))
    values = draw(npst.arrays(np.float64, shape, elements=VALUES))
    return values, axis - draw(st.sampled_from((0, len(shape) - 1)))


def pieces_of(values: np.ndarray, cuts: list[int]) -> list[np.ndarray]:
    return [piece for piece in np.split(values, sorted(cuts)) if len(piece)]


@given(drawn())
def test_class_statistics_are_those_of_scipy(given: tuple[np.ndarray, int]) -> None:
    values, axis = given
    found = summarize(values, classification=True, class_axis=axis)
    own = axis % (values.ndim - 1)
    if values.shape[own + 1] > 1:
        each = scipy.special.softmax(values, axis=own + 1)
        total = scipy.stats.entropy(each.mean(0), axis=own)
        expected = scipy.stats.entropy(each, axis=own + 1).mean(0)
    else:
        each = scipy.special.expit(values)
        coin = scipy.special.entr(each.mean(0)) + scipy.special.entr(1 - each.mean(0))
        total = coin.squeeze(own)
        expected = (scipy.special.entr(each) + scipy.special.entr(1 - each)).mean(0).squeeze(own)
    np.testing.assert_allclose(found["mean"], np.mean(values, 0), atol=1e-12)
    np.testing.assert_allclose(found["std"], np.std(values, 0, ddof=1), atol=1e-12)
    np.testing.assert_allclose(found["probs"], np.mean(each, 0), atol=1e-12)
    np.testing.assert_allclose(found["probs_std"], np.std(each, 0, ddof=1), atol=1e-12)
    np.testing.assert_allclose(found["entropy"], total, atol=1e-9)
    np.testing.assert_allclose(found["mutual_information"], total - expected, atol=1e-9)
    assert (found["mutual_information"] >= 0).all()


@given(drawn(minimum=1), st.data())
def test_pieces_of_draws_combine_to_the_whole(given: tuple[np.ndarray, int], data: st.DataObject) -> None:
    values, axis = given
    variances = np.abs(data.draw(npst.arrays(np.float64, values.shape, elements=VALUES)))
    cuts = data.draw(st.lists(st.integers(0, len(values)), max_size=3))
    parts = pieces_of(values, cuts)
    pieces = [
        summarize(part, classification=True, class_axis=axis, variances=variance)
        for part, variance in zip(parts, pieces_of(variances, cuts), strict=True)
    ]
    whole = summarize(values, classification=True, class_axis=axis, variances=variances)
    found = combine(pieces, list(map(len, parts)), class_axis=axis)
    assert list(found) == list(whole)
    for name, value in whole.items():
        np.testing.assert_allclose(found[name], value, atol=1e-6, err_msg=name)


@st.composite
def given_probabilities(draw: st.DrawFn, *, minimum: int = 2) -> tuple[np.ndarray, int]:
    """Probabilities (draws, batch, ...) that add up to 1 along an axis, or of one event; some are exactly 0 or 1."""
    count = draw(st.integers(minimum, 7))
    shape = (count, *draw(st.lists(st.integers(1, 4), min_size=2, max_size=4)))
    axis = draw(st.integers(1, len(shape) - 2))
    weights = draw(npst.arrays(np.float64, shape, elements=st.sampled_from((0.0, 1e-300, 1e-9, 0.25, 1.0, 3.0))))
    if shape[axis + 1] == 1:
        return np.minimum(weights, 1), axis
    first = np.arange(shape[axis + 1]).reshape(-1, *[1] * (len(shape) - axis - 2)) == 0
    weights = np.where(weights.sum(axis + 1, keepdims=True) == 0, np.where(first, 1.0, 0.0), weights)
    return weights / weights.sum(axis + 1, keepdims=True), axis


def entropy_by_hand(values: np.ndarray) -> float:
    """Of the probabilities of all classes, or of the only one that has a name."""
    every = [float(value) for value in values]
    return -sum(p * math.log(p) for p in (every if len(every) > 1 else [every[0], 1 - every[0]]) if p > 0)


@given(given_probabilities())
def test_statistics_of_probabilities_by_hand(given: tuple[np.ndarray, int]) -> None:
    values, axis = given
    found = summarize(values, classification=True, scores=False, class_axis=axis)
    assert list(found) == ["probs", "probs_std", "entropy", "mutual_information"]
    np.testing.assert_allclose(found["probs"], sum(values) / len(values), atol=1e-12)
    np.testing.assert_allclose(found["probs_std"], np.std(values, 0, ddof=1), atol=1e-12)
    lanes = np.moveaxis(values, axis + 1, -1)
    for place in np.ndindex(found["entropy"].shape):
        each = [lane[place] for lane in lanes]
        total = entropy_by_hand(sum(each) / len(each))
        np.testing.assert_allclose(found["entropy"][place], total, atol=1e-12)
        np.testing.assert_allclose(
            found["mutual_information"][place], total - sum(map(entropy_by_hand, each)) / len(each), atol=1e-12
        )
    assert not np.signbit(found["entropy"]).any()


@given(given_probabilities(minimum=1), st.data())
def test_pieces_of_probabilities_combine_to_the_whole(given: tuple[np.ndarray, int], data: st.DataObject) -> None:
    values, axis = given
    parts = pieces_of(values, data.draw(st.lists(st.integers(0, len(values)), max_size=3)))
    pieces = [summarize(part, classification=True, scores=False, class_axis=axis) for part in parts]
    whole = summarize(values, classification=True, scores=False, class_axis=axis)
    found = combine(pieces, list(map(len, parts)), class_axis=axis)
    assert list(found) == list(whole)
    for name, value in whole.items():
        np.testing.assert_allclose(found[name], value, atol=1e-7, err_msg=name)


def test_probabilities_that_rounding_put_beyond_0_and_1_have_no_entropy() -> None:
    values = np.array([[[1 + 1e-7, -1e-7], [np.nan, 1]]] * 2)
    for found in (
        summarize(values, classification=True, scores=False),
        summarize(values[..., :1], classification=True, scores=False),
    ):
        np.testing.assert_array_equal(found["entropy"], [0, np.nan])
        np.testing.assert_array_equal(found["mutual_information"], [0, np.nan])
        assert not np.signbit(found["entropy"][0])
        np.testing.assert_array_equal(found["probs"][0], values[0, 0, : found["probs"].shape[1]])


def test_the_order_of_the_statistics() -> None:
    found = summarize(np.zeros((2, 3, 4)), classification=True, variances=np.zeros((2, 3, 1)))
    assert list(found) == [
        "mean", "std", "probs", "probs_std", "entropy", "mutual_information", "aleatoric_std", "total_std",
    ]  # fmt: skip
    assert list(summarize(np.zeros((2, 3)))) == ["mean", "std"]


def test_an_output_of_logits_without_an_axis_is_one_event_each() -> None:
    values = np.random.default_rng(0).normal(size=(5, 3))
    for found in (
        summarize(values, classification=True),
        summarize(values, classification=True, class_axis=None),
    ):
        np.testing.assert_allclose(found["probs"], scipy.special.expit(values).mean(0))
        assert found["entropy"].shape == (3,)


def test_extreme_logits_stay_finite() -> None:
    rows = [[1e4, -1e4, 0.0], [-np.inf, 0.0, 1.0], [1e4, -np.inf, 1e4], [-np.inf, -np.inf, -1e4]]
    values = np.array([rows, rows[::-1]])
    found = summarize(values, classification=True)
    binary = summarize(values[..., :1], classification=True)
    for name in ("probs", "probs_std", "entropy", "mutual_information"):
        assert np.isfinite(found[name]).all(), name
        assert np.isfinite(binary[name]).all(), name
    np.testing.assert_allclose(binary["probs"][:, 0], [0.5, 0.5, 0.5, 0.5])
    np.testing.assert_allclose(binary["mutual_information"], np.log(2) * np.ones(4))


def test_a_variance_head_has_two_parts() -> None:
    rng = np.random.default_rng(0)
    mean, variance = rng.normal(size=(6, 4, 2)), rng.uniform(0.1, 2, (6, 4, 2))
    found = summarize(mean, variances=variance)
    np.testing.assert_allclose(found["aleatoric_std"], np.sqrt(variance.mean(0)))
    np.testing.assert_allclose(found["total_std"], np.hypot(mean.std(0, ddof=1), np.sqrt(variance.mean(0))))
    shared = summarize(mean, variances=variance[:1, :, :1])
    np.testing.assert_allclose(shared["aleatoric_std"], np.broadcast_to(np.sqrt(variance[0, :, :1]), (4, 2)))


def test_a_negative_variance_in_any_draw_shows_as_nan() -> None:
    variance = np.ones((3, 2, 1))
    variance[1, 0] = -1e-3
    found = summarize(np.zeros((3, 2, 1)), variances=variance)
    for name in ("aleatoric_std", "total_std"):
        np.testing.assert_array_equal(np.isnan(found[name]), [[True], [False]])


def test_a_single_draw_has_no_deviation() -> None:
    found = summarize(np.zeros((1, 2, 3)), classification=True, variances=np.ones((1, 2, 3)))
    for name in ("std", "probs_std", "total_std"):
        assert np.isnan(found[name]).all()
    assert np.isfinite(found["aleatoric_std"]).all()


@pytest.mark.parametrize("axis", [0, 2, -2, 5])
def test_the_class_axis_is_one_of_the_output_and_not_the_batch(axis: int) -> None:
    values: Any = np.zeros((4, 3))
    for function in (probabilities, class_entropy):
        with pytest.raises(ValueError, match=f"class axis {axis}"):
            function(values, axis)
        with pytest.raises(ValueError, match=f"class axis {axis}: an output of 1 dimensions"):
            function(values[:, 0], axis)


def test_the_only_one_of_a_varying_number_of_classes_is_certain() -> None:
    values = np.random.default_rng(0).normal(size=(5, 3, 1))
    found = summarize(values, classification=True, event=False)
    for name, want in {"probs": 1, "probs_std": 0, "entropy": 0, "mutual_information": 0}.items():
        np.testing.assert_array_equal(found[name], np.full_like(found[name], want))


@pytest.mark.parametrize(("offset", "spread"), [(1e3, 1e-3), (1e5, 1e-2), (1e6, 1e-1)])
def test_pieces_rounded_to_float32_move_a_spread_by_less_than_the_last_place_of_the_mean(
    offset: float, spread: float
) -> None:
    draws = (offset + spread * np.random.default_rng(0).standard_normal((50, 500))).astype(np.float32)
    pieces = [
        {name: value.astype(np.float32) for name, value in summarize(piece).items()} for piece in np.split(draws, 5)
    ]
    moved = np.abs(combine(pieces, [10] * 5)["std"] - summarize(draws)["std"])
    assert moved.max() < 0.25 * np.spacing(np.float32(offset))
