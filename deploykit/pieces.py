"""Statistics of draws that come in pieces, not the same number of them for every row.

Every row has its own count. Sums are kept in float64; squared deviations add by the rule of Chan, Golub and LeVeque
("Algorithms for computing the sample variance", 1983). The definitions are those of ``deploykit.statistics``.
"""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploykit.errors import ArtifactError
from deploykit.manifest import OutputSpec
from deploykit.statistics import class_entropy

__all__ = ["Pieces"]

Array = NDArray[Any]

_SPREAD = {"std": "mean", "probs_std": "probs"}
"""A standard deviation, and the mean that it is taken about."""

_NEEDS: Mapping[str, tuple[str, ...]] = {
    "value": (),
    "draws": (),
    "mean": (),
    "probs": (),
    "std": ("mean",),
    "probs_std": ("probs",),
    "entropy": ("probs",),
    "mutual_information": ("probs", "entropy"),
    "aleatoric_std": (),
    "total_std": ("std", "mean", "aleatoric_std"),
}
"""The statistics that can be combined, each with those that it is combined from."""


class Pieces:
    """The outputs of ``rows`` rows, collected piece by piece. ``counts`` (rows) int64 holds the draws of each row.

    Raises:
        ArtifactError: an output that cannot be combined, or not without another one.
    """

    def __init__(self, outputs: Sequence[OutputSpec], rows: int = 0) -> None:
        self._sources: dict[str, dict[str, OutputSpec]] = {}
        for output in outputs:
            self._sources.setdefault(output.source, {})[output.statistic] = output
        for source, specs in self._sources.items():
            _check(source, specs)
        self._names = [output.name for output in outputs]
        self._sums = {source: _Sums(specs, rows) for source, specs in self._sources.items()}
        self.counts = np.zeros(rows, np.int64)

    def add(self, rows: NDArray[np.int64], found: Mapping[str, Array], draws: int) -> None:
        """Take in the outputs ``found`` of ``draws`` more draws of the rows with these places."""
        for source, specs in self._sources.items():
            named = {statistic: found[spec.name] for statistic, spec in specs.items()}
            self._sums[source].add(rows, self.counts[rows], draws, named)
        self.counts[rows] += draws

    def standard_error(self) -> Array:
        """(rows) float64: the largest standard error of a mean over draws among the elements of a row.

        Of an output with probabilities those count, of any other the values. NaN where one is NaN.
        """
        errors = [sums.standard_error(self.counts) for sums in self._sums.values() if sums.draws_vary]
        return np.asarray(np.max(errors, axis=0))

    def outputs(self) -> dict[str, Array]:
        """The outputs over all draws that were added, in the order and the dtypes of the manifest."""
        found = {
            specs[statistic].name: value.astype(specs[statistic].tensor.numpy_dtype)
            for source, specs in self._sources.items()
            for statistic, value in self._sums[source].statistics(self.counts).items()
        }
        return {name: np.ascontiguousarray(found[name]) for name in self._names}


def _check(source: str, specs: Mapping[str, OutputSpec]) -> None:
    for statistic, spec in specs.items():
        if statistic not in _NEEDS:
            raise ArtifactError(
                f"output {spec.name!r}: {statistic!r} of draws that come in pieces cannot be combined; "
                "leave --draws-until and --draws-per-pass out"
            )
        missing = [f"{source}.{other}" for other in _NEEDS[statistic] if other not in specs]
        if missing:
            raise ArtifactError(
                f"output {spec.name!r}: draws that come in pieces need {', '.join(missing)} beside it, which the "
                "artifact has not; export it again with this deploykit"
            )


class _Sums:
    """The running sums of one output of the module. Arrays are (rows, ...) float64, made with the first piece."""

    def __init__(self, specs: Mapping[str, OutputSpec], rows: int) -> None:
        self._specs, self._rows = specs, rows
        self._sums: dict[str, Array] = {}
        self._draws: list[Array] = []

    @property
    def draws_vary(self) -> bool:
        return any(spread in self._specs for spread in _SPREAD)

    def add(self, rows: Array, before: Array, draws: int, found: Mapping[str, Array]) -> None:
        wide = {name: value.astype(np.float64) for name, value in found.items() if name not in ("value", "draws")}
        for spread, centre in _SPREAD.items():
            if spread in wide:
                self._add_squares(rows, before, draws, wide[spread], wide[centre], (spread, centre))
        for name in ("mean", "probs"):
            if name in wide:
                self._sum(name, wide[name])[rows] += wide[name] * draws
        if "mutual_information" in wide:
            expected = wide["entropy"] - wide["mutual_information"]
            self._sum("expected", expected)[rows] += expected * draws
        if "aleatoric_std" in wide:
            self._sum("variance", wide["aleatoric_std"])[rows] += wide["aleatoric_std"] ** 2 * draws
        if "value" in found:
            # It does not vary: the first piece holds every row.
            self._sums.setdefault("value", found["value"])
        if "draws" in found:
            self._draws.append(found["draws"])

    def _add_squares(
        self, rows: Array, before: Array, draws: int, spread: Array, centre: Array, names: tuple[str, str]
    ) -> None:
        squares = self._sum(names[0], spread)
        if draws > 1:
            squares[rows] += spread**2 * (draws - 1)
        count = _along(before, centre)
        with np.errstate(invalid="ignore", divide="ignore"):
            moved = centre - self._sum(names[1], centre)[rows] / count
        squares[rows] += np.where(count > 0, moved**2 * (count * draws / (count + draws)), 0)

    def _sum(self, name: str, like: Array) -> Array:
        if name not in self._sums:
            self._sums[name] = np.zeros((self._rows, *like.shape[1:]))
        return self._sums[name]

    def standard_error(self, counts: Array) -> Array:
        name = "probs_std" if "probs_std" in self._specs else "std"
        deviation = self.statistics(counts, only=(name,))[name]
        deviation = deviation.reshape(len(counts), prod(deviation.shape[1:]))
        return np.asarray(deviation.max(axis=1, initial=0) / np.sqrt(counts))

    def statistics(self, counts: Array, only: Sequence[str] | None = None) -> dict[str, Array]:
        """By statistic, those that the artifact has, or ``only`` some."""
        found: dict[str, Array] = {}
        for statistic in self._specs if only is None else only:
            match statistic:
                case "value":
                    found[statistic] = self._sums["value"]
                case "draws":
                    found[statistic] = np.concatenate(self._draws, axis=1)
                case "mean" | "probs":
                    found[statistic] = self._mean(statistic, counts)
                case "std" | "probs_std":
                    found[statistic] = self._deviation(statistic, counts)
                case "aleatoric_std":
                    found[statistic] = np.sqrt(self._mean("variance", counts))
                case "total_std":
                    found[statistic] = np.sqrt(self._deviation("std", counts) ** 2 + self._mean("variance", counts))
                case "entropy":
                    found[statistic] = self._entropy(counts)
                case "mutual_information":
                    difference = self._entropy(counts) - self._mean("expected", counts)
                    found[statistic] = np.maximum(difference, 0)
        return found

    def _mean(self, name: str, counts: Array) -> Array:
        return np.asarray(self._sums[name] / _along(counts, self._sums[name]))

    def _deviation(self, name: str, counts: Array) -> Array:
        squares = self._sums[name]
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(np.sqrt(squares / (_along(counts, squares) - 1)))

    def _entropy(self, counts: Array) -> Array:
        return class_entropy(self._mean("probs", counts), self._specs["probs"].class_axis)


def _along(counts: Array, values: Array) -> Array:
    """The counts (rows) as float64, in a shape that goes with ``values`` (rows, ...)."""
    return counts.astype(np.float64).reshape(-1, *[1] * (values.ndim - 1))
