"""The statistics of ``deploykit.statistics`` as torch operations inside the exported graph."""

import torch
from torch import Tensor

__all__ = ["STATISTICS", "Variances", "summarize"]

STATISTICS = (
    "mean", "std", "probs", "probs_std", "entropy", "mutual_information", "aleatoric_std", "total_std", "draws",
)  # fmt: skip
"""Every statistic, in the order of the outputs."""

Variances = tuple[Tensor, bool]
"""What a variance head gave, in a shape that broadcasts to the draws, and whether that is the logarithm."""

_LEAST = torch.finfo(torch.float32)
"""Also for float64: in an ONNX file a bound is a float32, in which those of float64 are 0 and infinite."""


def summarize(
    draws: Tensor,
    *,
    classification: bool,
    scores: bool = True,
    class_axis: int | None,
    event: bool,
    variances: Variances | None,
    keep_draws: bool,
) -> dict[str, Tensor]:
    """Statistics of ``draws`` (draws, batch, ...), by name; ``draws`` itself comes as (batch, draws, ...).

    ``scores`` tells whether a classification is of logits, or of probabilities. ``class_axis`` counts in one draw
    (batch, ...), from the start; None where there is none. ``event`` tells whether each value belongs to one event,
    which it always does without that axis.
    """
    mean, std = _moments(draws)
    found = {"mean": mean, "std": std} if scores or not classification else {}
    if classification:
        found |= _class_statistics(_at_least_single(draws), class_axis, event=event, scores=scores)
    if variances is not None:
        # Expanded, because a variance may be the same for several values.
        aleatoric = _root_mean(variances[0].double(), variances[1]).expand_as(mean).clone()
        found |= {"aleatoric_std": aleatoric, "total_std": (std.square() + aleatoric.square()).sqrt()}
    found = {name: value.to(draws.dtype) for name, value in found.items()}
    if keep_draws:
        found["draws"] = draws.transpose(0, 1)
    return found


def _at_least_single(values: Tensor) -> Tensor:
    """Half precision has too few digits for the logarithms of probabilities."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def _moments(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation in float64.

    In float32 the square of 1e-23 is zero, the sum of two values of 3e38 infinite, and the mean of values about 1e4
    already rounded by more than a deviation of 1e-3.
    """
    wide = draws.double()
    mean = wide.mean(0)
    # Written out, because torch's own std warns where a single draw has no deviation and gives NaN.
    variance = (wide - mean).square().sum(0) / (draws.shape[0] - 1)
    return mean, variance.sqrt()


def _class_statistics(draws: Tensor, class_axis: int | None, *, event: bool, scores: bool) -> dict[str, Tensor]:
    if class_axis is None or event:
        each = torch.sigmoid(draws) if scores else draws
        probs, deviation = _moments(each)
        entropy, expected = _coin(probs), _coin(each).mean(0)
        if class_axis is not None:
            entropy, expected = entropy.squeeze(class_axis), expected.squeeze(class_axis)
    else:
        each, plogp = _softmax(draws, class_axis + 1) if scores else (draws, _plogp(draws))
        probs, deviation = _moments(each)
        entropy = 0 - _plogp(probs).sum(class_axis)
        expected = -plogp.sum(class_axis + 1).mean(0)
    # The difference of two rounded numbers can come out a hair below zero, which no mutual information is.
    information = (entropy - expected).clamp(min=0)
    return {"probs": probs, "probs_std": deviation, "entropy": entropy, "mutual_information": information}


def _softmax(draws: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """The softmax p along ``axis`` and p ln p, which has more digits from the logarithm than from p."""
    log_probs = torch.log_softmax(draws, dim=axis)
    each = log_probs.exp()
    # A class that is out of the question has the logarithm -inf, which times 0 would be NaN.
    return each, each * log_probs.clamp(min=_LEAST.min)


def _coin(probs: Tensor) -> Tensor:
    # Not the negative, which of zero is -0.0.
    return 0 - (_plogp(probs) + _plogp(1 - probs))


def _plogp(probs: Tensor) -> Tensor:
    """P ln p with 0 ln 0 = 0, and 0 where rounding has put a given probability below 0 or above 1."""
    return (probs * probs.clamp(min=_LEAST.tiny).log()).clamp(max=0)


def _root_mean(values: Tensor, logarithm: bool) -> Tensor:
    """The root of the mean variance, NaN where a variance is below zero."""
    variances = values.exp() if logarithm else values.masked_fill(values < 0, torch.nan)
    return variances.mean(0).sqrt()
