"""Lists of Arrow as rows of different lengths."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploykit.errors import DataError
from deploykit.sources.arrowvalues import input_array, logical, refuse_null
from deploykit.sources.place import Place
from deploykit.sources.ragged import Ragged
from deploykit.tensors import TensorSpec

__all__ = ["is_list", "ragged_array"]


def ragged_array(column: Any, spec: TensorSpec, name: str, place: Place, fill: Any, *, allow_nan: bool) -> Ragged:
    """One column of lists as the rows of an input, each of its own length.

    Raises:
        DataError: a null, a row longer than the model takes, or a value that the dtype does not hold; names the row.
    """
    import pyarrow as pa

    while isinstance(column.type, pa.BaseExtensionType) or pa.types.is_dictionary(column.type):
        is_extension = isinstance(column.type, pa.BaseExtensionType)
        column = logical(column, name, place) if is_extension else column.dictionary_decode()
    refuse_null(column, name, place, 1)
    if pa.types.is_fixed_size_list(column.type):
        ends = np.arange(len(column) + 1, dtype=np.int64) * column.type.list_size
    else:
        ends = column.offsets.to_numpy().astype(np.int64)
    ends, size = ends - ends[0], spec.row_shape[0]
    longer = np.flatnonzero(np.diff(ends) > size) if isinstance(size, int) else np.zeros(0, np.int64)
    if len(longer):
        row = int(longer[0])
        raise place.error(name, row, f"{ends[row + 1] - ends[row]} values, the model takes {size}; cut the row")
    step = TensorSpec(name=spec.name, dtype=spec.dtype, shape=("steps", *spec.row_shape[1:]))
    flat = column.flatten()
    if not len(flat):  # Of lists in them nobody can tell how long they would be.
        empty = np.empty((0, *(d for d in spec.row_shape[1:] if isinstance(d, int))), spec.numpy_dtype)
        return Ragged(values=empty, ends=ends, fill=fill, size=size if isinstance(size, int) else None)
    values = input_array(flat, step, name, _Steps(place, ends), allow_nan=allow_nan)
    return Ragged(values=values, ends=ends, fill=fill, size=size if isinstance(size, int) else None)


class _Steps(Place):
    """The steps of rows of different lengths, of which ``ends`` tells where each row begins."""

    def __init__(self, place: Place, ends: NDArray[np.int64]) -> None:
        super().__init__(place.what, place.first_row)
        self._ends = ends

    def error(self, column: str, row: int, problem: str) -> DataError:
        return super().error(column, int(np.searchsorted(self._ends, row, side="right")) - 1, problem)


def is_list(kind: Any) -> bool:
    """Whether the values of an Arrow type are lists."""
    import pyarrow as pa

    while isinstance(kind, pa.BaseExtensionType) or pa.types.is_dictionary(kind):
        kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind.value_type
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))
