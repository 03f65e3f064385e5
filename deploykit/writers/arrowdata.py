"""Batches as Arrow data and back, for every writer that goes through pyarrow.

An output of fixed shape becomes fixed-size lists, one level for each dimension; a dynamic dimension becomes a list. The
values of a column lie in one flat buffer, which is the array's own memory: there are no Python objects in between.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, pairwise
from typing import Any

import numpy as np

from deploykit.tensors import TensorSpec
from deploykit.writers.base import SAMPLE_ID, TEXT, Batch, checked, grouped

__all__ = ["batches_from", "column_of", "flat_of", "schema_of", "tables_of"]

Array = np.ndarray[Any, Any]

GROUP_ROWS, GROUP_BYTES, GROUP_BATCHES = 65_536, 16 * 2**20, 1024
"""A row group of Parquet or a record batch of Arrow: what is in memory at a time, and what a reader gets at a time."""


def schema_of(specs: Sequence[TensorSpec], *, fixed: bool = True) -> Any:
    """The ``pyarrow.Schema``: ``sample_id``, then the outputs; with ``fixed=False`` every list is of variable size."""
    import pyarrow as pa

    fields = [pa.field(spec.name, _type(spec, fixed), nullable=spec.dtype == TEXT) for spec in specs]
    return pa.schema([pa.field(SAMPLE_ID, pa.int64(), nullable=False), *fields])


def _type(spec: TensorSpec, fixed: bool) -> Any:
    import pyarrow as pa

    made = pa.string() if spec.dtype == TEXT else pa.from_numpy_dtype(spec.numpy_dtype)
    for size in reversed(spec.row_shape):
        item = pa.field("element", made, nullable=spec.dtype == TEXT)
        made = pa.list_(item, size) if fixed and isinstance(size, int) and size else pa.list_(item)
    return made


def tables_of(specs: Sequence[TensorSpec], batches: Iterable[Batch]) -> Iterator[Any]:
    """The rows as ``pyarrow.Table`` of at most 65,536 rows and about 16 MiB each; no value is copied."""
    import pyarrow as pa

    schema = schema_of(specs)
    batches = filter(len, batches)
    first = next(batches, None)
    if first is None:
        return
    rows = min(GROUP_ROWS, GROUP_BATCHES * len(first))
    for group in grouped(chain([first], batches), rows, GROUP_BYTES):
        parts = [_record_batch(specs, schema, checked(specs, batch)) for batch in group]
        yield pa.Table.from_batches(parts, schema)


def _record_batch(specs: Sequence[TensorSpec], schema: Any, batch: Batch) -> Any:
    import pyarrow as pa

    arrays = [batch.sample_ids, *(batch.outputs[spec.name] for spec in specs)]
    return pa.RecordBatch.from_arrays(list(map(column_of, arrays, schema.types)), schema=schema)


def column_of(array: Array, kind: Any) -> Any:
    """An array ``(n, ...)`` as ``pyarrow.Array`` of ``n`` values or nested lists of the given type."""
    return _nested(flat_of(array), array.shape, kind)


def flat_of(array: Array) -> Any:
    """All elements of an array as one flat ``pyarrow.Array``."""
    import pyarrow as pa

    if array.dtype == object:
        return pa.array(array.reshape(-1).tolist(), pa.string())
    # Not pyarrow.array(): it would import pandas, if there is one, to see whether this is one of its own.
    flat = np.ascontiguousarray(array).reshape(-1)
    data = np.packbits(flat, bitorder="little") if flat.dtype.kind == "b" else flat
    return pa.Array.from_buffers(pa.from_numpy_dtype(flat.dtype), len(flat), [None, pa.py_buffer(data)])


def _nested(flat: Any, shape: tuple[int, ...], kind: Any) -> Any:
    import pyarrow as pa

    if len(shape) == 1:
        return flat
    inner = _nested(flat, (shape[0] * shape[1], *shape[2:]), kind.value_type)
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(inner, type=kind)
    offsets = flat_of(np.arange(shape[0] + 1, dtype=np.int32) * np.int32(shape[1]))
    return pa.ListArray.from_arrays(offsets, inner, type=kind)


def batches_from(specs: Sequence[TensorSpec], parts: Iterable[Any]) -> Iterator[Batch]:
    """The rows of ``pyarrow.RecordBatch`` objects; a batch ends where a dynamic dimension changes its size.

    Arrays may be read-only views of the Arrow data.
    """
    for part in parts:
        yield from _split(specs, part)


def _split(specs: Sequence[TensorSpec], part: Any) -> Iterator[Batch]:
    columns = {name: part.column(name) for name in [SAMPLE_ID, *(spec.name for spec in specs)]}
    sizes = {spec.name: _row_sizes(columns[spec.name], len(spec.row_shape)) for spec in specs}
    changes = [np.any(found[1:] != found[:-1], axis=1) for found in sizes.values()]  # from one row to the next
    cuts = np.flatnonzero(np.any(changes, axis=0)) + 1
    for start, stop in pairwise([0, *cuts.tolist(), part.num_rows]):
        if stop > start:
            yield Batch(
                sample_ids=_values(columns[SAMPLE_ID][start:stop], np.dtype(np.int64)),
                outputs={
                    spec.name: _rows(spec, columns[spec.name][start:stop], sizes[spec.name][start]) for spec in specs
                },
            )


def _row_sizes(array: Any, dimensions: int) -> Array:
    """How large each dimension is in each row, ``(n, dimensions)``; in a row without elements inner ones are 0."""
    import pyarrow.compute as pc

    first = np.arange(len(array))
    sizes = np.zeros((len(array), dimensions), np.int64)
    there = np.ones(len(array), np.bool_)
    for dimension in range(dimensions):
        lengths = _values(pc.list_value_length(array), np.dtype(np.int32))
        starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        sizes[there, dimension] = lengths[first[there]]
        there = sizes[:, dimension] > 0
        first = starts[first]
        array = array.flatten()
    return sizes


def _rows(spec: TensorSpec, array: Any, sizes: Array) -> Array:
    rows = len(array)
    for _ in spec.row_shape:
        array = array.flatten()
    shape = [int(n) if isinstance(d, str) else d for d, n in zip(spec.row_shape, sizes, strict=True)]
    if spec.dtype == TEXT:
        texts = np.empty(len(array), object)
        texts[:] = array.to_pylist()
        return texts.reshape(rows, *shape)
    return _values(array, spec.numpy_dtype).reshape(rows, *shape)


def _values(array: Any, dtype: np.dtype[Any]) -> Array:
    """The memory of a flat ``pyarrow.Array`` as numpy array."""
    import pyarrow as pa

    if dtype.kind == "b":
        return _values(array.cast(pa.uint8()), np.dtype(np.uint8)).view(np.bool_)
    buffer = array.buffers()[1]
    if buffer is None or not len(array):
        return np.empty(0, dtype)
    return np.frombuffer(buffer, dtype, len(array), array.offset * dtype.itemsize)
