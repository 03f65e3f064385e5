"""Rows of different lengths, padded at their ends to the longest of those that are read together."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploykit.errors import UsageError
from deploykit.tensors import TensorSpec

__all__ = ["LENGTH", "Ragged", "fills_of", "padded_together", "parse_pad", "plain_fills", "told_lengths"]

Array = np.ndarray[Any, Any]

LENGTH = ".length"
"""Behind the name of an input: the column that says how long each row was before it was padded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ragged:
    """Rows one after the other.

    Attributes:
        values: (total, ...) the steps of all rows.
        ends: (rows + 1) int64, where the rows begin in ``values`` and the last one ends.
        fill: what stands behind the end of a row, in the dtype of ``values``.
        size: the steps of a row where the model fixes them; None pads to the longest row.
    """

    values: Array
    ends: NDArray[np.int64]
    fill: Any
    size: int | None

    def __getitem__(self, rows: slice) -> "Ragged":
        return Ragged(values=self.values, ends=self.ends[rows.start : rows.stop + 1], fill=self.fill, size=self.size)

    def padded(self) -> Array:
        """(rows, steps, ...), at least one step."""
        lengths = np.diff(self.ends)
        steps = int(lengths.max(initial=1)) if self.size is None else self.size
        found = np.full((len(lengths), steps, *self.values.shape[1:]), self.fill, self.values.dtype)
        found[np.arange(steps) < lengths[:, None]] = self.values[self.ends[0] : self.ends[-1]]
        return found


def padded_together(parts: Sequence[Array], fill: Any) -> Array:
    """The rows of all parts (rows, steps, ...), as many steps as the longest part has."""
    if len(parts) == 1:
        return parts[0]
    steps = max(part.shape[1] for part in parts)
    rows = [np.full((len(part), steps, *part.shape[2:]), fill, part.dtype) for part in parts]
    for wide, part in zip(rows, parts, strict=True):
        wide[:, : part.shape[1]] = part
    return np.concatenate(rows)


def fills_of(pad: Mapping[str, float], inputs: Sequence[TensorSpec]) -> dict[str, Any]:
    """By input what its rows are filled with, in its dtype.

    Raises:
        UsageError: no such input, one whose rows have no steps, or a value that its dtype does not hold.
    """
    specs = {spec.name: spec for spec in inputs}
    unknown = sorted(set(pad) - set(specs))
    if unknown:
        raise UsageError(f"--pad {unknown[0]}: the inputs of the model are {list(specs)}; name one")
    found = {}
    for name, value in pad.items():
        spec = specs[name]
        if not spec.row_shape:
            raise UsageError(f"--pad {name}: a row of {spec} is one number, which has no end to pad; leave it out")
        with np.errstate(all="ignore"):
            fill = np.asarray(value).astype(spec.numpy_dtype)
        # A fraction is rounded to the dtype, as in a text.
        if not np.isfinite(fill) or (fill.dtype.kind != "f" and fill != value):
            raise UsageError(f"--pad {name}={value}: {spec.dtype} does not hold it; give a number that it holds")
        for allowed in (each for each in spec.allowed if each.last_column is None):
            if not allowed.min <= fill <= allowed.max:
                raise UsageError(f"--pad {name}={value}: {allowed}; pad with one of these")
        found[name] = fill
    return found


def told_lengths(pad: Collection[str], inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> tuple[str, ...]:
    """The padded inputs that give an output its size, which then has values of padding that nobody could tell from
    others. The rows of inputs with one dynamic dimension are equally long: the first stands for all.
    """
    sizes = {size for spec in outputs for size in spec.row_shape}
    # A size such as steps // 2 has a name of its own, and may follow from any.
    derived = any(isinstance(size, str) for size in sizes.difference(*(spec.row_shape for spec in inputs)))
    found: dict[int | str, str] = {}
    for spec in (spec for spec in inputs if spec.name in pad and spec.row_shape):
        size = spec.row_shape[0]
        if size in sizes or (derived and isinstance(size, str)):
            found.setdefault(size if isinstance(size, str) else spec.name, spec.name)
    return tuple(found.values())


def parse_pad(texts: Sequence[str]) -> dict[str, float]:
    """Read ``ids=0``, or ``ids`` for 0, one text for each input.

    Raises:
        UsageError: another form, or an input twice.

    >>> parse_pad(["ids", "mask=0", "x=-1.5"])
    {'ids': 0, 'mask': 0, 'x': -1.5}
    """
    found: dict[str, float] = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        try:
            number = _number(value) if equals else 0
        except ValueError:
            raise UsageError(f"--pad {text!r}: expected INPUT or INPUT=NUMBER, such as input_ids=0") from None
        if not name or name in found:
            raise UsageError(f"--pad {text!r}: expected each input once, as INPUT=NUMBER, such as input_ids=0")
        found[name] = number
    return found


def _number(text: str) -> float:
    """An integer as it is: beyond 2**53 a float would be another one."""
    try:
        return int(text)
    except ValueError:
        return float(text)


def plain_fills(pad: Mapping[str, Any]) -> dict[str, float]:
    """What a job keeps of them: Python's own numbers, also where numpy's were given."""
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in pad.items()}
