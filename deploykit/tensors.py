"""The shape and dtype of one named tensor, as users write it and as the manifest keeps it."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from deploykit.errors import DataError, UsageError

__all__ = ["DTYPES", "TEXT", "Allowed", "TensorSpec", "check_inputs", "empty_rows", "parse_spec", "unmasked"]

DTYPES = (
    "float16", "float32", "float64",
    "int8", "int16", "int32", "int64", "uint8", "bool",
)  # fmt: skip
"""The dtypes that numpy, torch and ONNX Runtime all hold."""

TEXT = "string"
"""The dtype of text that goes with the predictions: in numpy an object array of ``str``. No model's tensor has it."""

_SPEC = re.compile(r"^(?P<name>[A-Za-z_]\w*):(?P<dtype>\w+)\[(?P<shape>[^\]]*)\]$")
_DIMENSION = re.compile(r"[A-Za-z_]\w*")
_SIZE = re.compile(r"0*[1-9][0-9]{0,17}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """Which integers an input may hold, ``min`` and ``max`` included, because ``module`` looks something up by them.

    ``operation`` is that of ATen, such as ``embedding``. ``first_column`` to ``last_column`` are the places along the
    second dimension of the input that this holds for; None for all values.
    """

    min: int
    max: int
    module: str
    operation: str
    first_column: int | None = None
    last_column: int | None = None

    def __str__(self) -> str:
        """``allowed are 0 to 99, because words has 100 rows``."""
        there = f"{self.max + 1:,}"
        module = "the module" if self.module == "(root)" else self.module
        # The module itself holds more than the table.
        has_rows = "embedding" in self.operation and module == self.module
        why = f"has {there} rows" if has_rows else f"looks up one of {there} ({self.operation})"
        return f"allowed are {self.min} to {self.max}, because {module} {why}"

    def of(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The values of an array of the input, (batch, ...), that this holds for: a view, (batch, ...)."""
        return array if self.last_column is None else array[:, self.first_column : self.last_column + 1]

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One tensor of a model.

    ``shape`` holds an int for a fixed dimension and a name for a dynamic one; the first dimension is the batch.
    ``allowed`` says which values an integer input may hold, as far as that is known.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    allowed: tuple[Allowed, ...] = ()

    def __str__(self) -> str:
        return f"{self.name}:{self.dtype}[{','.join(map(str, self.shape))}]"

    @property
    def row_shape(self) -> tuple[int | str, ...]:
        """The shape of one row: everything after the batch dimension."""
        return self.shape[1:]

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        return np.dtype(object if self.dtype == TEXT else self.dtype)

    def with_sizes(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The concrete shape when each dynamic dimension has the size given for its name."""
        return tuple(d if isinstance(d, int) else sizes[d] for d in self.shape)

    def to_json(self) -> dict[str, Any]:
        data = {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}
        return data | {"allowed": [each.to_json() for each in self.allowed]} if self.allowed else data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "TensorSpec":
        allowed = tuple(Allowed(**each) for each in data.get("allowed", ()))
        return cls(name=data["name"], dtype=data["dtype"], shape=tuple(data["shape"]), allowed=allowed)


def empty_rows(spec: TensorSpec) -> np.ndarray[Any, Any]:
    """No rows of a tensor; its dynamic dimensions have the size 0."""
    shape = tuple(d if isinstance(d, int) else 0 for d in spec.row_shape)
    return np.empty((0, *shape), object if spec.dtype == TEXT else spec.numpy_dtype)


def parse_spec(text: str) -> TensorSpec:
    """Read ``name:dtype[batch,64]``.

    Raises:
        UsageError: the text has another form, an unknown dtype, or a dimension that is neither a positive
            number nor a name.

    >>> parse_spec("tokens:int64[batch,seq]").shape
    ('batch', 'seq')
    """
    match = _SPEC.match(text.replace(" ", ""))
    if match is None:
        raise UsageError(f"input {text!r}: expected NAME:DTYPE[DIM,DIM,...], for example x:float32[batch,64]")
    if match["dtype"] not in DTYPES:
        raise UsageError(f"input {text!r}: unknown dtype {match['dtype']!r}; known are {', '.join(DTYPES)}")
    shape = tuple(_dimension(text, part) for part in match["shape"].split(",") if part)
    if not shape or isinstance(shape[0], int):
        raise UsageError(
            f"input {text!r}: the first dimension is the batch and must be a name, "
            f"for example {match['name']}:{match['dtype']}[batch,...]"
        )
    return TensorSpec(name=match["name"], dtype=match["dtype"], shape=shape)


def _dimension(text: str, part: str) -> int | str:
    if _SIZE.fullmatch(part):
        return int(part)
    if _DIMENSION.fullmatch(part):
        return part
    raise UsageError(
        f"input {text!r}: dimension {part!r} is neither a positive number nor a name; write the size, or a name of "
        "your choice, as in x:float32[batch,time], where it varies"
    )


def check_inputs(
    specs: Sequence[TensorSpec], inputs: Mapping[str, np.ndarray[Any, Any]], *, first_row: int | None = None
) -> dict[str, int]:
    """Check one batch against the model's inputs; return the size of every dynamic dimension.

    ``first_row`` is the global number of the batch's first row, None for whole arrays; it is used in messages only.

    Raises:
        DataError: a missing or unexpected name, a wrong dtype, a wrong number of dimensions, a wrong or
            inconsistent size.
    """
    names = [spec.name for spec in specs]
    if set(inputs) != set(names):
        raise DataError(
            f"the model takes the inputs {names}, got {sorted(inputs)}: "
            f"missing {sorted(set(names) - set(inputs))}, unexpected {sorted(set(inputs) - set(names))}"
        )
    sizes: dict[str, int] = {}
    for spec in specs:
        _check_one(spec, inputs[spec.name], sizes, first_row)
    return sizes


def _check_one(spec: TensorSpec, array: np.ndarray[Any, Any], sizes: dict[str, int], first_row: int | None) -> None:
    where = f"input {spec.name!r}" if first_row is None else f"input {spec.name!r} (rows from {first_row})"
    if array.dtype != spec.numpy_dtype:
        raise DataError(
            f"{where}: dtype {array.dtype}, the model takes {spec}; "
            f"convert it, for example array.astype({spec.dtype!r})"
        )
    if array.ndim != len(spec.shape):
        raise DataError(f"{where}: {array.ndim} dimensions {list(array.shape)}, the model takes {spec}")
    for size, dimension in zip(array.shape, spec.shape, strict=True):
        wanted = sizes.setdefault(dimension, size) if isinstance(dimension, str) else dimension
        if size != wanted:
            raise DataError(
                f"{where}: dimension {dimension!r} is {size}, expected {wanted}; got {list(array.shape)} for {spec}"
            )


def unmasked(what: str, values: Any) -> np.ndarray[Any, Any]:
    """The values as a plain array.

    Raises:
        DataError: some of them are masked: an array without a mask holds whatever lies under it.
    """
    for part in _masked_arrays(values):
        if masked := int(np.ma.getmaskarray(part).sum()):
            raise DataError(
                f"{what}: {masked} of {part.size} values are masked, and a mask is not taken over; expected a value in "
                "each place: fill them with array.filled(value)"
            )
    return np.asarray(values)


def _masked_arrays(values: Any) -> Iterator[Any]:
    """Those in nested lists too, of which numpy makes an array that knows nothing of the masks."""
    if isinstance(values, np.ma.MaskedArray):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            # Of a list of plain numbers nothing is looked at twice.
            if not isinstance(value, int | float | str):
                yield from _masked_arrays(value)
