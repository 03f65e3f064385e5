"""Noise that is not a mask: uniform, normal and exponential numbers as a pure function of five integers.

Every number is made from the 32-bit words of ``deploykit.masks``, so it depends on (seed, site, sample id, draw, unit)
and on nothing else. The exported files compute the same: words and uniform numbers bit for bit, normal and exponential
ones up to the rounding of a logarithm and a cosine. ``docs/masks.md`` is exact enough to implement it again.

A normal number takes a second word, that of the same unit at the site -1 - s, which no artifact numbers.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deploykit import masks
from deploykit.errors import UsageError

__all__ = ["KINDS", "LARGEST", "SMALLEST", "STEP", "TURN", "exponential", "normal", "sample", "uniform"]

KINDS = ("bernoulli", "uniform", "normal", "exponential", "rrelu")
"""The kinds of sites that draw numbers; all others draw masks."""

Floats = NDArray[np.float32]
Words = NDArray[np.int32]

STEP = 2.0**-32
"""From one word to the next."""

LARGEST, SMALLEST = 1 - 2.0**-24, 2.0**-25
"""The largest float32 below 1, and the least distance of two uniform numbers, which stands for 0 in a logarithm."""

TURN = 2 * np.pi * STEP
"""From a word to an angle between -pi and pi."""


def uniform(words: Words) -> Floats:
    """Uniform numbers in [0, 1): (...) int32 gives (...) float32.

    A number is at least p where the word is at least ``masks.threshold(p)``, up to the rounding to 24 bits: ``u >= p``
    keeps the units that a dropout of probability p keeps.
    """
    found: Floats = np.minimum(words.astype(np.float32) * np.float32(STEP) + np.float32(0.5), np.float32(LARGEST))
    return found


def exponential(words: Words) -> Floats:
    """Exponential numbers of mean 1, between 5.9e-8 and 17.4: (...) int32 gives (...) float32."""
    found: Floats = -np.log(np.maximum(uniform(words), np.float32(SMALLEST)))
    return found


def normal(words: Words, others: Words) -> Floats:
    """Standard normal numbers, at most 5.9 from 0: two times (...) int32 give (...) float32.

    Box and Muller, "A Note on the Generation of Random Normal Deviates", 1958.
    """
    angle = others.astype(np.float32) * np.float32(TURN)
    found: Floats = np.sqrt(np.float32(2) * exponential(words)) * np.cos(angle)
    return found


def sample(
    kind: str,
    seed: int,
    site: int,
    sample_ids: ArrayLike,
    draws: ArrayLike,
    units: int | ArrayLike,
    p: float | None,
    *,
    mode: Literal["independent", "shared"] = "independent",
) -> NDArray[Any]:
    """What one site draws, before it is scaled, shifted or multiplied.

    Args:
        kind: the site's kind in the manifest.
        seed: any 64-bit integer, as in ``masks.keep_mask``.
        site: the site's index in the manifest.
        sample_ids: (batch) int64.
        draws: (draws) int64.
        units: how many units one row has at this site, or their numbers (``masks.unit_numbers``).
        p: the site's p in the manifest; None for noise without a fixed probability.
        mode: ``shared`` ignores the sample ids.

    Returns:
        (draws, batch, units): bool, true where a unit is kept, if there is a p; else float32, standard normal for
        ``normal``, exponential of mean 1 for ``exponential``, and uniform in [0, 1) for the other kinds.

    Raises:
        UsageError: a kind that has no p and is no noise.
    """
    if p is not None:
        return masks.keep_mask(seed, site, sample_ids, draws, units, p, mode=mode)
    if kind not in KINDS:
        raise UsageError(f"site kind {kind!r} without p: only {', '.join(KINDS)} can be drawn without one")
    ids = np.asarray(sample_ids, np.int64)
    rows = masks.row_keys(seed, np.zeros_like(ids) if mode == "shared" else ids, draws)
    numbers = masks.numbered(units)
    words = masks.words(rows, masks.unit_keys(site, numbers))
    if kind == "normal":
        return normal(words, masks.words(rows, masks.unit_keys(-1 - site, numbers)))
    return exponential(words) if kind == "exponential" else uniform(words)
