"""The mask function of ``deploykit.masks`` as torch operations that every exported format carries unchanged.

Shapes: B rows in the batch, T draws, U units of a site. Words are int32 and wrap; keys are made in int64.
"""

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import is_concrete_int

from deploykit import masks

__all__ = ["SHIFT_RIGHT", "Keys", "apply_mask", "keep", "pieces", "row_keys", "unit_keys", "unit_numbers", "words"]


@torch.library.custom_op("deploykit::shift_right", mutates_args=())
def _shift_right(value: Tensor, bits: int) -> Tensor:
    # An operation of our own, because the stock exporter writes every integer division and shift of torch in a form
    # that ONNX Runtime runs on the CPU only, or in a dozen nodes. For values that are not negative it is one Div.
    return value >> bits


@_shift_right.register_fake
def _(value: Tensor, bits: int) -> Tensor:  # noqa: ARG001
    return torch.empty_like(value)


SHIFT_RIGHT: Any = torch.ops.deploykit.shift_right.default
"""``shift_right(value, bits)`` for int64 values that are not negative."""

Keys = tuple[Tensor, Tensor]

_CONSTANT_UNITS = 1 << 17
# Above this the keys are computed where the file runs: as constants they take 8 bytes for each unit of a site.

_PIECE_UNITS, _MOST_PIECES = 4096, 16
# So many words of 50 draws take 800 kB (``benchmarks.kernels`` has other sizes). The runtime is called for each step
# of each piece, and a GPU starts a kernel, so there are not many.


def row_keys(seed: Tensor, sample_ids: Tensor, draws: Tensor, *, shared: bool) -> Keys:
    """Two words for each row of each draw, (T*B, 1) int32, from seed (), sample ids (B), draws (T) int64."""
    start = seed * _signed(masks.SEED) + _signed(masks.ROW_START)
    ids = torch.zeros_like(sample_ids) if shared else sample_ids
    counter = (start + ids * _signed(masks.SAMPLE)).unsqueeze(0) + (draws * _signed(masks.DRAW)).unsqueeze(1)
    # In one dimension until the end: ONNX Runtime calls its kernels once for each row of a column.
    first, second = _scramble(counter.reshape(-1))
    return first.unsqueeze(1), second.unsqueeze(1)


def unit_numbers(fixed: Sequence[int | None], sizes: Sequence[int], device: torch.device) -> int | Tensor:
    """``masks.unit_numbers`` as (U) int64, or only how many there are if they are 0, 1, 2 ...

    ``fixed`` holds the row's sizes where they are known and None where they are dynamic, ``sizes`` all of them.
    """
    count = math.prod(sizes)
    if None not in fixed[1:]:
        return count
    stride, varying = 1, math.prod(size for size in fixed if size is not None)
    parts: list[Tensor] = []
    for axis in reversed(range(len(fixed))):
        size = fixed[axis]
        if size != 1:
            place = torch.arange(sizes[axis] if size is None else size, dtype=torch.int64, device=device)
            parts.append((place * (varying if size is None else stride)).reshape(-1, *[1] * (len(fixed) - axis - 1)))
        stride, varying = (stride, varying * masks.LENGTH) if size is None else (stride * size, varying)
    return functools.reduce(operator.add, parts).reshape(count)


def unit_keys(site: int, units: int | Tensor, device: torch.device) -> Keys:
    """Two words for each unit of a site, given their number or numbers: (U) int32.

    A fixed number of units, not too large, makes constants.
    """
    start = _signed(site * masks.SITE + masks.UNIT_START)
    if isinstance(units, Tensor):
        return _scramble(units * _signed(masks.UNIT) + start)
    if is_concrete_int(units) and int(units) <= _CONSTANT_UNITS:
        first, second = masks.unit_keys(site, range(int(units))).T
        return torch.from_numpy(first.copy()).to(device), torch.from_numpy(second.copy()).to(device)
    return _scramble(torch.arange(units, dtype=torch.int64, device=device) * _signed(masks.UNIT) + start)


def _signed(value: int) -> int:
    """``value`` modulo 2**64 as a signed number."""
    return (value + 2**63) % 2**64 - 2**63


def _scramble(counter: Tensor) -> Keys:
    counter = counter % (1 << 62)
    left, right = counter % masks.WORD, SHIFT_RIGHT(counter, 31)
    for constant in masks.ROUNDS:
        left, right = right, (left + SHIFT_RIGHT(right * (right + constant), 15)) % masks.WORD
    return left.to(torch.int32), right.to(torch.int32)


def words(rows: Keys, units: Keys) -> Tensor:
    """One word for every row and unit: (T*B, U) int32."""
    product = (rows[0] + units[0]) * (rows[1] + units[1])
    return product * (product + rows[0])


def keep(rows: Keys, units: Keys, p: float) -> Tensor:
    """Which units are kept: (T*B, U) bool. For p = 1 one of 2**32 words is kept, and ``apply_mask`` drops it too."""
    found = [words(rows, piece) >= masks.threshold(p) for piece in pieces(units, _PIECE_UNITS)]
    return found[0] if len(found) == 1 else torch.cat(found, -1)


def pieces(units: Keys, size: int) -> list[Keys]:
    """Units of a fixed number in equal pieces of about ``size``, or larger ones where there would be more than 16.

    So the words of one piece stay in the cache while they are used.
    """
    count = units[0].shape[-1]
    if not is_concrete_int(count) or int(count) <= size:
        return [units]
    number = min(_MOST_PIECES, -(-int(count) // size))
    first, second = (torch.split(words_of_units, -(-int(count) // number), -1) for words_of_units in units)
    return list(zip(first, second, strict=True))


def apply_mask(values: Tensor, kept: Tensor, p: float) -> Tensor:
    """Zero what is not kept and scale the rest by 1 / (1 - p)."""
    # A product, not a selection: branching on an unpredictable mask costs ten times as much on a CPU. Of the two it is
    # the mask that is scaled, as torch does it: that of a feature is small, and halves are rounded in the same way.
    return values * (kept.to(values.dtype) * masks.scale(p))
