"""What to try where the columns of a table do not give the inputs of the model."""

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

__all__ = [
    "cast_hint",
    "comma_hints",
    "is_row_name",
    "map_hint",
    "map_prefix",
    "name_hints",
    "row_name_hints",
    "whole_hint",
]

_NUMBERED = re.compile(r"([^*?\[\]'=,]*[^*?\[\]'=,\d])\d+")
_COMMA = re.compile(r"^text \(row \d+: ('[+-]?\d[\d.]*(?:,\d+)+')")

_ROW_NAME = re.compile(
    r"|unnamed: \d+|__index_level_\d+__|index|row|(?:.*[^a-z])?(?:id|uuid|guid)|rowid|(?-i:.*[a-z]I[dD])", re.IGNORECASE
)
"""The index that pandas writes, and ids."""

_MOST_NAMED = 30

_MOST_NAMES = 5
"""Of so many names it is asked which may have been meant: to look for one among thousands takes long."""


def map_prefix(width: int, usable: Sequence[str], present: Sequence[str]) -> str | None:
    """With what the names of an input's columns begin, where there is one answer only.

    Args:
        width: how many columns it takes.
        usable: columns that it can take.
        present: all columns.

    >>> map_prefix(2, ["p_0", "p_1", "age"], ["p_0", "p_1", "age", "label"])
    'p_'
    """
    prefixes = {match[1] for column in usable if (match := _NUMBERED.fullmatch(column))}
    fitting = [
        prefix
        for prefix in sorted(prefixes)
        if len(found := [column for column in present if fnmatchcase(column, f"{prefix}*")]) == width
        and set(found) <= set(usable)
    ]
    return fitting[0] if width > 1 and len(fitting) == 1 else None


def map_hint(name: str, width: int, prefix: str) -> str:
    """The pattern that gives an input its columns.

    >>> map_hint("x", 2, "p_")
    "2 columns are called p_...: try --map 'x=p_*' (columns={'x': ['p_*']})"
    """
    return f"{width} columns are called {prefix}...: try --map '{name}={prefix}*' (columns={{{name!r}: ['{prefix}*']}})"


def is_row_name(name: str) -> bool:
    """Whether a column is called as one that says which row it is, and nothing of what is in it.

    >>> [name for name in ["", "ID", "user_id", "userId", "__index_level_0__", "age", "paid"] if is_row_name(name)]
    ['', 'ID', 'user_id', 'userId', '__index_level_0__']
    """
    return _ROW_NAME.fullmatch(name) is not None


def row_name_hints(name: str, width: int, numbers: Sequence[str]) -> Iterator[str]:
    """What to write where columns of single numbers would fit, if one of them were an input, or none.

    >>> list(row_name_hints("x", 2, ["id", "age"]))
    ["'id' may only say which row it is, so it is not taken by itself; if it is an input: --map x=id,age"]
    >>> list(row_name_hints("x", 2, ["id", "age", "size"]))
    ["'id' may only say which row it is, so it is not left out by itself; without it: --map x=age,size"]
    """
    others = [column for column in numbers if not is_row_name(column)]
    rows = ", ".join(repr(column) for column in numbers if is_row_name(column))
    if len(others) == len(numbers):
        return
    one = len(numbers) - len(others) == 1
    may = f"{rows} may only say which row it is, so {'it is' if one else 'they are'} not"
    if len(numbers) == width:
        yield f"{may} taken by itself; if it is an input: {_mapped(name, numbers)}"
    elif len(others) == width:
        yield f"{may} left out by itself; without it: {_mapped(name, others)}"


def _mapped(name: str, columns: Sequence[str]) -> str:
    if len(columns) > _MOST_NAMED:
        return f"--map {name}=..., with all {len(columns)} columns"
    plain = all(column and column == column.strip() and not set(",[") & set(column) for column in columns)
    listed = ",".join(columns) if plain else json.dumps(columns, ensure_ascii=False)
    return f"--map {shlex.quote(f'{name}={listed}')}"


def cast_hint(name: str, want: str, *, depth: int, more: bool) -> str:
    """How float64 becomes the narrower floats of the model, which is never done in silence.

    ``depth`` is how deep the lists of the column are; pyarrow takes arrays of one dimension alone for the innermost.

    >>> cast_hint("x", "float32", depth=0, more=False)
    "float64 is not rounded to float32 in silence: convert it, in pandas frame.astype({'x': 'float32'})"
    """
    cast = f"frame.astype({{{name!r}: {want!r}{', ...' if more else ''}}})"
    if depth:
        of = "row" if depth == 1 else "part"
        each = f"numpy.asarray({of}, {want!r})"
        for level in range(depth - 1, 0, -1):
            each = f"[{each} for part in {'row' if level == 1 else 'part'}]"
        cast = f"frame[{name!r}] = [{each} for row in frame[{name!r}]]"
    return f"float64 is not rounded to {want} in silence: convert it, in pandas {cast}"


def whole_hint(name: str, kind: str, want: str, *, more: bool) -> str:
    """How floats that are whole numbers become integers; pandas makes floats of integers beside a missing value.

    >>> whole_hint("ids", "float64", "int64", more=False)
    "float64 is not made int64 in silence: convert whole numbers, in pandas frame.astype({'ids': 'Int64'})"
    """
    # With the capital letter pandas refuses what is no whole number; with the small one it would cut it off.
    cast = f"frame.astype({{{name!r}: 'Int64'{', ...' if more else ''}}})"
    return f"{kind} is not made {want} in silence: convert whole numbers, in pandas {cast}"


def comma_hints(described: Iterable[str]) -> Iterator[str]:
    """What to do about numbers with a comma, as much of Europe writes decimals.

    >>> list(comma_hints(["int64", "text (row 0: '-1,5')", "text (row 3: 'a,b')"]))
    ["a number with a comma, '-1,5', is text: write decimals with a point, and thousands without a comma"]
    """
    if found := next(filter(None, map(_COMMA.search, described)), None):
        yield f"a number with a comma, {found[1]}, is text: write decimals with a point, and thousands without a comma"


def name_hints(asked: Sequence[str], present: Sequence[str]) -> Iterator[str]:
    """What may have been meant by names that are not there, and what a column without a name is.

    >>> list(name_hints(["lable"], ["id", "label"]))
    ["there is no 'lable'; did you mean 'label'?"]
    """
    for name in list(dict.fromkeys(asked))[:_MOST_NAMES]:
        if close := get_close_matches(name, present, 1):
            yield f"there is no {name!r}; did you mean {close[0]!r}?"
    if "" in present:
        yield "a column without a name is often the index that pandas wrote: write with index=False, or name the others"
