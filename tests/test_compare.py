"""The measure of agreement that the export and the host share."""

import numpy as np
import pytest

from deploykit.compare import default_tolerance, worst_difference, worst_of


def error(statistic: str, got: np.ndarray, want: np.ndarray) -> float:
    return worst_difference("y", statistic, got, want).error


def test_errors_are_relative_to_the_outputs_scale() -> None:
    want = np.array([0.0, 0.5, 1e-3], np.float32)
    got = want + np.float32(1e-4)
    assert error("value", got, want) == pytest.approx(2e-4, rel=1e-2)
    assert error("std", got, want) == pytest.approx(1e-4, rel=1e-2)
    assert error("value", want * 0, want * 0) == 0
    assert error("value", want[:0], want[:0]) == 0


def test_integers_must_be_equal() -> None:
    whole = np.array([1, 2], np.int64)
    assert error("value", whole, whole) == 0
    assert error("value", whole + np.array([0, 1]), whole) == np.inf


def test_what_is_no_number_must_be_in_the_same_place() -> None:
    odd = np.array([np.nan, np.inf, 1.0], np.float32)
    assert error("value", odd, odd) == 0
    for other in (
        odd[::-1],
        np.array([np.nan, -np.inf, 1.0]),
        np.array([0, np.inf, 1.0]),
        np.array([np.nan, np.inf, np.nan]),
    ):
        assert error("value", np.array(other), odd) == np.inf


def test_a_wrong_shape_is_infinitely_wrong() -> None:
    assert error("value", np.zeros((2, 3)), np.zeros((3, 2))) == np.inf


def test_the_worst_element_is_named() -> None:
    want = np.array([[1.0, 2.0], [3.0, 4.0]])
    worst = worst_difference("logits", "value", want + np.array([[0, 0], [1, 0]]), want)
    assert (worst.index, worst.got, worst.wanted, worst.error) == ((1, 0), 4.0, 3.0, 0.25)
    assert str(worst) == "logits[1, 0] is 4, expected 3 (error 2.50e-01 of the output's scale)"
    (same,) = worst_of({"a": "value"}, {"a": want}, {"a": want})
    assert same.error == 0


def test_half_precision_is_allowed_more() -> None:
    assert default_tolerance("float32") == default_tolerance("float64") == 1e-4
    assert default_tolerance("float16") == 1e-2
