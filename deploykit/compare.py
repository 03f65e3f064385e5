"""How far two sets of outputs are apart, the same measure at export and on the host."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Difference", "default_tolerance", "worst_difference", "worst_of"]

_UNIT_SCALE = ("std", "probs_std", "entropy", "mutual_information", "total_std")


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The worst element of one output. ``error`` is relative to the scale of the output, not of the element."""

    output: str
    index: tuple[int, ...]
    got: float
    wanted: float
    error: float

    def __str__(self) -> str:
        place = ", ".join(map(str, self.index))
        values = f"is {self.got:.9g}, expected {self.wanted:.9g}"
        return f"{self.output}[{place}] {values} (error {self.error:.2e} of the output's scale)"


def default_tolerance(dtype: str) -> float:
    """The error that rounding may cause, relative to the largest value of an output: 1e-4 for float32."""
    return 1e-2 if dtype in ("float16", "bfloat16") else 1e-4


def worst_difference(name: str, statistic: str, got: NDArray[Any], wanted: NDArray[Any]) -> Difference:
    """Compare one output with its oracle.

    The error of an element is ``|got - wanted|`` divided by the largest ``|wanted|`` of the output; for ``std``,
    ``probs_std``, ``total_std``, ``entropy`` and ``mutual_information``, which are made of differences of larger
    numbers, by 1 where that is more. Equal infinities and NaN in the same place are no error. Integers must be equal. A
    wrong shape is an infinite error.
    """
    if got.shape != wanted.shape:
        return Difference(
            output=f"{name} {list(got.shape)} for {list(wanted.shape)}",
            index=(),
            got=np.nan,
            wanted=np.nan,
            error=np.inf,
        )
    if got.size == 0:
        return Difference(output=name, index=(), got=0.0, wanted=0.0, error=0.0)
    errors = _errors(statistic, got, wanted)
    index = np.unravel_index(int(np.argmax(errors)), errors.shape)
    return Difference(
        output=name,
        index=tuple(map(int, index)),
        got=float(got[index]),
        wanted=float(wanted[index]),
        error=float(errors[index]),
    )


def _errors(statistic: str, got: NDArray[Any], wanted: NDArray[Any]) -> NDArray[np.float64]:
    if not np.issubdtype(wanted.dtype, np.floating):
        return np.where(got == wanted, 0.0, np.inf)
    a, b = got.astype(np.float64, copy=False), wanted.astype(np.float64, copy=False)
    with np.errstate(invalid="ignore", over="ignore"):
        distance = np.abs(a - b)
    if np.isfinite(distance.max()):
        # Every value is finite, as nearly always: large outputs are spared the passes below.
        distance /= _scale(statistic, max(b.max(), -b.min()))
        return distance
    finite = np.abs(b[np.isfinite(b)])
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    relative = distance / _scale(statistic, finite.max() if finite.size else 0.0)
    return np.where(same, 0.0, np.where(np.isfinite(relative), relative, np.inf))


def _scale(statistic: str, largest: float) -> float:
    return max(float(largest), 1.0 if statistic in _UNIT_SCALE else 0.0) or 1.0


def worst_of(
    statistics: Mapping[str, str], got: Mapping[str, NDArray[Any]], wanted: Mapping[str, NDArray[Any]]
) -> list[Difference]:
    """The worst difference of every output, in the order of ``statistics`` (name to statistic)."""
    return [worst_difference(name, statistic, got[name], wanted[name]) for name, statistic in statistics.items()]
