"""What is reported of the draws, defined in numpy; the exported files compute the same.

Let ``y[t]`` be the output of draw t of T, and ``p[t]`` its class probabilities.

==================== ==================================================================================================
mean                 sum of y[t] / T
std                  sample standard deviation, sqrt(sum of (y[t] - mean)^2 / (T - 1)); NaN for a single draw
probs                mean of p[t]: the predictive distribution (Gal and Ghahramani, "Dropout as a Bayesian
                     Approximation", 2016)
entropy              H(probs) = -sum over classes of probs ln probs, in nats: the total uncertainty
mutual_information   H(probs) - mean of H(p[t]), in nats: the part that comes from the model (Houlsby et al., "Bayesian
                     Active Learning for Classification and Preference Learning", 2011); never negative
==================== ==================================================================================================

Classes lie along axis 1 of an output (batch, classes, ...), as in torch's cross entropy, and ``p[t]`` is its softmax.
An output (batch) or (batch, 1, ...) holds the logit of one event: ``p[t]`` is its sigmoid, the entropy that of a coin.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["class_entropy", "combine", "probabilities", "summarize"]

Array = NDArray[Any]


def probabilities(logits: Array, axis: int = 1) -> Array:
    """Softmax along ``axis``; the sigmoid where there is one class only. Computed in float64."""
    logits = logits.astype(np.float64)
    if _is_binary(logits, axis):
        return np.asarray(1 / (1 + np.exp(-logits)))
    shifted = np.exp(logits - logits.max(axis=axis, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=axis, keepdims=True))


def _is_binary(values: Array, axis: int) -> bool:
    return values.ndim <= axis or values.shape[axis] == 1


def class_entropy(probs: Array, axis: int = 1) -> Array:
    """Entropy in nats: (batch, classes, ...) gives (batch, ...); 0 ln 0 is 0."""
    if not _is_binary(probs, axis):
        return np.asarray(-_plogp(probs).sum(axis=axis))
    coin = -(_plogp(probs) + _plogp(1 - probs))
    return coin if probs.ndim <= axis else coin.squeeze(axis)


def _plogp(probs: Array) -> Array:
    return np.asarray(probs * np.log(np.where(probs > 0, probs, 1)))


def summarize(draws: Array, *, classification: bool) -> dict[str, Array]:
    """All statistics of ``draws`` (draws, batch, ...), each (batch, ...) float64, by name."""
    draws = draws.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        deviation = np.sqrt(((draws - draws.mean(0)) ** 2).sum(0) / np.float64(len(draws) - 1))
    found = {"mean": draws.mean(0), "std": deviation}
    if classification:
        each = np.stack([probabilities(draw) for draw in draws])
        probs = each.mean(0)
        entropy = class_entropy(probs)
        expected = np.mean([class_entropy(draw) for draw in each], axis=0)
        found |= {"probs": probs, "entropy": entropy, "mutual_information": np.maximum(entropy - expected, 0)}
    return found


def combine(pieces: Sequence[dict[str, Array]], counts: Sequence[int]) -> dict[str, Array]:
    """The statistics of all draws from the statistics of pieces with ``counts`` draws each.

    Takes what ``summarize`` gives, or the outputs of one model output under their short names, and gives float64.
    Variances add by the rule of Chan, Golub and LeVeque (1983).
    """
    weights = np.asarray(counts, np.float64) / sum(counts)
    mean = _weighted(pieces, weights, "mean")
    squares = sum(
        (
            np.where(count > 1, piece["std"].astype(np.float64), 0) ** 2 * (count - 1)
            + count * (piece["mean"] - mean) ** 2
        )
        for piece, count in zip(pieces, counts, strict=True)
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        found = {"mean": mean, "std": np.sqrt(squares / np.float64(sum(counts) - 1))}
    if "probs" in pieces[0]:
        probs = _weighted(pieces, weights, "probs")
        expected = _weighted(pieces, weights, "entropy") - _weighted(pieces, weights, "mutual_information")
        entropy = class_entropy(probs)
        found |= {"probs": probs, "entropy": entropy, "mutual_information": np.maximum(entropy - expected, 0)}
    return found


def _weighted(pieces: Sequence[dict[str, Array]], weights: Array, name: str) -> Array:
    return np.asarray(
        sum(weight * piece[name].astype(np.float64) for weight, piece in zip(weights, pieces, strict=True))
    )
