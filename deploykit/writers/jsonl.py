"""JSON Lines: an object for each row."""

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from deploykit.tensors import TensorSpec
from deploykit.writers.arrowdata import batches_from, flat_of, schema_of
from deploykit.writers.base import SAMPLE_ID, Batch, Writer, checked, pieces_of_text

__all__ = ["JsonlWriter"]

_BLOCK_BYTES = 2**20


class JsonlWriter(Writer):
    """``{"sample_id":0,"logits.mean":[0.1,2]}``: scalars as numbers, everything else as nested lists.

    Numbers are the shortest text that reads back as the same number. JSON has no word for what is not a number: these
    are ``NaN``, ``Infinity`` and ``-Infinity``, as Python, pandas and pyarrow write and read them.
    """

    extension: ClassVar[str] = "jsonl"
    needs: ClassVar[tuple[str, str] | None] = ("pyarrow", "parquet")

    def write(self, path: Path, batches: Iterator[Batch], rows: int) -> None:  # noqa: ARG002 (the batches say it)
        """Write block by block; memory holds one batch and what becomes of 2 MiB of it as text."""
        with path.open("wb") as file:
            for batch in pieces_of_text(batches):
                file.write(self._lines(checked(self.outputs, batch)))

    def read(self, path: Path) -> Iterator[Batch]:
        """The rows in blocks of about 1 MiB of text."""
        with path.open("rb") as file:
            while lines := file.readlines(_BLOCK_BYTES):
                yield from self._parsed(b"".join(lines))

    def _lines(self, batch: Batch) -> memoryview:
        import pyarrow as pa
        import pyarrow.compute as pc

        pieces: list[Any] = ["{", f'"{SAMPLE_ID}":', _texts(batch.sample_ids)]
        for spec in self.outputs:
            pieces += [f",{json.dumps(spec.name)}:", _values(batch.outputs[spec.name])]
        lines = pc.binary_join_element_wise(*pieces, "}\n", "")
        _, offsets, text = lines.buffers()
        ends = np.frombuffer(offsets, np.int32, len(lines) + 1, lines.offset * 4)
        return memoryview(text or pa.py_buffer(b""))[ends[0] : ends[-1]]

    def _parsed(self, text: bytes) -> Iterator[Batch]:
        import pyarrow as pa
        from pyarrow import json as reader

        # Half precision is read through single precision, which holds it exactly.
        specs = [_wide(spec) for spec in self.outputs]
        table = reader.read_json(
            pa.BufferReader(text),
            read_options=reader.ReadOptions(use_threads=False, block_size=len(text) + 1),
            parse_options=reader.ParseOptions(
                explicit_schema=schema_of(specs, fixed=False), unexpected_field_behavior="error"
            ),
        )
        for batch in batches_from(specs, table.to_batches()):
            yield self._narrow(batch)

    def _narrow(self, batch: Batch) -> Batch:
        halves: Iterable[str] = (spec.name for spec in self.outputs if spec.dtype == "float16")
        changed = {name: batch.outputs[name].astype(np.float16) for name in halves}
        return Batch(sample_ids=batch.sample_ids, outputs={**batch.outputs, **changed})


def _wide(spec: TensorSpec) -> TensorSpec:
    if spec.dtype != "float16":
        return spec
    return TensorSpec(name=spec.name, dtype="float32", shape=spec.shape)


def _values(array: np.ndarray[Any, Any]) -> Any:
    """The JSON of each row of an array ``(n, ...)``."""
    import pyarrow as pa
    import pyarrow.compute as pc

    texts = _texts(array)
    for axis in range(array.ndim - 1, 0, -1):
        lists = math.prod(array.shape[:axis])
        offsets = flat_of(np.arange(lists + 1, dtype=np.int32) * np.int32(array.shape[axis]))
        inner = pc.binary_join(pa.ListArray.from_arrays(offsets, texts), ",")
        texts = pc.binary_join_element_wise("[", inner, "]", "")
    return texts


def _texts(array: np.ndarray[Any, Any]) -> Any:
    """The JSON of each element of an array, as one flat column of text."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if array.dtype == object:
        return pa.array([json.dumps(text, ensure_ascii=False) for text in array.reshape(-1).tolist()], pa.string())
    if array.dtype == np.float16:
        array = array.astype(np.float32)
    texts = pc.cast(flat_of(array), pa.string())
    if array.dtype.kind != "f":
        return texts
    for number, text in _SPECIAL.items():
        mask = _is(array.reshape(-1), number)
        if mask.any():
            texts = pc.if_else(flat_of(mask), text, texts)
    return texts


_SPECIAL = {math.nan: "NaN", math.inf: "Infinity", -math.inf: "-Infinity", -0.0: "-0.0"}
"""What JSON has no word for; and a zero whose sign a reader that takes ``-0`` for an integer would lose."""


def _is(values: np.ndarray[Any, Any], number: float) -> np.ndarray[Any, Any]:
    if math.isnan(number):
        return np.asarray(np.isnan(values))
    return np.asarray((values == number) & (np.signbit(values) == np.signbit(number)))
