"""Columns of Arrow as numpy arrays of a model's dtypes and shapes: nothing is lost in silence.

pyarrow is needed by whoever calls these functions, and imported by them alone.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from deploykit.sources.arrowtexts import kept_texts
from deploykit.sources.columns import Column
from deploykit.sources.place import Place
from deploykit.sources.unsigned import KEPT_AS, not_held
from deploykit.tensors import TEXT, TensorSpec

__all__ = [
    "described_columns", "input_array", "kept_array", "logical", "refuse_null", "stacked",
]  # fmt: skip

Array = np.ndarray[Any, Any]

_STACK_ROWS = 1024
"""Rows that are stacked at a time: they stay in the cache, whatever the chunk is."""


def described_columns(schema: Any, hints: Mapping[str, str]) -> list[Column]:
    """The columns of an Arrow schema; ``hints`` say where a column of text has its first text."""
    return [_described(field, hints.get(field.name)) for field in schema]


def _described(field: Any, hint: str | None) -> Column:
    import pyarrow as pa

    shape: list[int | None] = []
    leaf = field.type
    while True:
        if isinstance(leaf, pa.BaseExtensionType):
            leaf = leaf.storage_type
        elif pa.types.is_dictionary(leaf):
            leaf = leaf.value_type
        elif pa.types.is_fixed_size_list(leaf):
            shape.append(leaf.list_size)
            leaf = leaf.value_type
        elif pa.types.is_list(leaf) or pa.types.is_large_list(leaf):
            shape.append(None)
            leaf = leaf.value_type
        else:
            break
    dtype, is_number = _dtype(leaf)
    if dtype == TEXT and shape:
        dtype = None
    sizes = "".join(f"[{'' if size is None else size}]" for size in shape)
    shown = "text" if dtype == TEXT and _is_text(leaf) else f"{dtype if is_number else leaf}{sizes}"
    shown += f", {hint}" if hint and is_number else f" ({hint})" if hint else ""
    kept = TEXT if hint and is_number else KEPT_AS.get(dtype or "", dtype)
    if is_number and not shape and (unit := _meaning(field)):
        kept, shown = None, f"{shown} ({unit})"
    return Column(name=field.name, dtype=dtype, kept=kept, shape=tuple(shape), described=shown, is_number=is_number)


def _meaning(field: Any) -> str | None:
    """The extension type without which a number would not say what it means: of ``pandas.period`` 648 is January 2024.

    It is only in the metadata where nothing in this process has made it known to pyarrow.
    """
    found = (
        getattr(field.type, "extension_name", None) or (field.metadata or {}).get(b"ARROW:extension:name", b"").decode()
    )
    return None if found in ("", "arrow.bool8") else str(found)


def _dtype(leaf: Any) -> tuple[str | None, bool]:
    """The dtype as numpy calls it, and whether it is a number."""
    import pyarrow as pa

    types = pa.types
    if types.is_boolean(leaf):
        return "bool", True
    # Not to_pandas_dtype(), which imports pandas in pyarrow up to 19 and fails where there is none.
    if types.is_integer(leaf):
        return str(leaf), True
    if types.is_floating(leaf):
        return f"float{leaf.bit_width}", True
    # A duration as text would be a bare number, without its unit.
    is_date = types.is_temporal(leaf) and not types.is_duration(leaf) and not types.is_interval(leaf)
    if _is_text(leaf) or is_date or types.is_decimal(leaf):
        return TEXT, False
    return None, False


def _is_text(leaf: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(leaf) or pa.types.is_large_string(leaf) or pa.types.is_string_view(leaf))


def input_array(column: Any, spec: TensorSpec, name: str, place: Place, *, allow_nan: bool) -> Array:
    """One column as the rows of an input, (rows, ...) of the input's dtype; may be a view of Arrow's memory.

    Raises:
        DataError: a null, ragged rows, or a value that the dtype does not hold; names the row.
    """
    flat, sizes = _flattened(column, name, place)
    wanted = spec.row_shape
    _check_sizes(sizes, wanted, name, place)
    shape = sizes if len(sizes) == len(wanted) else [d for d in wanted if isinstance(d, int)]
    values = _numbers(flat, spec.dtype, name, place, max(1, math.prod(sizes)), allow_nan=allow_nan)
    return values.reshape(len(column), *shape)


def stacked(columns: Sequence[Array], dtype: str) -> Array:
    """Columns (rows) side by side: (rows, columns)."""
    rows = len(columns[0])
    table = np.empty((rows, len(columns)), dtype)
    for start in range(0, rows, _STACK_ROWS):
        block = table[start : start + _STACK_ROWS]
        for index, column in enumerate(columns):
            block[:, index] = column[start : start + _STACK_ROWS]
    return table


def kept_array(column: Any, spec: TensorSpec, place: Place) -> Array:
    """One column to keep: numbers in its dtype, text as an object array of ``str``, None where there is none.

    Raises:
        DataError: a null that the dtype does not hold.
    """
    if spec.dtype == TEXT:
        return kept_texts(column, spec.name, place)
    flat, sizes = _flattened(column, spec.name, place)
    values = _numbers(flat, spec.dtype, spec.name, place, max(1, math.prod(sizes)), allow_nan=True, problem=not_held)
    return values.reshape(len(column), *sizes)


def _flattened(column: Any, name: str, place: Place) -> tuple[Any, list[int]]:
    """The innermost values, and the size of each level of lists; every row has the same."""
    import pyarrow as pa

    sizes: list[int] = []
    while True:
        kind = column.type
        if isinstance(kind, pa.BaseExtensionType):
            column = logical(column, name, place)
        elif pa.types.is_dictionary(kind):
            column = column.dictionary_decode()
        elif pa.types.is_nested(kind):
            refuse_null(column, name, place, max(1, math.prod(sizes)))
            sizes.append(_list_size(column, name, place, max(1, math.prod(sizes))))
            column = column.flatten()
        else:
            return column, sizes


def logical(column: Any, name: str, place: Place) -> Any:
    """The values of an extension type; those of a tensor in the order of its dimensions, whatever that in memory is."""
    import pyarrow as pa

    order = getattr(column.type, "permutation", None)
    if order is None or list(order) == sorted(order):
        return column.storage
    refuse_null(column.storage, name, place, 1)
    places = np.arange(math.prod(column.type.shape)).reshape(column.type.shape).transpose(order).reshape(-1)
    rows = np.arange(len(column))[:, None] * len(places)
    values = column.storage.flatten().take(pa.array((rows + places).reshape(-1)))
    return pa.FixedSizeListArray.from_arrays(values, len(places))


def _list_size(column: Any, name: str, place: Place, per_row: int) -> int:
    import pyarrow as pa

    if pa.types.is_fixed_size_list(column.type):
        return int(column.type.list_size)
    if not len(column):
        return 0
    lengths = np.diff(column.offsets.to_numpy())
    other = np.flatnonzero(lengths != lengths[0])
    if len(other):
        row = int(other[0]) // per_row
        raise place.error(
            name,
            row,
            f"{lengths[other[0]]} values, row {place.first_row} has {lengths[0]}; pad the rows to one size, or let "
            "--pad do it in a new run directory",
        )
    return int(lengths[0])


def _check_sizes(sizes: list[int], wanted: tuple[int | str, ...], name: str, place: Place) -> None:
    whole = [size for size in wanted if isinstance(size, int)]
    if len(sizes) == len(wanted):
        fits = all(isinstance(want, str) or want == size for want, size in zip(wanted, sizes, strict=True))
    else:
        fits = len(whole) == len(wanted) and math.prod(sizes) == math.prod(whole)
    if not fits:
        raise place.error(name, 0, f"a list of {sizes} values, the model takes {list(wanted)} per row; mend the data")


def refuse_null(column: Any, name: str, place: Place, per_row: int) -> None:
    """Raises:
    DataError: a value is null; names its row, of which there are ``per_row`` values.
    """
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0]) // per_row
        raise place.error(name, row, _null())


def _null(*, is_kept: bool = False, may_be_nan: bool = False) -> str:
    kept = ", or give the column as floats or text, or leave it out of --keep," if is_kept else ""
    lets = "with --nan allow, which lets it through, or " if may_be_nan else ""
    return (
        f"no value (null); fill it in the data{kept} and name a new run directory, or give the same command again "
        f"{lets}with --on-error skip, which leaves such rows out"
    )


def _not_taken(value: Any, dtype: str) -> str:
    return f"{value}, which {dtype} does not hold; the model takes {dtype}"


def _numbers(
    flat: Any, dtype: str, name: str, place: Place, per_row: int,
    *, allow_nan: bool, problem: Callable[[Any, str], str] = _not_taken,
) -> Array:  # fmt: skip
    import pyarrow as pa

    if flat.null_count and not (allow_nan and np.dtype(dtype).kind == "f"):
        row = int(np.flatnonzero(flat.is_null().to_numpy(zero_copy_only=False))[0]) // per_row
        raise place.error(name, row, _null(is_kept=problem is not_held, may_be_nan=np.dtype(dtype).kind == "f"))
    missing: Array | None = None
    if flat.null_count and not pa.types.is_floating(flat.type):
        missing = flat.is_null().to_numpy(zero_copy_only=False)
        flat = flat.fill_null(False if pa.types.is_boolean(flat.type) else 0)
    array: Array = flat.to_numpy(zero_copy_only=False)
    if array.dtype == np.dtype(dtype):
        return array
    cast, lost = _cast(array, np.dtype(dtype))
    if lost is not None and lost.any():
        at = int(np.flatnonzero(lost)[0])
        raise place.error(name, at // per_row, problem(array[at], dtype))
    if missing is not None:
        cast[missing] = np.nan
    return cast


def _cast(array: Array, dtype: np.dtype[Any]) -> tuple[Array, Array | None]:
    """The values in a dtype and which of them it does not hold: floats may be rounded, where that was allowed, but not
    to infinity; all else must be held exactly.
    """
    with np.errstate(all="ignore"):
        cast = array.astype(dtype)
        if array.dtype.kind != "f":
            return cast, _changed(array, cast)
        return cast, np.isfinite(array) & ~np.isfinite(cast) if dtype.itemsize < array.dtype.itemsize else None


def _changed(array: Array, cast: Array) -> Any:
    """Where a cast of integers is not exact. A float that was rounded up out of the range does not come back."""
    back = cast.astype(array.dtype)
    changed = back != array
    if cast.dtype.kind == "f":
        changed |= ~np.isfinite(cast)
        if array.dtype.itemsize == 8:
            changed |= cast.astype(np.float64) >= float(np.iinfo(array.dtype).max)
    elif array.dtype.kind == "u" and cast.dtype.kind == "i":
        changed |= cast < 0
    elif array.dtype.kind == "i" and cast.dtype.kind == "u":
        changed |= array < 0
    return changed
