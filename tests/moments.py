"""Do two samplers have the same distribution? Compared by means, variances and cross moments, each with a z value.

Both sides give draws (n, dimensions), one vector for each draw. Compared are, after centring by the mean of all draws:

* ``mean``: each element's mean;
* ``variance``: the mean of its square;
* ``cross``: the mean product of each pair of elements, of one row and of two: sharing and independence within a draw;
* ``next``: the mean product of each element and each element of the draw after it: independence of draws.

Each statistic is a mean over the draws of one side less that of the other side, divided by its standard error (Welch).
It is standard normal when the distributions are the same, because a mean of thousands of bounded numbers is normal. The
sides differ when any of them lies beyond ``LIMIT``: two-sided 2e-9 each, so 1e-4 in 50,000 statistics.

Power: a statistic is beyond the limit with a probability of 0.99 when the true difference is ``LIMIT + 2.33`` standard
errors. With 20,000 draws on each side that is 0.083 standard deviations of an element for its mean, 0.083 for the
correlation of two independent elements, and for the variance of a normal element 12 %.
``tests/exporters/test_evidence.py`` shows the test rejecting files that are wrong on purpose.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["LIMIT", "Comparison", "compare"]

LIMIT = 6.0

Values = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All z values, by statistic; ``random`` tells whether the second side, the oracle, varies at all."""

    z: dict[str, Values]
    random: bool

    @property
    def largest(self) -> float:
        return max(float(np.abs(values).max(initial=0)) for values in self.z.values())

    @property
    def count(self) -> int:
        return sum(values.size for values in self.z.values())

    def differs(self) -> list[str]:
        """The statistics that are beyond the limit."""
        return [name for name, values in self.z.items() if np.abs(values).max(initial=0) > LIMIT]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Means:
    """Means over the draws, and the squares of their standard errors."""

    means: Values
    errors: Values


def compare(ours: Values, theirs: Values) -> Comparison:
    """Two sides (n, dimensions) and (m, dimensions); elements that are constant and equal on both sides are equal."""
    sides = [np.asarray(side, np.float64) for side in (ours, theirs)]
    centre = (sides[0].mean(0) + sides[1].mean(0)) / 2
    scale = np.abs(centre).max() + max(side.std() for side in sides)
    statistics = [_statistics(side - centre) for side in sides]
    # Rounding of values that do not vary is no difference: 1e-5 of the scale, as everywhere.
    floors = {
        "mean": 1e-5 * scale,
        "variance": (1e-5 * scale) ** 2,
        "cross": (1e-5 * scale) ** 2,
        "next": (1e-5 * scale) ** 2,
    }
    z = {name: _z(statistics[0][name], statistics[1][name], floor) for name, floor in floors.items()}
    return Comparison(z=z, random=bool((sides[1].std(0) > 1e-4 * scale).any()))


def _statistics(centred: Values) -> dict[str, _Means]:
    # The mean of an element is known to this test by itself; without it, a shift would show in every product.
    around = centred - centred.mean(0)
    pairs = np.triu_indices(centred.shape[1], 1)
    together = _products(around, around)
    return {
        "mean": _means(centred),
        "variance": _means(around**2),
        "cross": _Means(means=together.means[pairs], errors=together.errors[pairs]),
        "next": _products(around[:-1], around[1:]),
    }


def _means(values: Values) -> _Means:
    return _Means(means=values.mean(0), errors=values.var(0) / len(values))


def _products(left: Values, right: Values) -> _Means:
    """Of the product of each element of one side and each of the other, which never lie in memory one by one."""
    means, squares = left.T @ right / len(left), (left**2).T @ right**2 / len(left)
    return _Means(means=means, errors=np.maximum(squares - means**2, 0) / len(left))


def _z(ours: _Means, theirs: _Means, floor: float) -> Values:
    return np.asarray((ours.means - theirs.means) / np.maximum(np.sqrt(ours.errors + theirs.errors), floor))
