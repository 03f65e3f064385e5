"""Rows of JSON Lines files: an object on each line, parsed by pyarrow."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from typing import Any, ClassVar

from deploykit.errors import DataError
from deploykit.sources.csvvalues import FEW
from deploykit.sources.reading import KEPT, Reading
from deploykit.sources.tables import TableSource
from deploykit.sources.texttables import TextTables
from deploykit.storage.locations import Found
from deploykit.tensors import TensorSpec

__all__ = ["JsonLinesSource"]

_SAMPLE_ROWS = 1000
_RANKS = {"bool": 0, "int64": 1, "float64": 2}
_INT64 = 2**63
_MOST_DEPTH = 64
"""Lists in lists beyond which no dimensions are meant; numpy has no more."""


class JsonLinesSource(TableSource):
    """One file or many; a list is a vector, a list of lists a matrix. Fields that are not read may be anything."""

    many: ClassVar[bool] = True

    def __init__(self, found: Found, inputs: Sequence[TensorSpec], reading: Reading) -> None:
        super().__init__(_JsonFiles(found.text, found.files, reading), inputs, reading)


class _JsonFiles(TextTables):
    kind = "jsonl"
    delimiter = None

    def _find_schema(self) -> Any:
        import pyarrow as pa

        sample = list(self._sample())
        # A record may leave fields out, or say nothing of them: the order of the data is that of the fullest.
        fullest = max((record for _, record in sample), key=len, default={})
        kinds: dict[str, Counter[tuple[str, int]]] = defaultdict(Counter, {name: Counter() for name in fullest})
        texts: dict[str, str] = {}
        for row, record in sample:
            for name, value in record.items():
                counted, found = kinds[name], _kind_of(value)
                if found is None:
                    continue
                counted[found] += 1
                if found == ("string", 0):
                    texts.setdefault(name, f"row {row}: {str(value)[:30]!r}")
        common = {name: _most(counted) if counted else ("null", 0) for name, counted in kinds.items()}
        self.hints = {name: hint for name, hint in texts.items() if common[name][0] == "string"}
        return pa.schema([pa.field(name, _arrow_type(leaf, depth)) for name, (leaf, depth) in common.items()])

    def _sample(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """The first records; a line that is none is an error for those who read it, unless all are."""
        if not self._where:
            return
        file, data = self._first_rows()
        lines = [line for line in data.split(b"\n") if line.strip()]
        records = [_record(line) for line in lines[:_SAMPLE_ROWS]]
        if records and all(problem is not None for _, problem in records):
            raise DataError(f"data {file.place}, row 0: {records[0][1]}")
        yield from ((row, record) for row, (record, problem) in enumerate(records) if problem is None)

    def _parse(self, data: bytes) -> Any:
        import pyarrow as pa
        import pyarrow.compute as pc
        from pyarrow import json as arrow_json

        schema = pa.schema([pa.field(name, self._type(name)) for name in self._columns])
        table = arrow_json.read_json(
            pa.BufferReader(data),
            read_options=arrow_json.ReadOptions(block_size=len(data) + 1),
            parse_options=arrow_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
        )
        kept = {f"{KEPT}{name}": table[name] for name in self._kept}
        # An integer that was rounded is so large. It is looked for in the text where there are such numbers at all.
        floats = (kept[f"{KEPT}{name}"] for name, dtype in self._kept.items() if dtype == "float64")
        large = any(pc.any(pc.greater_equal(pc.abs(column), 2.0**53)).as_py() for column in floats)
        if large and self._problem(data) is not None:
            raise ValueError("integers that float64 does not hold")
        inputs = {
            name: pc.cast(table[name], pa.type_for_alias(dtype), safe=False) if name in self._kept else table[name]
            for name, dtype in self._dtypes.items()
        }
        return pa.table({**inputs, **kept})

    def _type(self, name: str) -> Any:
        """The type of the schema, with the dtype of the input as its innermost where it is for that alone."""
        kind = self.schema.field(name).type
        return kind if name in self._kept else _arrow_type(self._dtypes[name], _flat_name(kind)[1])

    def _problem(self, data: bytes) -> tuple[int, str] | None:
        wanted = {name: _flat_name(self._type(name)) for name in self._columns}
        for row, line in enumerate(line for line in data.split(b"\n") if line.strip()):
            record, problem = _record(line)
            if problem is not None:
                return row, problem
            for name, (leaf, depth) in wanted.items():
                value, keep = record.get(name), name in self._kept
                problem = _misfit(value, leaf, depth) or (_rounded(value, leaf) if keep else None)
                if problem is not None:
                    advice = ", write the field as text, or leave it out of --keep" if keep else ""
                    return row, f"field {name!r}: {problem}; mend the value{advice}"
        return None


def _record(line: bytes) -> tuple[dict[str, Any], str | None]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        return {}, f"not valid JSON ({error}): {line[:60].decode(errors='replace')!r}; mend the line"
    if not isinstance(record, dict):
        return {}, f"a JSON {type(record).__name__}, expected an object with a field for each column; mend the line"
    return record, None


def _kind_of(value: Any, room: int = _MOST_DEPTH) -> tuple[str, int] | None:
    """The dtype of a JSON value and the depth of its lists; None where it says neither."""
    if isinstance(value, list):
        if not room:
            return "other", 0
        kinds = [kind for item in value if (kind := _kind_of(item, room - 1)) is not None]
        if not kinds:
            return None
        leaf, depth = kinds[0]
        for kind in kinds[1:]:
            leaf, depth = _common((leaf, depth), kind)
        return leaf, depth + 1
    if value is None:
        return None
    names = {bool: "bool", int: "int64", float: "float64", str: "string"}
    return names.get(type(value), "other"), 0


def _common(one: tuple[str, int], other: tuple[str, int]) -> tuple[str, int]:
    if one == other:
        return one
    numbers = {"int64", "float64"}
    if one[1] == other[1] and {one[0], other[0]} <= numbers:
        return "float64", one[1]
    text = {one[0], other[0]} <= {*_RANKS, "string"} and one[1] == other[1] == 0
    return ("string" if text else "other"), one[1]


def _most(counted: Mapping[tuple[str, int], int]) -> tuple[str, int]:
    """The kind of all values, or of all but a few where these are no numbers, or lists of another depth."""
    whole = reduce(_common, counted)
    for depth in {depth for _, depth in counted}:
        numbers = [kind for kind in counted if kind[0] in ("int64", "float64") and kind[1] == depth]
        few = sum(counted.values()) - sum(counted[kind] for kind in numbers)
        if numbers and whole[0] in ("string", "other") and few * FEW <= sum(counted.values()):
            return reduce(_common, numbers)
    return whole


def _arrow_type(leaf: str, depth: int) -> Any:
    import pyarrow as pa

    names = {
        "bool": pa.bool_(), "int64": pa.int64(), "float64": pa.float64(), "string": pa.string(), "null": pa.null(),
    }  # fmt: skip
    kind = names.get(leaf, pa.struct([]))
    for _ in range(depth):
        kind = pa.list_(kind)
    return kind


def _flat_name(kind: Any) -> tuple[str, int]:
    """The dtype of what is in a type's lists, and their depth."""
    import pyarrow as pa

    depth = 0
    while pa.types.is_list(kind):
        kind, depth = kind.value_type, depth + 1
    return {"double": "float64"}.get(str(kind), str(kind)), depth


def _misfit(value: Any, leaf: str, depth: int) -> str | None:
    """Why a value is not of a type; null is, and is refused where it is converted."""
    if value is None:
        return None
    if depth:
        if not isinstance(value, list):
            return f"{json.dumps(value)[:60]} is no list"
        return next((problem for item in value if (problem := _misfit(item, leaf, depth - 1))), None)
    fits = {
        "bool": isinstance(value, bool),
        "int64": isinstance(value, int) and not isinstance(value, bool) and -_INT64 <= value < _INT64,
        "float64": isinstance(value, int | float) and not isinstance(value, bool),
        "string": isinstance(value, str),
    }
    return None if fits.get(leaf, True) else f"{json.dumps(value)[:60]} is no {leaf}"


def _rounded(value: Any, leaf: str) -> str | None:
    """Why a value to keep would come out as another; a decimal is the nearest."""
    if leaf != "float64" or not isinstance(value, int) or abs(value) <= 2**53 or value == _nearest(value):
        return None
    return f"{value} would be rounded to float64, which other rows need"


def _nearest(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf
