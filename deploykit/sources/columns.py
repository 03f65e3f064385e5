"""Which columns of a table give which input, and a table of both where they do not."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from deploykit.errors import DataError
from deploykit.sources.columnhints import (
    cast_hint,
    comma_hints,
    is_row_name,
    map_hint,
    map_prefix,
    name_hints,
    row_name_hints,
    whole_hint,
)  # fmt: skip
from deploykit.sources.reading import Reading
from deploykit.tensors import TEXT, TensorSpec
from deploykit.texts import natural
from deploykit.wording import counted

__all__ = ["Column", "Match", "castable", "match_columns", "match_nothing"]

_MOST_SHOWN = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column.

    Attributes:
        dtype: of a number, as numpy calls it; ``string`` for text and what is kept as text; None for all else.
        kept: the dtype in which it is kept; None where it cannot be.
        shape: of a row's value; None stands for a length that each row says itself.
        described: its type as messages show it.
        is_number: whether an input can take it.
    """

    name: str
    dtype: str | None
    kept: str | None
    shape: tuple[int | None, ...]
    described: str
    is_number: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """``inputs``: by input, its columns; several are the values of its last dimension. ``kept``: columns to keep."""

    inputs: Mapping[str, tuple[str, ...]]
    kept: tuple[TensorSpec, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that is read, once."""
        names = [name for columns in self.inputs.values() for name in columns]
        return tuple(dict.fromkeys([*names, *(spec.name for spec in self.kept)]))


def match_columns(
    what: str, columns: Sequence[Column], inputs: Sequence[TensorSpec], reading: Reading, notes: list[str],
    *, text: bool = False,
) -> Match:  # fmt: skip
    """Find the columns of each input: those of ``--map``, the one of its name, or all numbers where they fit.

    Args:
        what: the source, for messages.
        columns: the columns in the order of the data.
        inputs: the model's inputs.
        reading: what the user asked for.
        notes: where to say what was assumed.
        text: numbers were written as text, so that a float is rounded to the input's dtype.

    Raises:
        DataError: columns are missing or do not fit; shows what is there and what is needed.
    """
    by_name = {column.name: column for column in columns}
    _refuse_twice(what, columns)
    chosen: dict[str, tuple[str, ...]] = {}
    problems: dict[str, str] = {}
    hints: list[str] = []
    asked: list[str] = []
    for spec in inputs:
        names = _chosen(spec, columns, len(inputs) == 1, reading, notes)
        asked += names
        problem = _problem(spec, names, by_name, text=text, padded=spec.name in reading.pad)
        if problem is None:
            chosen[spec.name] = names
        else:
            problems[spec.name] = problem
            found = [by_name[name] for name in names if name in by_name]
            hints += _hints(spec, found, columns, text=text, alone=len(inputs) == 1)
    absent = [name for name in reading.keep if name not in by_name]
    if problems or absent:
        hints += comma_hints(column.described for column in columns)
        hints += name_hints([name for name in [*absent, *asked] if name not in by_name], list(by_name))
        raise DataError(_refusal(what, columns, inputs, problems, absent, hints))
    kept = tuple(_kept(what, by_name[name], str(inputs[0].shape[0]), notes) for name in reading.keep)
    return Match(inputs=chosen, kept=kept)


def match_nothing(inputs: Sequence[TensorSpec], reading: Reading, notes: list[str]) -> Match:
    """What is read of text without rows: nothing says which fields there would be, nor what they would hold."""
    kept = tuple(TensorSpec(name=name, dtype="float64", shape=(inputs[0].shape[0],)) for name in reading.keep)
    types = f", nor of which type {_listed(reading.keep)} would be: float64 stands for it" if kept else ""
    notes.append(f"there are no rows, so nothing says whether the columns give the inputs{types}")
    return Match(inputs={}, kept=kept)


def castable(source: str, target: str, *, text: bool) -> bool:
    """Whether values can be cast without a silent loss: exactly, or with a check of each value.

    Integers go to any number if they fit, which is checked; a float to a wider float, from text to any.
    """
    have, want = np.dtype(source), np.dtype(target)
    if have == want:
        return True
    if want.kind == "b" or have.kind not in "iufb":
        return False
    if have.kind == "f":
        return want.kind == "f" and (text or want.itemsize > have.itemsize)
    return True


def _refuse_twice(what: str, columns: Sequence[Column]) -> None:
    names = [column.name for column in columns]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise DataError(f"data {what}: has more than one column {twice[0]!r}; give each column a name of its own")


def _chosen(
    spec: TensorSpec, columns: Sequence[Column], alone: bool, reading: Reading, notes: list[str]
) -> tuple[str, ...]:
    if spec.name in reading.columns:
        return _expanded(spec, columns, reading.columns[spec.name], notes)
    if any(column.name == spec.name for column in columns):
        return (spec.name,)
    if not alone:
        return ()
    # A column to keep is an id or a label as a rule, and one of the inputs where they are not complete without it.
    others = [column for column in columns if column.name not in reading.keep]
    return _all_numbers(spec, others, notes) or _all_numbers(spec, columns, notes)


def _expanded(
    spec: TensorSpec, columns: Sequence[Column], patterns: Sequence[str], notes: list[str]
) -> tuple[str, ...]:
    present = [column.name for column in columns]
    names: list[str] = []
    for pattern in patterns:
        if pattern in present or not set("*?[") & set(pattern):
            names.append(pattern)
            continue
        there = [name for name in present if fnmatchcase(name, pattern)]
        found = sorted(there, key=natural)
        if found:
            order = "in natural order" + ("" if found == there else ", which is not their order in the data")
            notes.append(f"input {spec.name!r}: {pattern} stands for {_listed(found)}, {order}")
        names += found or [pattern]
    return tuple(names)


def _all_numbers(spec: TensorSpec, columns: Sequence[Column], notes: list[str]) -> tuple[str, ...]:
    """For a model with one input: the only list, or as many numbers as the input is wide."""
    lists = [column.name for column in columns if column.shape and column.is_number]
    if len(lists) == 1 and spec.row_shape:
        notes.append(f"the column {lists[0]!r} is taken for the input {spec.name!r}: it is the only one of lists")
        return (lists[0],)
    numbers = [column.name for column in columns if column.is_number and not column.shape]
    width = 1 if not spec.row_shape else spec.row_shape[0] if len(spec.row_shape) == 1 else None
    if not lists and len(numbers) == width and not any(map(is_row_name, numbers)):
        notes.append(f"the columns {_listed(numbers)} are taken for the input {spec.name!r}, in the order of the data")
        return tuple(numbers)
    return ()


def _problem(
    spec: TensorSpec, names: Sequence[str], columns: Mapping[str, Column], *, text: bool, padded: bool
) -> str | None:
    if not names:
        numbers = sum(column.is_number and not column.shape for column in columns.values())
        return f"no column {spec.name!r}, and {counted(numbers, 'column')} of single numbers"
    absent = [name for name in names if name not in columns]
    if absent:
        return f"no column {_listed(absent)}"
    chosen = [columns[name] for name in names]
    for column in chosen:
        if not column.is_number or column.dtype is None or not castable(column.dtype, spec.dtype, text=text):
            return f"{column.name} is {column.described}"
    if len(chosen) > 1 or (len(spec.row_shape) == 1 and not chosen[0].shape):
        count = counted(len(chosen), "column")
        wide = [column.name for column in chosen if column.shape]
        if wide or len(spec.row_shape) != 1:
            return f"{count}, of which {_listed(wide)} hold lists" if wide else count
        fits = isinstance(spec.row_shape[0], str) or spec.row_shape[0] == len(chosen)
        return None if fits else count
    shape = (None, *chosen[0].shape[1:]) if padded else chosen[0].shape  # A row that is too long is told as such.
    return None if _fits(spec, shape) else f"{chosen[0].name} is {chosen[0].described}"


def _fits(spec: TensorSpec, shape: tuple[int | None, ...]) -> bool:
    pairs = list(zip(spec.row_shape, shape, strict=False))
    if len(shape) == len(spec.row_shape):
        return all(b is None or isinstance(a, str) or a == b for a, b in pairs)
    # A flat list of all values, row by row.
    sizes = [size for size in spec.row_shape if isinstance(size, int)]
    return len(shape) == 1 and len(sizes) == len(spec.row_shape) > 1 and shape[0] in (None, math.prod(sizes))


def _kept(what: str, column: Column, batch: str, notes: list[str]) -> TensorSpec:
    shown = f"data {what}: column {column.name!r} is {column.described} and cannot be kept"
    if column.kept is None:
        cast = f"frame.astype({{{column.name!r}: str}})"
        if "binary" in column.described:  # str of bytes is "b'...'".
            cast = f"frame[{column.name!r}].str.decode('utf-8'), or .map(bytes.hex)"
        raise DataError(
            f"{shown}; kept are numbers, text, dates and lists of numbers: make it one of these where the data is "
            f"written (in pandas {cast}), or leave it out of --keep"
        )
    if None in column.shape:
        raise DataError(
            f"{shown}: its type does not say how long the lists are, even if all have one length; give it a type that "
            "does in Parquet or Arrow, such as pa.list_(pa.float32(), 4), or leave it out of --keep"
        )
    if column.kept == TEXT and not column.described.startswith("text"):
        notes.append(f"the column {column.name!r} ({column.described}) is kept as text")
    return TensorSpec(name=column.name, dtype=column.kept, shape=(batch, *(d for d in column.shape if d is not None)))


def _refusal(
    what: str, columns: Sequence[Column], inputs: Sequence[TensorSpec], problems: Mapping[str, str],
    absent: Sequence[str], hints: Sequence[str],
) -> str:  # fmt: skip
    """The error's text: what is needed, what is there."""
    needed = [
        (spec.name, _needs(spec), problems.get(spec.name, "found")) for spec in inputs
    ] + [(name, "a column to keep (--keep)", f"no column {name!r}") for name in absent]  # fmt: skip
    there = [(column.name or "(no name)", column.described, "") for column in columns[:_MOST_SHOWN]]
    rest = len(columns) - len(there)
    lines = [
        f"data {what}: its columns do not give what is needed",
        *_table([("needed", "as", "but there is"), *needed]),
        *_table([("there", "as", ""), *there]),
        *([f"  ... and {rest} more"] if rest else []),
        *dict.fromkeys(hints),
        "name the columns of an input with --map INPUT=COLUMN,COLUMN,... or --map INPUT='f*', or convert the data",
    ]
    return "\n".join(lines)


def _hints(
    spec: TensorSpec, chosen: Sequence[Column], columns: Sequence[Column], *, text: bool, alone: bool
) -> Iterator[str]:
    """What to try for an input that gets no columns, or those that do not fit."""
    width = spec.row_shape[0] if len(spec.row_shape) == 1 else 0
    usable = [column for column in columns if column.is_number and column.dtype is not None and not column.shape]
    fits = [c for c in usable if castable(c.dtype or "", spec.dtype, text=text) or _is_wider(c, spec)]
    prefix = map_prefix(width, [c.name for c in fits], [c.name for c in columns]) if isinstance(width, int) else None
    if prefix is not None:
        called = [column for column in fits if column.name.startswith(prefix)]
        if {column.name for column in called} != {column.name for column in chosen}:
            yield map_hint(spec.name, int(width), prefix)
        chosen = chosen or called  # What the pattern finds must not be refused next.
    elif alone and not chosen and isinstance(width, int):
        yield from row_name_hints(spec.name, width, [column.name for column in usable])
    wide = [column for column in chosen if _is_wider(column, spec)]
    if wide and not text:
        yield cast_hint(wide[0].name, spec.dtype, depth=len(wide[0].shape), more=len(wide) > 1)
    floats = [column for column in chosen if (column.dtype or "").startswith("float") and not column.shape]
    if floats and "int" in spec.dtype:
        yield whole_hint(floats[0].name, floats[0].dtype or "", spec.dtype, more=len(floats) > 1)


def _is_wider(column: Column, spec: TensorSpec) -> bool:
    return column.dtype == "float64" != spec.dtype and spec.dtype.startswith("float")


def _needs(spec: TensorSpec) -> str:
    if not spec.row_shape:
        return spec.dtype
    return f"{spec.dtype}[{','.join(map(str, spec.row_shape))}]"


def _table(rows: Sequence[tuple[str, str, str]]) -> list[str]:
    widths = [max(len(row[place]) for row in rows) for place in range(3)]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _listed(names: Sequence[str], most: int = 6) -> str:
    if len(names) <= most:
        return ", ".join(names) or "nothing"
    return f"{', '.join(names[: most - 2])} ... {names[-1]} ({len(names)})"
