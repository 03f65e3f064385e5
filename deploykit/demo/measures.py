"""What predictions with uncertainty are worth: numbers from arrays, with numpy alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploykit.compare import Difference, worst_of

__all__ = [
    "Agreement", "Quartile", "accuracy", "agreement", "auroc", "calibration_error", "entropy_quartiles",
    "negative_log_likelihood",
]  # fmt: skip

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quartile:
    """A quarter of the rows by entropy: the range of entropy (nats), how many rows, how many of them are wrong."""

    low: float
    high: float
    rows: int
    wrong: int

    @property
    def error_rate(self) -> float:
        return self.wrong / self.rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How two runtimes differ: the worst element of each output, and in how many rows the class is the same."""

    differences: tuple[Difference, ...]
    rows: int
    same_class: int

    @property
    def worst(self) -> Difference:
        return max(self.differences, key=lambda difference: difference.error)


def accuracy(probabilities: Floats, labels: NDArray[np.int64]) -> float:
    """The share of rows whose likeliest class is the label; probabilities (rows, classes)."""
    return float(np.mean(probabilities.argmax(axis=1) == labels))


def negative_log_likelihood(probabilities: Floats, labels: NDArray[np.int64]) -> float:
    """Mean of -log p(label), in nats; a probability that was rounded to 0 counts as the smallest float32."""
    chosen = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return float(-np.log(np.maximum(chosen, np.finfo(np.float32).tiny)).mean())


def calibration_error(probabilities: Floats, labels: NDArray[np.int64], bins: int = 15) -> float:
    """The expected calibration error (Guo et al., "On Calibration of Modern Neural Networks", 2017), from 0 to 1.

    Rows go into equal bins by the probability of their likeliest class; the mean distance between a bin's accuracy and
    its mean probability, weighted by its rows.
    """
    confidence, right = probabilities.max(axis=1).astype(np.float64), probabilities.argmax(axis=1) == labels
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(bin_of, weights=right - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))


def entropy_quartiles(entropy: Floats, wrong: NDArray[np.bool_]) -> list[Quartile]:
    """The rows in four equal groups, the most certain first."""
    groups = np.array_split(np.argsort(entropy, kind="stable"), 4)
    return [
        Quartile(
            low=float(entropy[rows[0]]), high=float(entropy[rows[-1]]), rows=len(rows), wrong=int(wrong[rows].sum())
        )
        for rows in groups
    ]


def auroc(negatives: Floats, positives: Floats) -> float:
    """How often a positive has the larger value than a negative; equal values count half."""
    ordered = np.sort(negatives)
    below = np.searchsorted(ordered, positives, side="left") + np.searchsorted(ordered, positives, side="right")
    return float(below.mean() / (2 * len(negatives)))


def agreement(
    statistics: Mapping[str, str], first: Mapping[str, Floats], second: Mapping[str, Floats], *, classes: str
) -> Agreement:
    """Compare the outputs of two runtimes; ``statistics`` maps an output to its statistic, as in the manifest.

    ``classes`` names the output (rows, classes) whose largest element is the predicted class.
    """
    same = first[classes].argmax(axis=1) == second[classes].argmax(axis=1)
    return Agreement(differences=tuple(worst_of(statistics, first, second)), rows=len(same), same_class=int(same.sum()))
