"""The statistics of ``deploykit.statistics`` as torch operations inside the exported graph."""

import torch
from torch import Tensor

__all__ = ["STATISTICS", "summarize"]

STATISTICS = ("mean", "std", "probs", "entropy", "mutual_information", "draws")
"""Every statistic, in the order of the outputs."""


def summarize(draws: Tensor, *, classification: bool, keep_draws: bool) -> dict[str, Tensor]:
    """Statistics of ``draws`` (draws, batch, ...), by name; ``draws`` itself comes as (batch, draws, ...)."""
    mean = draws.mean(0)
    # Written out, because torch's own std warns where a single draw has no deviation and gives NaN.
    variance = (draws - mean).square().sum(0) / (draws.shape[0] - 1)
    found = {"mean": mean, "std": variance.sqrt()}
    if classification:
        found |= _class_statistics(draws)
    if keep_draws:
        found["draws"] = draws.transpose(0, 1)
    return found


def _class_statistics(draws: Tensor) -> dict[str, Tensor]:
    """Classes lie along axis 1 of a draw, which is axis 2 here; a single class is the logit of one event."""
    if draws.ndim == 2 or draws.shape[2] == 1:
        probs_each = torch.sigmoid(draws)
        probs = probs_each.mean(0)
        entropy = _coin(probs)
        expected = _coin(probs_each).mean(0)
        if draws.ndim > 2:
            entropy, expected = entropy.squeeze(1), expected.squeeze(1)
    else:
        log_probs = torch.log_softmax(draws, dim=2)
        probs_each = log_probs.exp()
        probs = probs_each.mean(0)
        entropy = -_plogp(probs).sum(1)
        expected = -(probs_each * log_probs.clamp(min=-1e30)).sum(2).mean(0)
    # The difference of two rounded numbers can come out a hair below zero, which no mutual information is.
    return {"probs": probs, "entropy": entropy, "mutual_information": (entropy - expected).clamp(min=0)}


def _coin(probs: Tensor) -> Tensor:
    return -(_plogp(probs) + _plogp(1 - probs))


def _plogp(probs: Tensor) -> Tensor:
    """P ln p with 0 ln 0 = 0."""
    return probs * probs.clamp(min=torch.finfo(probs.dtype).tiny).log()
