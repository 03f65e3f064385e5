"""The demo's numbers against plain definitions, and claims that fail when they are not so."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from deploykit.demo.findings import ENTROPY, PROBABILITIES, Findings, find
from deploykit.demo.measures import (
    accuracy,
    agreement,
    auroc,
    calibration_error,
    entropy_quartiles,
    negative_log_likelihood,
)

VALUES = arrays.arrays(np.float32, st.integers(1, 30), elements=st.integers(0, 5).map(float))
STATISTICS = {PROBABILITIES: "probs", ENTROPY: "entropy"}
ROWS = 40


@given(VALUES, VALUES)
def test_auroc_counts_pairs(negatives: np.ndarray[Any, Any], positives: np.ndarray[Any, Any]) -> None:
    pairs = [1.0 if p > n else 0.5 if p == n else 0.0 for p in positives for n in negatives]
    assert auroc(negatives, positives) == pytest.approx(np.mean(pairs))


@given(st.integers(4, 60), st.integers(0, 2**32 - 1))
def test_quartiles_hold_every_row_once_in_order(rows: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    entropy, wrong = generator.random(rows), generator.random(rows) < 0.3
    found = entropy_quartiles(entropy, wrong)
    assert sum(quartile.rows for quartile in found) == rows
    assert sum(quartile.wrong for quartile in found) == wrong.sum()
    assert max(quartile.rows for quartile in found) - min(quartile.rows for quartile in found) <= 1
    edges = [edge for quartile in found for edge in (quartile.low, quartile.high)]
    assert edges == sorted(edges)


def test_accuracy_and_likelihood() -> None:
    probabilities = np.array([[0.5, 0.5 - 1e-3, 1e-3], [0.1, 0.2, 0.7], [0.0, 1.0, 0.0]], np.float32)
    labels = np.array([0, 1, 1])
    assert accuracy(probabilities, labels) == pytest.approx(2 / 3)
    assert negative_log_likelihood(probabilities, labels) == pytest.approx(-(np.log(0.5) + np.log(0.2)) / 3)
    assert np.isfinite(negative_log_likelihood(probabilities, np.array([0, 0, 0])))


@given(st.integers(1, 200), st.integers(2, 5), st.integers(0, 2**32 - 1))
def test_the_calibration_error_is_its_definition(rows: int, classes: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    probabilities, labels = generator.dirichlet(np.ones(classes), rows), generator.integers(classes, size=rows)
    wanted = 0.0
    for number in range(15):
        inside = [p for p in zip(probabilities, labels, strict=True) if number / 15 < p[0].max() <= (number + 1) / 15]
        if inside:
            right = np.mean([row.argmax() == label for row, label in inside])
            wanted += len(inside) / rows * abs(right - np.mean([row.max() for row, _ in inside]))
    assert calibration_error(probabilities, labels) == pytest.approx(wanted)


def test_certain_and_right_is_calibrated() -> None:
    assert calibration_error(np.eye(3), np.arange(3)) == 0
    assert calibration_error(np.eye(3), np.array([1, 2, 0])) == 1


def predictions() -> tuple[dict[str, dict[str, np.ndarray[Any, Any]]], np.ndarray[Any, Any]]:
    """Two runners that agree: the last four rows are uncertain, and two of them wrong."""
    probabilities = np.tile(np.array([0.98, 0.01, 0.01], np.float32), (ROWS, 1))
    probabilities[-4:] = [0.5, 0.3, 0.2]
    labels = np.zeros(ROWS, np.int64)
    labels[-2:] = 1
    entropy = -(probabilities * np.log(probabilities)).sum(axis=1)
    outputs = {PROBABILITIES: probabilities, ENTROPY: entropy, "sample_id": np.arange(ROWS)}
    return {name: {key: value.copy() for key, value in outputs.items()} for name in ("onnx", "torch")}, labels


def findings(change: Any = None, noise: float = 1.0) -> Findings:
    both, labels = predictions()
    if change is not None:
        change(both["torch"])
    deterministic = both["onnx"][PROBABILITIES]
    return find(STATISTICS, both, labels, deterministic=deterministic, noise_entropy=np.full(9, noise, np.float32))


def failed(found: Findings) -> list[str]:
    return [claim.text for claim in found.claims() if not claim.holds]


def test_all_claims_hold_of_good_predictions() -> None:
    assert failed(findings(noise=1.1)) == []


def other_class(outputs: dict[str, np.ndarray[Any, Any]]) -> None:
    outputs[PROBABILITIES][3] = [0.49, 0.51, 0.0]


def slightly_off(outputs: dict[str, np.ndarray[Any, Any]]) -> None:
    outputs[ENTROPY][5] += 2e-5


def swapped(outputs: dict[str, np.ndarray[Any, Any]]) -> None:
    outputs["sample_id"][:2] = [1, 0]


@pytest.mark.parametrize(
    ("change", "text"),
    [(other_class, "same class in 39 of 40"), (slightly_off, "agree: largest difference 1.9e-05"), (swapped, "order")],
)
def test_formats_that_differ_are_found(change: Any, text: str) -> None:
    assert any(text in each for each in failed(findings(change, noise=1.1))), failed(findings(change, noise=1.1))


def test_noise_that_is_certain_is_found() -> None:
    (text,) = failed(findings(noise=0.05))
    assert "noise is uncertain: mean entropy 0.05" in text


def test_uncertainty_that_says_nothing_is_found() -> None:
    good = findings(noise=1.1)
    flat = tuple(replace(quartile, wrong=1) for quartile in good.quartiles)
    assert ["errors are where" in text for text in failed(replace(good, quartiles=flat))] == [True]
    assert ["accuracy is 50.0%" in text for text in failed(replace(good, accuracy=0.5))] == [True]


def test_findings_become_plain_data() -> None:
    data = findings(noise=1.1).to_json()
    assert data["agreement"] == {"same_class": ROWS, "largest_difference": {PROBABILITIES: 0.0, ENTROPY: 0.0}}
    assert [quartile["wrong"] for quartile in data["quartiles"]] == [0, 0, 0, 2]


def test_agreement_needs_the_same_shape() -> None:
    both, _ = predictions()
    both["torch"][ENTROPY] = both["torch"][ENTROPY][:-1]
    assert agreement(STATISTICS, both["onnx"], both["torch"], classes=PROBABILITIES).worst.error == np.inf
