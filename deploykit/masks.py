"""The mask function: which units a dropout site keeps, as a pure function of five numbers.

This is the reference in numpy. The exported files compute the same integers with other tools, bit for bit::

    keep(seed, site, sample id, draw, unit)  ->  True or False,  P(True) = 1 - p

Every row (seed, sample id, draw) and every unit (site, unit) has a key of two 31-bit words. A key is a counter, spread
by odd 64-bit multipliers and scrambled by a Feistel network whose round function takes the middle bits of a quadratic.
A Feistel network is a bijection, so two counters never share a key. One row key and one unit key make one 32-bit word
by four multiply-adds, and the word is compared with a threshold.

Only additions, multiplications, remainders and divisions of integers appear, because these are the integer operations
for which ONNX Runtime has CUDA kernels; the per-element work is 32 bits wide, because that is what vectorises.

The definition is versioned: ``ALGORITHM`` is written into every artifact and changes when any bit would.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deploykit.errors import UsageError

__all__ = [
    "ALGORITHM",
    "LENGTH",
    "keep_mask",
    "numbered",
    "row_keys",
    "scale",
    "threshold",
    "unit_keys",
    "unit_numbers",
    "words",
]

ALGORITHM = 2

Int = NDArray[np.int64]

# Multipliers of the counters: odd, of 62 bits, from the hexadecimal digits of the fraction of pi.
SEED, SAMPLE, DRAW = 0x243F6A8885A308D3, 0x13198A2E03707345, 0x24093822299F31D1
SITE, UNIT = 0x082EFA98EC4E6C89, 0x052821E638D01377
ROW_START, UNIT_START = 0x3E5466CF34E90C6C, 0x00AC29B7C97C50DD

# Added inside the round functions: odd numbers below 2**31, from the same digits.
ROUNDS = (0x3F84D5B5, 0x35470917, 0x1216D5D9, 0x2979FB1B, 0x51310BA7, 0x18DFB5AD)
WORD = 1 << 31

LENGTH = 1 << 20
"""What a dimension of dynamic size counts for, whatever its size is."""


def row_keys(seed: int, sample_ids: ArrayLike, draws: ArrayLike) -> NDArray[np.int32]:
    """The keys of rows: ``sample_ids`` (batch) int64 and ``draws`` (draws) int64 give (draws, batch, 2) int32."""
    ids, numbers = np.asarray(sample_ids, np.int64), np.asarray(draws, np.int64)
    with np.errstate(over="ignore"):  # The counter is taken modulo 2**62, so wrapping is meant.
        start = np.multiply(np.int64(seed), np.int64(SEED)) + np.int64(ROW_START)
        return _keys(start + ids[None, :] * np.int64(SAMPLE) + numbers[:, None] * np.int64(DRAW))


def unit_keys(site: int, units: ArrayLike) -> NDArray[np.int32]:
    """The keys of the units of one site: ``units`` (units) int64 gives (units, 2) int32."""
    with np.errstate(over="ignore"):
        start = np.multiply(np.int64(site), np.int64(SITE)) + np.int64(UNIT_START)
        return _keys(start + np.asarray(units, np.int64) * np.int64(UNIT))


def unit_numbers(sizes: Sequence[int], dynamic: Sequence[bool]) -> NDArray[np.int64]:
    """The numbers of a row's units: an int64 array of ``sizes``.

    ``sizes`` are the dimensions of a site's mask without the batch, ``dynamic`` tells which of them vary from batch to
    batch. Dimensions of a fixed size count first, then the dynamic ones, both in row-major order, and each dynamic one
    counts for 2**20: so a unit's number does not depend on how long the others of its batch are. Where only the first
    dimension is dynamic, or none, it is the place in row-major order.

    Raises:
        UsageError: not one flag for each size.
    """
    if len(sizes) != len(dynamic):
        raise UsageError(f"sizes: {len(sizes)} for {len(dynamic)} flags in dynamic; give one flag for each dimension")
    found = np.zeros(tuple(sizes), np.int64)
    fixed, varying = 1, math.prod(size for size, varies in zip(sizes, dynamic, strict=True) if not varies)
    for axis in reversed(range(len(sizes))):
        place = np.arange(sizes[axis], dtype=np.int64).reshape(-1, *[1] * (len(sizes) - axis - 1))
        found += place * (varying if dynamic[axis] else fixed)
        fixed, varying = (fixed, varying * LENGTH) if dynamic[axis] else (fixed * sizes[axis], varying)
    return found


def _keys(counter: Int) -> NDArray[np.int32]:
    """Scramble counters (...) int64 into keys (..., 2) int32; both words lie in [0, 2**31)."""
    counter = counter % (1 << 62)
    left, right = counter % WORD, counter // WORD
    for constant in ROUNDS:
        left, right = right, (left + (right * (right + constant) >> 15)) % WORD
    return np.stack([left, right], axis=-1).astype(np.int32)


def words(rows: NDArray[np.int32], units: NDArray[np.int32]) -> NDArray[np.int32]:
    """One 32-bit word for every row and unit: (..., 2) and (units, 2) give (..., units)."""
    with np.errstate(over="ignore"):  # Arithmetic modulo 2**32 is meant.
        first, second = rows[..., None, 0], rows[..., None, 1]
        product = (first + units[:, 0]) * (second + units[:, 1])
        return np.asarray(product * (product + first), np.int32)


def threshold(p: float) -> int:
    """The smallest word that is kept: a unit is dropped with probability ``p`` to within 2**-24.

    The words are not quite uniform: 0 and -2**31 come a hundred times too often (docs/masks.md),
    which bounds the precision.

    ``p`` of 1 has no threshold: nothing is kept.
    """
    if not 0 <= p <= 1:
        raise UsageError(f"dropout probability {p}: must lie between 0 and 1")
    return min(round(p * 2**32), 2**32 - 1) - 2**31


def scale(p: float) -> float:
    """The factor for kept units, 1 / (1 - p); 0 where nothing is kept."""
    return 0.0 if p == 1 else 1 / (1 - p)


def numbered(units: int | ArrayLike) -> NDArray[np.int64]:
    """(units) int64: the numbers below a count, or the given ones, row-major if they have several dimensions."""
    given = np.asarray(units, np.int64)
    return np.arange(int(given)) if given.ndim == 0 else given.reshape(-1)


def keep_mask(
    seed: int,
    site: int,
    sample_ids: ArrayLike,
    draws: ArrayLike,
    units: int | ArrayLike,
    p: float,
    *,
    mode: Literal["independent", "shared"] = "independent",
) -> NDArray[np.bool_]:
    """Which units are kept.

    Args:
        seed: any 64-bit integer; two seeds, and two sample ids, that lie 2**62 apart are the same.
        site: the site's index in the artifact's manifest.
        sample_ids: (batch) int64, the global number of every row.
        draws: (draws) int64, the numbers of the draws.
        units: how many units one row has at this site, or their numbers (``unit_numbers``).
        p: the probability of dropping a unit.
        mode: ``shared`` ignores the sample ids, so that all rows of a draw have one mask.

    Returns:
        (draws, batch, units) bool, true where the unit is kept.
    """
    ids = np.asarray(sample_ids, np.int64)
    rows = row_keys(seed, np.zeros_like(ids) if mode == "shared" else ids, draws)
    numbers = numbered(units)
    if p == 1:
        return np.zeros((*rows.shape[:-1], numbers.size), np.bool_)
    found: Any = words(rows, unit_keys(site, numbers)) >= threshold(p)
    return np.asarray(found, np.bool_)
