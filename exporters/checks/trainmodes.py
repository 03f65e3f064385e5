"""Which submodules a capture puts in training mode, and whether that changes more than what is drawn."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from deploykit.compare import default_tolerance
from exporters.capture.graph import Captured
from exporters.eager.modes import tracks_statistics
from exporters.noise.noise_ops import NOISE
from exporters.noise.sites import Draw, site_name

__all__ = [
    "Training",
    "close",
    "drawing_in_training",
    "evaluation",
    "makers_of_noise",
    "matching",
    "only",
    "rows_apart",
]

Training = Callable[[str, nn.Module], bool]


def evaluation(_name: str, _module: nn.Module) -> bool:
    """Training mode for no module."""
    return False


def only(owners: Collection[str]) -> Training:
    """Training mode for the modules of these names, as sites name them, and for no other."""
    return lambda name, _module: site_name(name) in owners


def matching(patterns: Sequence[str], trackers: Collection[str] = ()) -> Training:
    """Training mode for the modules that a pattern matches and for all in them; without patterns, for every module.

    Of what tracks statistics of the batch, only for the ``trackers``. Patterns are those of ``fnmatch``, for the names
    of sites.
    """

    def training(name: str, module: nn.Module) -> bool:
        parts = site_name(name).split(".")
        names = [".".join(parts[: end + 1]) for end in range(len(parts))]
        chosen = not patterns or any(fnmatchcase(each, pattern) for each in names for pattern in patterns)
        return chosen and (not tracks_statistics(module) or site_name(name) in trackers)

    return training


def drawing_in_training(draws: Sequence[Draw], in_evaluation: Sequence[Draw]) -> set[str]:
    """The modules that draw more in training mode than they do in evaluation."""
    more = Counter((draw.module, draw.operation) for draw in draws)
    more.subtract(Counter((draw.module, draw.operation) for draw in in_evaluation))
    return {module for (module, _), count in more.items() if count > 0}


def makers_of_noise(draws: Sequence[Draw], owners: Collection[str]) -> set[str]:
    """Those of the owners that draw noise other than dropout, and do with it what only their own code says."""
    return {draw.module for draw in draws if draw.node.target in NOISE} & set(owners)


def rows_apart(captured: Captured, example: Sequence[Tensor]) -> bool:
    """Whether the other rows' outputs stay what they are when row 0 of the inputs changes and the noise does not.

    Call it where the state of torch's generator is kept.
    """
    found = []
    for inputs in (example, [torch.cat([tensor[1:2], tensor[1:]]) for tensor in example]):
        torch.manual_seed(0)
        found.append(captured.module(*[tensor.clone() for tensor in inputs]))
    return all(close(got[1:], wanted[1:]) for got, wanted in zip(*found, strict=True) if got.ndim)


def close(got: Tensor, wanted: Tensor) -> bool:
    """Whether two tensors are equal but for rounding."""
    if got.shape != wanted.shape or got.dtype != wanted.dtype:
        return False
    if not got.is_floating_point():
        return torch.equal(got, wanted)
    finite = wanted[wanted.isfinite()]
    scale = float(finite.abs().max()) if finite.numel() else 0.0
    tolerance = default_tolerance(str(wanted.dtype).removeprefix("torch."))
    return torch.allclose(got, wanted, rtol=0, atol=tolerance * scale, equal_nan=True)
