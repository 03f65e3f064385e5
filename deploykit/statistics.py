"""What is reported of the draws, defined in numpy; the exported files compute the same.

Let ``y[t]`` be the output of draw t of T, ``p[t]`` its class probabilities, ``v[t]`` the variance that a model with a
variance head predicts beside its mean ``y[t]``. An output that is probabilities already is its own ``p[t]``: it has no
``mean`` and ``std``, which would be ``probs`` and ``probs_std`` again.

==================== ==================================================================================================
mean                 sum of y[t] / T
std                  sample standard deviation, sqrt(sum of (y[t] - mean)^2 / (T - 1)); NaN for a single draw
probs                mean of p[t]: the predictive distribution (Gal and Ghahramani, "Dropout as a Bayesian
                     Approximation", 2016)
probs_std            sample standard deviation of p[t]; NaN for a single draw
entropy              H(probs) = -sum over classes of probs ln probs, in nats: the total uncertainty
mutual_information   H(probs) - mean of H(p[t]), in nats: the part that comes from the model (Houlsby et al., "Bayesian
                     Active Learning for Classification and Preference Learning", 2011); never negative
aleatoric_std        sqrt(sum of v[t] / T): the noise that the model sees in the data (the variance head of Nix and
                     Weigend, "Estimating the mean and variance of the target probability distribution", 1994)
total_std            sqrt(std^2 + aleatoric_std^2): both parts (Kendall and Gal, "What Uncertainties Do We Need in
                     Bayesian Deep Learning for Computer Vision?", 2017, with T - 1 in the first part)
==================== ==================================================================================================

Classes lie along one axis of an output (batch, ...): axis 1, as in torch's cross entropy, unless said otherwise, and
``p[t]`` is the softmax along it. Where that axis holds one class, or an output (batch) has none, a value is the logit
of one event: ``p[t]`` is its sigmoid, the entropy that of a coin. p ln p is 0 where p is 0, and where rounding has put
a given probability below 0 or above 1.

A variance below zero has no square root: whoever predicts one in any draw gets NaN in that place.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["class_entropy", "combine", "probabilities", "summarize"]

Array = NDArray[Any]


def probabilities(logits: Array, class_axis: int | None = 1, *, event: bool | None = None) -> Array:
    """Softmax along ``class_axis`` of (batch, ...), or the sigmoid. Computed in float64.

    ``event`` tells whether a value is the logit of one event, by default where there is one class only. A number of
    classes that varies may happen to be one, and that class is certain.

    Raises:
        ValueError: there is no such axis, or it is that of the batch.
    """
    logits = logits.astype(np.float64)
    axis = _own_axis(class_axis, logits.ndim)
    if axis is None or (logits.shape[axis] == 1 and event is not False):
        return np.asarray(np.exp(-np.logaddexp(0, -logits)))
    with np.errstate(invalid="ignore"):  # An infinite logit has no softmax: NaN, as in torch.
        shifted = np.exp(logits - logits.max(axis=axis, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=axis, keepdims=True))


def class_entropy(probs: Array, class_axis: int | None = 1) -> Array:
    """Entropy in nats: (batch, ..., classes, ...) gives the shape without the classes; 0 ln 0 is 0, as beyond 0 and 1.

    Raises:
        ValueError: as ``probabilities``.
    """
    axis = _own_axis(class_axis, probs.ndim)
    if axis is not None and probs.shape[axis] != 1:
        # Not the negative, which of zero is -0.0.
        return np.asarray(0 - _plogp(probs).sum(axis=axis))
    coin = 0 - (_plogp(probs) + _plogp(1 - probs))
    return coin if axis is None else coin.squeeze(axis)


def _own_axis(class_axis: int | None, ndim: int) -> int | None:
    """The axis counted from the start; None where each value stands alone, as in an output (batch)."""
    if class_axis is None or (class_axis == 1 and ndim == 1):
        return None
    axis = class_axis + ndim if class_axis < 0 else class_axis
    if not 1 <= axis < ndim:
        raise ValueError(f"class axis {class_axis}: an output of {ndim} dimensions, the first of them the batch")
    return axis


def _plogp(probs: Array) -> Array:
    return np.asarray(np.minimum(probs * np.log(np.where(probs > 0, probs, 1)), 0))


def summarize(
    draws: Array,
    *,
    classification: bool = False,
    scores: bool = True,
    class_axis: int | None = 1,
    event: bool | None = None,
    variances: Array | None = None,
) -> dict[str, Array]:
    """All statistics of ``draws`` (draws, batch, ...), by name, float64; they are (batch, ...) with or without classes.

    Args:
        draws: the values of the draws.
        classification: also give ``probs``, ``probs_std``, ``entropy`` and ``mutual_information``.
        scores: whether the draws of a classification are logits; if not, they are the probabilities themselves, of
            which ``mean`` and ``std`` are left out.
        class_axis: where the classes of one draw (batch, ...) lie; None where each value belongs to one event.
        event: as for ``probabilities``.
        variances: what the model predicts as variances of ``draws``, in a shape that broadcasts to it; gives
            ``aleatoric_std`` and ``total_std``.

    Raises:
        ValueError: there is no such axis, or it is that of the batch.
    """
    each = draws.astype(np.float64)
    found = _moments(each, "mean", "std") if scores or not classification else {}
    if classification:
        if scores:
            each = np.stack([probabilities(draw, class_axis, event=event) for draw in draws])
        found |= _moments(each, "probs", "probs_std")
        expected = np.mean([class_entropy(draw, class_axis) for draw in each], axis=0)
        found |= _entropies(found["probs"], expected, class_axis)
    if variances is not None:
        known = np.where(variances >= 0, variances.astype(np.float64), np.nan)
        found |= _parts(np.broadcast_to(known.mean(0), found["std"].shape), found["std"])
    return found


def _moments(values: Array, mean: str, std: str) -> dict[str, Array]:
    with np.errstate(invalid="ignore", divide="ignore"):
        average = values.mean(0)
        squares = ((values - average) ** 2).sum(0)
        return {mean: average, std: np.sqrt(squares / np.float64(len(values) - 1))}


def _entropies(probs: Array, expected: Array, class_axis: int | None) -> dict[str, Array]:
    entropy = class_entropy(probs, class_axis)
    return {"entropy": entropy, "mutual_information": np.maximum(entropy - expected, 0)}


def _parts(aleatoric: Array, std: Array) -> dict[str, Array]:
    """The standard deviations from the aleatoric variance and the spread of the mean."""
    return {"aleatoric_std": np.sqrt(aleatoric), "total_std": np.sqrt(std**2 + aleatoric)}


def combine(
    pieces: Sequence[dict[str, Array]], counts: Sequence[int], *, class_axis: int | None = 1
) -> dict[str, Array]:
    """The statistics of all draws from the statistics of pieces with ``counts`` draws each.

    Takes what ``summarize`` gives, or the outputs of one model output under their short names, and gives float64.
    ``class_axis`` is as for ``summarize``; in an artifact's manifest it stands beside ``probs``. Variances add by the
    rule of Chan, Golub and LeVeque (1983), in float64. What the pieces hold is taken as it is: means of float32 that
    are large beside the spread were rounded before, which moves the standard deviation by a fraction of the last
    place of such a mean, as the rounding of the draws themselves does.

    Raises:
        ValueError: there is no such class axis.
    """
    found = _joined(pieces, counts, "mean", "std") if "mean" in pieces[0] else {}
    if "probs" in pieces[0]:
        found |= _joined(pieces, counts, "probs", "probs_std")
        expected = _weighted(pieces, counts, "entropy") - _weighted(pieces, counts, "mutual_information")
        found |= _entropies(found["probs"], expected, class_axis)
    if "aleatoric_std" in pieces[0]:
        found |= _parts(_weighted(pieces, counts, "aleatoric_std", power=2), found["std"])
    return found


def _joined(pieces: Sequence[dict[str, Array]], counts: Sequence[int], mean: str, std: str) -> dict[str, Array]:
    average = _weighted(pieces, counts, mean)
    squares = sum(
        # A single draw has no deviation, and none is missing in the sum.
        (
            np.where(count > 1, piece[std].astype(np.float64), 0) ** 2 * (count - 1)
            + count * (piece[mean] - average) ** 2
        )
        for piece, count in zip(pieces, counts, strict=True)
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        return {mean: average, std: np.sqrt(squares / np.float64(sum(counts) - 1))}


def _weighted(pieces: Sequence[dict[str, Array]], counts: Sequence[int], name: str, power: int = 1) -> Array:
    weights = np.asarray(counts, np.float64) / sum(counts)
    values = (piece[name].astype(np.float64) ** power for piece in pieces)
    return np.asarray(sum(weight * value for weight, value in zip(weights, values, strict=True)))
